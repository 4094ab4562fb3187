"""One seed, independent named streams."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from veritune.seeds import stream, stream_seed

names = st.lists(st.one_of(st.text("ab", max_size=3), st.integers(0, 3)), max_size=3)


def test_equal_names_give_equal_streams():
    one, two = (torch.rand(5, generator=stream(3, "order", 1)) for _ in range(2))

    assert torch.equal(one, two)


def test_any_other_name_or_seed_gives_another_stream():
    seeds = [
        stream_seed(0, "order", 1),
        stream_seed(1, "order", 1),
        stream_seed(0, "order", 2),
        stream_seed(0, "dropout", 1),
        stream_seed(0, "order"),
        stream_seed(0),
        stream_seed(0, "order1"),
        stream_seed(0, "or", "der", 1),
    ]

    assert len(set(seeds)) == len(seeds)


@given(seed=st.integers(0, 10**9), names=names)
def test_a_stream_seed_fits_every_generator(seed: int, names: list[str | int]):
    assert 0 <= stream_seed(seed, *names) < 2**63


def test_a_stream_neither_reads_nor_moves_the_global_generator():
    torch.manual_seed(0)
    before = torch.get_rng_state()

    first = torch.rand(3, generator=stream(0, "order"))
    assert torch.equal(torch.get_rng_state(), before)

    torch.manual_seed(99)
    assert torch.equal(torch.rand(3, generator=stream(0, "order")), first)


def test_a_stream_is_the_same_on_every_machine():
    """SHA-256 of "0", the unit separator and "order", its first 63 bits, taken by hand."""
    import hashlib

    digest = hashlib.sha256(b"0\x1forder").digest()
    assert stream_seed(0, "order") == int.from_bytes(digest[:8], "big") // 2
