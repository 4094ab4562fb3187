"""Finite languages: every string over an alphabet, up to a length."""

from dataclasses import dataclass, field
from itertools import product


@dataclass(frozen=True)
class FiniteLanguage:
    """All strings of 1 to `longest` symbols, shorter ones first, then in the alphabet's order.

    Args:
        alphabet: Symbols, all different, none empty; no string may be spelled in two ways.
        longest: Length of the longest string, in symbols, at least 1.

    Example:
        >>> FiniteLanguage(("a", "b"), longest=2).strings
        ('a', 'b', 'aa', 'ab', 'ba', 'bb')
    """

    alphabet: tuple[str, ...]
    longest: int
    strings: tuple[str, ...] = field(init=False, repr=False, compare=False)
    """Every string; there are `A + A^2 + … + A^longest` for an alphabet of A symbols."""

    def __post_init__(self) -> None:
        assert self.alphabet, "a language has at least one symbol"
        assert all(self.alphabet), "a symbol is not empty"
        assert self.longest >= 1, "a string has at least one symbol"
        strings = tuple(
            "".join(symbols)
            for length in range(1, self.longest + 1)
            for symbols in product(self.alphabet, repeat=length)
        )
        assert len(set(strings)) == len(strings), "every string is spelled in one way"
        object.__setattr__(self, "strings", strings)

    def __len__(self) -> int:
        return len(self.strings)
