"""Every error that is raised on purpose, and the form of its message.

VerituneError
├── InputError                the user's input or settings are wrong; exit code 2
│   ├── SettingsError         a setting is unknown, out of range, or contradicts another
│   ├── RecordError           one record cannot be used
│   ├── DataError             a file or a whole data set cannot be used
│   ├── TokenizationError     text does not survive its way into tokens
│   ├── ModelError            a model, tokenizer or adapter cannot be used
│   └── RunFolderError        the run folder holds something else
└── RunError                  the run itself failed; exit code 1
    ├── NonFiniteLossError    loss or gradient is not a number
    ├── StepZeroError         policy and reference disagree before the first update
    ├── ReferenceCacheError   cached log-probabilities are not those of the reference
    ├── OutOfMemoryError      the device has no memory for what the run does
    └── CheckpointError       a checkpoint is damaged

VerituneWarning               the run continues and may surprise
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

MAX_SHOWN_PROBLEMS = 20
_MAX_SHOWN_CHARACTERS = 120


class VerituneError(Exception):
    """An error whose message says where, what, the value received, why it matters, and the way out.

    Args:
        what: The problem, as a sentence without a full stop.
        where: File and line, setting, or record.
        got: The value received; long text is shortened when printed.
        why: What would go wrong if this were let through.
        fix: What to do.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        got: object = None,
        why: str | None = None,
        fix: str | None = None,
    ) -> None:
        self.what = what
        self.where = where
        self.got = got
        self.why = why
        self.fix = fix
        super().__init__(self._message())

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception is made again from `args`, which here is the finished message alone.
        return _made_again, (type(self), self.__dict__, self.args)

    def _message(self) -> str:
        head = self.what if self.where is None else f"{self.where}: {self.what}"
        lines = [head if head.endswith((".", "?")) else head + "."]
        if self.got is not None:
            lines.append(f"  got: {shorten(self.got)}")
        if self.why is not None:
            lines.append(f"  why: {self.why}.")
        if self.fix is not None:
            lines.append(f"  fix: {self.fix}" + ("" if self.fix.endswith("?") else "."))
        return "\n".join(lines)


class InputError(VerituneError):
    """The user's input or settings are wrong."""

    exit_code = 2


class SettingsError(InputError, ValueError):
    """A setting is unknown, out of range, or contradicts another."""


class RecordError(InputError, ValueError):
    """One record cannot be used."""


class DataError(InputError, ValueError):
    """A file or a whole data set cannot be used."""


class TokenizationError(InputError, ValueError):
    """Text does not survive its way into tokens."""


class ModelError(InputError, ValueError):
    """A model, tokenizer or adapter cannot be used."""


class RunFolderError(InputError, ValueError):
    """The run folder holds something else than this run."""


class RunError(VerituneError, RuntimeError):
    """The run itself failed."""


class NonFiniteLossError(RunError, ArithmeticError):
    """The loss or the gradient is not a number; no update was made."""


class StepZeroError(RunError):
    """Before the first update, policy and reference disagree or the loss is not the known one."""


class ReferenceCacheError(RunError):
    """Cached log-probabilities are incomplete or are not those of the reference."""


class OutOfMemoryError(RunError, MemoryError):
    """The device has no memory for what the run does."""


class CheckpointError(RunError):
    """A checkpoint is damaged or incomplete."""


class VerituneWarning(UserWarning):
    """The run continues, and the user may be surprised."""


def _made_again(
    kind: type[VerituneError], facts: dict[str, Any], args: tuple[Any, ...]
) -> VerituneError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(facts)
    return error


@dataclass
class Problems:
    """Problems of many things: how many there are, and the first of them in words.

    Its length is their number, and its text is what `join_problems` says of them; the errors
    themselves are not kept, so that a million problems take no memory.
    """

    total: int = 0
    shown: list[str] = field(default_factory=list)

    def add(self, problem: VerituneError) -> None:
        """One more."""
        self.join(Problems(1, [f"{type(problem).__name__}: {problem}"]))

    def join(self, later: "Problems") -> None:
        """As many more as there are among others, which come behind these."""
        self.total += later.total
        self.shown = [*self.shown, *later.shown][:MAX_SHOWN_PROBLEMS]

    def __len__(self) -> int:
        return self.total

    def __str__(self) -> str:
        more = self.total - len(self.shown)
        told = [f"… and {more} more (total {self.total})."] if more else []
        return "\n".join([*self.shown, *told])


def unwritable_cache(folder: object, kept: str, error: OSError) -> SettingsError:
    """The error of a cache folder into which nothing can be written.

    Args:
        folder: The folder.
        kept: What is kept there, with its verb: "the tokens of the data are".
        error: What the system says.
    """
    return SettingsError(
        "the cache folder cannot be written",
        where="cache",
        got=str(folder),
        why=f"{kept} kept there ({error})",
        fix="set cache=…, or the environment variable VERITUNE_CACHE, to a folder that can be "
        "written and has room",
    )


def shorten(value: object, limit: int = _MAX_SHOWN_CHARACTERS) -> str:
    """The value as Python would write it, on one line, cut in the middle when it is long."""
    text = repr(value)
    if len(text) <= limit:
        return text
    keep = (limit - 3) // 2
    return f"{text[:keep]} … {text[-keep:]}"


def join_problems(problems: Sequence[VerituneError], total: int | None = None) -> str:
    """The first problems, one below the other, and how many there are in all."""
    joined = Problems()
    for problem in problems[:MAX_SHOWN_PROBLEMS]:
        joined.add(problem)
    joined.total = len(problems) if total is None else total
    return str(joined)


def nearest_name(name: str, known: Sequence[str]) -> str | None:
    """The known name most like the given one, if any is like it at all."""
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return found[0] if found else None
