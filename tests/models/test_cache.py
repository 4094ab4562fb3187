"""Reference log-probabilities on disk: whole, finite, one's own, or not there."""

import hashlib
import shutil
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from veritune.errors import ReferenceCacheError, SettingsError, VerituneWarning
from veritune.models.cache import ReferenceCache, default_cache_folder, keys_of
from veritune.tokens.encode import TokenizedCompletion, TokenizedRecord

IDENTITY = {"weights": "abc", "precision": "fp32"}
ONE, TWO = b"1" * 16, b"2" * 16


def values(*numbers: float) -> Any:
    return np.array(numbers, np.float32)


def loaded(root: Path, identity: dict[str, str] = IDENTITY) -> ReferenceCache:
    cache = ReferenceCache(root, identity)
    cache.load()
    return cache


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    cache = ReferenceCache(tmp_path, IDENTITY)
    cache.add({ONE: values(-1.5, -2.25)})
    cache.add({TWO: values(-0.125)})
    return tmp_path


def files_of(root: Path) -> list[Path]:
    return sorted(root.rglob("values-*.safetensors"))


def test_values_survive_a_reload_bit_for_bit(tmp_path: Path):
    exact = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    ReferenceCache(tmp_path, IDENTITY).add({ONE: exact, TWO: exact[:3]})

    cache = loaded(tmp_path)

    assert cache.get(ONE, 1000).tobytes() == exact.tobytes()
    assert cache.get(TWO, 3).tobytes() == exact[:3].tobytes()
    assert len(cache) == 2


def test_a_cache_knows_what_it_holds(filled: Path):
    cache = ReferenceCache(filled, IDENTITY)
    assert ONE not in cache

    cache.load()

    assert ONE in cache
    assert b"3" * 16 not in cache
    assert cache.get(ONE, 2).tolist() == [-1.5, -2.25]


@pytest.mark.parametrize(
    ("key", "num_tokens", "message"),
    [(b"3" * 16, 1, "missing"), (ONE, 3, "of another length"), (ONE, 1, "of another length")],
)
def test_a_hole_is_refused(filled: Path, key: bytes, num_tokens: int, message: str):
    with pytest.raises(ReferenceCacheError, match=message) as caught:
        loaded(filled).get(key, num_tokens)

    assert str(filled) in str(caught.value)
    assert "remove the folder" in str(caught.value)


def test_many_groups_are_read_at_once_in_the_order_asked_for(filled: Path):
    cache = loaded(filled)
    # A key may end in zeros, which are part of it.
    cache.add({b"3" * 15 + b"\0": values(-4.0, -5.0, -6.0)})
    keys = [TWO, b"3" * 15 + b"\0", ONE, TWO]

    found = cache.gather(keys_of(keys), np.array([1, 3, 2, 1]))

    assert found.tolist() == [-0.125, -4.0, -5.0, -6.0, -1.5, -2.25, -0.125]
    assert len(cache.gather(keys_of([]), np.zeros(0, np.int64))) == 0
    assert cache.holds(keys_of([b"3" * 16, *keys])).tolist() == [False, True, True, True, True]


@pytest.mark.parametrize(
    ("keys", "counts", "message"),
    [([ONE, b"3" * 16], [2, 1], "missing"), ([TWO, ONE], [1, 3], "2 values for 3 tokens")],
)
def test_one_hole_among_many_groups_is_refused(
    filled: Path, keys: list[bytes], counts: list[int], message: str
):
    with pytest.raises(ReferenceCacheError, match=message):
        loaded(filled).gather(keys_of(keys), np.array(counts))


def test_of_values_that_were_added_twice_the_newest_hold(tmp_path: Path):
    cache = ReferenceCache(tmp_path, IDENTITY)
    cache.add({ONE: values(-1.0), TWO: values(-2.0)})
    cache.add({ONE: values(-1.5)})

    assert (cache.get(ONE, 1).item(), cache.get(TWO, 1).item()) == (-1.5, -2.0)
    assert len(cache) == 2


def test_the_same_groups_make_the_same_file_in_any_order(tmp_path: Path):
    ReferenceCache(tmp_path, IDENTITY).add({ONE: values(-1.0), TWO: values(-2.0)})
    ReferenceCache(tmp_path, IDENTITY).add({TWO: values(-2.0), ONE: values(-1.0)})

    assert len(files_of(tmp_path)) == 1


def test_a_file_whose_groups_are_in_another_order_is_read(filled: Path):
    """Whoever wrote it: the checksum is that of what it holds."""
    file = files_of(filled)[0]
    keys = np.frombuffer(TWO + ONE, np.uint8).reshape(2, 16)
    tensors = {"keys": keys, "ends": np.array([1, 3]), "values": values(-7.0, -8.0, -9.0)}
    content = b"".join(array.tobytes() for array in tensors.values())
    checksum = hashlib.blake2b(content, digest_size=16).hexdigest()
    save_file(tensors, file.with_name("values-other.safetensors"), {"checksum": checksum})

    cache = loaded(filled)

    assert (cache.get(TWO, 1).tolist(), cache.get(ONE, 2).tolist()) == ([-7.0], [-8.0, -9.0])


def test_a_group_takes_little_memory_however_many_there_are(tmp_path: Path):
    """Numbers in flat arrays: 32 bytes of index a group, and the values stay on the disk."""
    num_groups, num_values = 20_000, 100
    draw = np.random.default_rng(0)
    keys = [draw.bytes(16) for _ in range(num_groups)]
    block = draw.normal(size=num_values).astype(np.float32)
    ReferenceCache(tmp_path, IDENTITY).add(dict.fromkeys(keys, block))
    cache = ReferenceCache(tmp_path, IDENTITY)
    tracemalloc.start()

    cache.load()
    assert keys[0] in cache
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert taken < 50 * num_groups
    # Control: an object for each group and its key would take more.
    assert 50 * num_groups < sum(key.__sizeof__() + 64 for key in keys)
    assert cache.gather(keys_of(keys[-2:]), np.array([num_values] * 2)).tolist() == [*block, *block]


def test_a_folder_that_is_removed_takes_nothing_from_a_run_that_has_read_it(filled: Path):
    cache = loaded(filled)
    shutil.rmtree(cache.folder)

    assert cache.get(ONE, 2).tolist() == [-1.5, -2.25]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_no_numbers_are_refused_and_not_kept(tmp_path: Path, bad: float):
    cache = ReferenceCache(tmp_path, IDENTITY)

    with pytest.raises(ReferenceCacheError, match="not finite") as caught:
        cache.add({ONE: values(-1.0), TWO: values(-1.0, bad)})

    assert str(bad) in str(caught.value)
    assert len(cache) == len(loaded(tmp_path)) == 0


def test_caches_of_different_references_do_not_mix(filled: Path):
    for identity in (
        {**IDENTITY, "weights": "abd"},
        {**IDENTITY, "precision": "bf16"},
        {**IDENTITY, "temperature": "0.7"},
        {},
    ):
        other = loaded(filled, identity)
        assert len(other) == 0
        assert other.folder != loaded(filled).folder
    assert loaded(filled, dict(reversed(IDENTITY.items()))).get(TWO, 1).tolist() == [-0.125]


def test_the_folder_says_what_its_values_belong_to(filled: Path):
    (about,) = filled.rglob("about.json")

    assert '"weights": "abc"' in about.read_text()


def cut_short(content: bytes) -> bytes:
    return content[: len(content) - 3]


def flip_a_value(content: bytes) -> bytes:
    """One bit of the last value; the file stays well-formed."""
    return content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]


def flip_a_key(content: bytes) -> bytes:
    place = content.index(b"11111111")
    return content[:place] + b"3" + content[place + 1 :]


@pytest.mark.parametrize(
    "damage", [cut_short, flip_a_value, flip_a_key, lambda _: b"", lambda _: b"not a file of ours"]
)
def test_a_damaged_file_is_left_out_with_a_warning(
    tmp_path: Path, damage: Callable[[bytes], bytes]
):
    cache = ReferenceCache(tmp_path, IDENTITY)
    cache.add({ONE: values(-1.5, -2.25)})
    (file,) = files_of(tmp_path)
    cache.add({TWO: values(-0.125)})
    file.write_bytes(damage(file.read_bytes()))

    with pytest.warns(VerituneWarning, match="scored again") as caught:
        found = loaded(tmp_path)

    assert file.name in str(caught[0].message)
    assert ONE not in found
    assert found.get(TWO, 1).tolist() == [-0.125]


def test_a_damaged_file_that_is_written_again_is_read(tmp_path: Path):
    cache = ReferenceCache(tmp_path, IDENTITY)
    cache.add({ONE: values(-1.5)})
    (file,) = files_of(tmp_path)
    file.write_bytes(cut_short(file.read_bytes()))
    reader = ReferenceCache(tmp_path, IDENTITY)
    with pytest.warns(VerituneWarning):
        reader.load()

    ReferenceCache(tmp_path, IDENTITY).add({ONE: values(-1.5)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reader.load()

    assert reader.get(ONE, 1).tolist() == [-1.5]


def test_a_load_reads_what_others_have_added_since(filled: Path):
    reader, writer = loaded(filled), loaded(filled)
    writer.add({b"3" * 16: values(-7.0)})
    assert b"3" * 16 not in reader

    reader.load()

    assert reader.get(b"3" * 16, 1).tolist() == [-7.0]


def test_a_half_written_file_has_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A run that is killed while it writes leaves nothing that a reader takes for values."""
    cache = ReferenceCache(tmp_path, IDENTITY)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("veritune.models.cache.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        cache.add({ONE: values(-1.0)})

    assert files_of(tmp_path) == []
    assert len(loaded(tmp_path)) == 0


def test_nothing_to_add_makes_no_file(tmp_path: Path):
    ReferenceCache(tmp_path, IDENTITY).add({})

    assert files_of(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_a_wrong_setting(tmp_path: Path):
    (tmp_path / "file").write_text("text")
    cache = ReferenceCache(tmp_path / "file", IDENTITY)

    with pytest.raises(SettingsError, match="cannot be written") as caught:
        cache.check_writable()

    assert caught.value.where == "cache"
    assert caught.value.got == str(cache.folder)
    assert "VERITUNE_CACHE" in str(caught.value.fix)


def test_a_folder_that_takes_no_file_is_a_wrong_setting(
    filled: Path, monkeypatch: pytest.MonkeyPatch
):
    cache = loaded(filled)
    cache.check_writable()

    def refused(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("veritune.models.cache.tempfile.TemporaryFile", refused)
    with pytest.raises(SettingsError, match="Permission denied"):
        cache.check_writable()
    # What is there may still be read.
    assert cache.get(TWO, 1).tolist() == [-0.125]


def test_trying_a_folder_leaves_no_file(tmp_path: Path):
    cache = ReferenceCache(tmp_path, IDENTITY)
    cache.check_writable()

    assert list(cache.folder.iterdir()) == []


def test_texts_that_differ_in_the_end_token_only_are_two_entries(
    tmp_path: Path, groups: list[TokenizedRecord]
):
    """A completion with its end token and the same one cut before it."""
    group = groups[0]
    first, *rest = group.completions
    cut = TokenizedRecord(
        group.prompt,
        (TokenizedCompletion(first.ids[:-1], first.bears_loss[:-1]), *rest),
        group.origin,
    )
    cache = ReferenceCache(tmp_path, IDENTITY)

    cache.add({group.key(): values(-1.0)})

    assert group.key() in cache
    assert cut.key() not in cache


def test_the_cache_lies_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("VERITUNE_CACHE", str(tmp_path / "named"))
    assert default_cache_folder() == tmp_path / "named"
    monkeypatch.delenv("VERITUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_folder() == tmp_path / "xdg" / "veritune"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert default_cache_folder() == tmp_path / ".cache" / "veritune"
