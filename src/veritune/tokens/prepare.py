"""Files to tokenized data sets on disk: read, split, converted and tokenized chunk by chunk.

1. The rows are cut into chunks; the first few are worked on here, the others in processes.
2. A chunk becomes records, the records are split by prompt, converted and tokenized.
3. What comes back is put behind what came before, in files; memory holds a few chunks only.
4. The result is kept by a hash of everything that it depends on, and found again by it.
"""

import hashlib
import json
import shutil
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from veritune.errors import DataError, VerituneError, VerituneWarning, unwritable_cache
from veritune.provenance import hash_files, versions
from veritune.records.content import content_key
from veritune.records.convert import convert_records
from veritune.records.json_lines import Item
from veritune.records.kinds import Record
from veritune.records.read import DataConfig, First, Found, check_found, rows_of, sound_records
from veritune.records.sources import source_identity
from veritune.records.split import prompt_draw, settled_threshold
from veritune.tokens.chunk import TokenizedChunk, TokenRules, tokenize_chunk
from veritune.tokens.dataset import DatasetWriter, check_counts
from veritune.tokens.encode import TextEncoder
from veritune.tokens.stored import (
    DamagedError,
    Entry,
    describe_side,
    open_array,
    put_in_place,
    read_entry,
    remove_abandoned,
    side_folder,
    write_about,
    write_prompts,
)
from veritune.tokens.workers import in_order, num_cores

_FORMAT = 1
_CHUNK_ROWS = 512
_CHUNKS_HERE = 8
"""Chunks that are worked on before processes are started: starting takes seconds."""

_LIBRARIES = ("veritune", "transformers", "tokenizers", "datasets", "numpy")


@dataclass(frozen=True)
class Recipe:
    """What is made of some files: all that the result depends on but their content and the
    encoder."""

    data: DataConfig
    kind: str
    """The kind that the records become."""

    max_length: int
    """Most tokens of a prompt with its longest completion."""

    setting: str = "data"
    """The setting that names the files, for messages."""

    held_out_fraction: float | None = None
    """Share of the prompts that is held out; None holds nothing out."""

    seed: int = 0
    """Another seed holds out other prompts."""

    @property
    def rules(self) -> TokenRules:
        """What is done with records on their way into tokens."""
        return TokenRules(self.max_length, self.data.identical_pairs, self.setting)


@dataclass(frozen=True)
class Prepared:
    """Tokenized data, mapped from disk, and how they came about."""

    entry: Entry
    folder: Path
    was_kept: bool
    """Whether they were found in the cache."""

    seconds: float
    """Time taken now."""


def prepare(
    recipe: Recipe,
    encoder: TextEncoder,
    root: Path,
    *,
    num_workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Prepared:
    """The tokenized data of some files, from the cache or made now.

    Args:
        recipe: What is made of which files.
        encoder: Text to ids.
        root: Folder of all caches.
        num_workers: Most processes that tokenize; None is one for each core. The result is the
            same for every number.
        progress: Called with the number of rows done so far.

    Raises:
        DataError: A file or some row cannot be used (all are named); the records cannot become the
            kind; none is left to train on, or to hold out.
        SettingsError: The cache folder cannot be written.
    """
    began = time.monotonic()
    stamps = _stamps(recipe.data.files)
    made_from = _made_from(recipe, encoder)
    text = json.dumps(made_from, sort_keys=True)
    folder = root / "tokens" / hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
    try:
        return Prepared(read_entry(folder), folder, True, time.monotonic() - began)
    except FileNotFoundError:
        pass
    except DamagedError as damage:
        warnings.warn(
            f"the kept tokens in {folder} are damaged ({damage}); they are made again",
            VerituneWarning,
            stacklevel=2,
        )
    if num_workers is None:
        num_workers = num_cores() if num_cores() > 1 else 0
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(folder.parent)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            _make(recipe, encoder, beside, made_from, num_workers, progress)
            _refuse_changed(recipe.data.files, stamps)
            # Mapped before anyone else can touch them; names of files do not matter to a mapping.
            entry = read_entry(beside, verifies=False)
            put_in_place(beside, folder)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
    except OSError as error:
        raise unwritable_cache(folder.parent, "the tokens of the data are", error) from error
    return Prepared(entry, folder, False, time.monotonic() - began)


def tokenizer_identity(tokenizer: Any) -> str:
    """A hash of a tokenizer and its chat template, as they are now."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return hash_files(file for file in Path(folder).rglob("*") if file.is_file())


def _made_from(recipe: Recipe, encoder: TextEncoder) -> dict[str, Any]:
    """Everything that the result depends on; for JSON."""
    template = str(getattr(encoder.tokenizer, "chat_template", None))
    libraries = versions()
    return {
        "format": _FORMAT,
        "code": _code_identity(),
        "versions": {name: libraries[name] for name in _LIBRARIES} | {"jinja2": jinja2.__version__},
        "data": recipe.data.model_dump(mode="json"),
        "content": [
            source_identity(file, split=recipe.data.split, subset=recipe.data.subset)
            for file in recipe.data.files
        ],
        "kind": recipe.kind,
        "max_length": recipe.max_length,
        "setting": recipe.setting,
        "held_out_fraction": recipe.held_out_fraction,
        "seed": recipe.seed if recipe.held_out_fraction is not None else None,
        # The template is part of the tokenizer by now, wherever its file lies.
        "tokens": encoder.config.model_dump(mode="json", exclude={"chat_template"}),
        "tokenizer": tokenizer_identity(encoder.tokenizer),
        "end_tokens": sorted(encoder.end_tokens),
        # Some templates write the date into every dialogue.
        "day": time.strftime("%Y-%m-%d") if "strftime_now" in template else None,
    }


def _code_identity() -> str:
    """A hash of the code that makes records and tokens of files."""
    package = Path(__file__).parent.parent
    files = [file for part in ("records", "tokens") for file in sorted((package / part).glob("*"))]
    return hash_files(file for file in files if file.suffix == ".py")


def _stamps(files: Sequence[str]) -> list[tuple[int, int] | None]:
    """Size and time of change of what is a file."""
    paths = [Path(file).expanduser() for file in files]
    found = [path.stat() if path.is_file() else None for path in paths]
    return [None if facts is None else (facts.st_size, facts.st_mtime_ns) for facts in found]


def _refuse_changed(files: Sequence[str], before: Sequence[object]) -> None:
    for file, now, then in zip(files, _stamps(files), before, strict=True):
        if now != then:
            raise DataError(
                "the file changed while it was read",
                where=file,
                why="part of the records may be old and part of them new",
                fix="wait until it is written, and start again",
            )


@dataclass(frozen=True)
class _Task:
    """Some rows in a row."""

    rows: list[Item]
    is_first: bool
    tokenizes: bool
    """False where an error is certain and only more problems of rows are looked for."""


@dataclass(frozen=True)
class _SideOfChunk:
    """What a chunk gives to one side."""

    tokens: TokenizedChunk
    discarded: Mapping[str, int]
    prompts: NDArray[Any]
    file: str | None
    """Where its first record stands."""


@dataclass
class _ChunkOutcome:
    """What a chunk gives."""

    found: Found
    draws: list[float] = field(default_factory=list)
    """The smallest and the largest draw of a prompt, if any was made."""

    sides: dict[str, _SideOfChunk] = field(default_factory=dict)
    error: VerituneError | None = None
    """Why none of the files can be used."""


@dataclass(frozen=True)
class _ChunkWork:
    """Rows to tokens; what a worker does with a task."""

    recipe: Recipe
    encoder: TextEncoder
    threshold: float
    """Prompts with draws below it are held out."""

    first: First | None = None

    def __call__(self, task: _Task) -> _ChunkOutcome:
        outcome = _ChunkOutcome(Found(first=self.first))
        records = list(sound_records(task.rows, self.recipe.data, outcome.found))
        if not task.tokenizes:
            return outcome
        sides: dict[str, list[Record]] = {"kept": records}
        if self.recipe.held_out_fraction is not None:
            seed = self.recipe.seed
            draws = [prompt_draw(content_key(record.prompt), seed) for record in records]
            drawn = list(zip(records, draws, strict=True))
            sides = {
                # Held-out records first: their problems are told before those of the others.
                "held_out": [record for record, draw in drawn if draw < self.threshold],
                "kept": [record for record, draw in drawn if draw >= self.threshold],
            }
            outcome.draws = [min(draws), max(draws)] if draws else []
        try:
            for name, members in sides.items():
                outcome.sides[name] = self._side(members, task.is_first)
        except VerituneError as error:
            outcome.error = error
        return outcome

    def _side(self, records: list[Record], is_first: bool) -> _SideOfChunk:
        converted = convert_records(records, self.recipe.kind)
        made = converted.records
        return _SideOfChunk(
            tokenize_chunk(made, self.encoder, self.recipe.rules, checks_decoding=is_first),
            converted.discarded,
            np.unique(np.array([content_key(record.prompt) for record in made], "S16")),
            made[0].origin.file if made else None,
        )


class _SideWriter:
    """One side, growing in files."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.writer = DatasetWriter(lambda name: open_array(folder, name))
        self.discarded: Counter[str] = Counter()
        self.prompts: list[NDArray[Any]] = []
        self.file: str | None = None

    def add(self, chunk: _SideOfChunk) -> None:
        self.writer.add(chunk.tokens)
        self.discarded.update(chunk.discarded)
        self.prompts.append(chunk.prompts)
        self.file = self.file or chunk.file

    def finish(self, recipe: Recipe, found: Found, setting: str, bos: int | None) -> dict[str, Any]:
        """Check what became of the records, and describe the side."""
        for sink in self.writer.close().values():
            sink.close()
        assert found.first is not None, "sound records were found"
        told = ", ".join(f"{count} {what}" for what, count in self.discarded.items())
        kind, counts = found.first.kind, self.writer.counts
        if not counts.num_records:
            raise DataError(
                f"none of the {kind} records makes a {recipe.kind} record",
                where=setting,
                got=told,
                why=f"the objective learns from {recipe.kind} records, and all of these are left "
                "out",
                fix=f"add others, or choose an objective for {kind} data (veritune objectives)",
            )
        check_counts(
            counts, recipe.rules, skip_problems=recipe.data.on_error == "skip", file=self.file
        )
        write_prompts(self.folder, np.concatenate(self.prompts))
        conversion = None
        if kind != recipe.kind:
            conversion = f"{kind} records to {recipe.kind} ones"
            conversion += f"; left out: {told}" if told else ""
        return describe_side(
            self.folder,
            kind=recipe.kind,
            sources=self.writer.sources,
            counts=counts,
            max_length=recipe.max_length,
            bos=bos,
            conversion=conversion,
        )


class _Pass:
    """One pass over the files with a threshold of the split."""

    def __init__(self, folder: Path, sides: Sequence[str]) -> None:
        self.found = Found()
        self.draws: list[float] = []
        self.error: VerituneError | None = None
        self.sides = {name: _SideWriter(side_folder(folder, name)) for name in sides}

    def add(self, chunk: _ChunkOutcome) -> None:
        self.found.join(chunk.found)
        if chunk.draws:
            every = [*self.draws, *chunk.draws]
            self.draws = [min(every), max(every)]
        self.error = self.error or chunk.error
        for name, side in chunk.sides.items():
            self.sides[name].add(side)


def _make(
    recipe: Recipe,
    encoder: TextEncoder,
    folder: Path,
    made_from: Mapping[str, Any],
    num_workers: int,
    progress: Callable[[int], None] | None,
) -> None:
    """Write an entry."""
    fraction = recipe.held_out_fraction
    threshold = fraction or 0.0
    done = _run(recipe, encoder, folder, threshold, num_workers, progress)
    if fraction is not None:
        settled = settled_threshold(fraction, *done.draws)
        if settled == 0:
            raise DataError(
                "nothing is held out",
                where="evaluation.fraction",
                got=f"{fraction:g} of the prompts of {', '.join(recipe.data.files)}",
                why="records of one prompt stay together, and there is one prompt only",
                fix="give held-out records by evaluation.data, or leave evaluation.fraction out",
            )
        if settled != threshold:
            # All prompts drew one side. That is seen when all have drawn, and happens to few.
            for side in done.sides.values():
                shutil.rmtree(side.folder)
            done = _run(recipe, encoder, folder, settled, num_workers, progress)
    settings = {"kept": recipe.setting, "held_out": "evaluation.fraction"}
    bos = encoder.tokenizer.bos_token_id
    about = {
        name: side.finish(recipe, done.found, settings[name], bos)
        for name, side in done.sides.items()
    }
    write_about(folder, made_from, done.found, about)


def _run(
    recipe: Recipe,
    encoder: TextEncoder,
    folder: Path,
    threshold: float,
    num_workers: int,
    progress: Callable[[int], None] | None,
) -> _Pass:
    """All rows, in chunks; refuses what was found in them."""
    sides = ("kept",) if recipe.held_out_fraction is None else ("held_out", "kept")
    done = _Pass(folder, sides)
    work = _ChunkWork(recipe, encoder, threshold)
    chunks = enumerate(_chunks(rows_of(recipe.data)))

    def tasks() -> Iterator[_Task]:
        for number, rows in chunks:
            stops = done.found.problems and recipe.data.on_error == "stop"
            yield _Task(rows, number == 0, not (stops or done.error))

    def add(outcome: _ChunkOutcome) -> None:
        done.add(outcome)
        if progress is not None:
            progress(done.found.num_rows)

    for num_here, task in enumerate(tasks(), start=1):
        add(replace(work, first=done.found.first)(task))
        # The first sound record says the kind, and a worker must know it.
        if num_here >= _CHUNKS_HERE and done.found.first is not None:
            break
    work = replace(work, first=done.found.first)
    for outcome in in_order(work, tasks(), num_workers=num_workers):
        add(outcome)
    check_found(recipe.data, done.found)
    if done.error is not None:
        raise done.error
    return done


def _chunks(rows: Iterable[Item]) -> Iterator[list[Item]]:
    remaining = iter(rows)
    while chunk := list(islice(remaining, _CHUNK_ROWS)):
        yield chunk
