"""What produced a file."""

import sys
from pathlib import Path

import torch

from veritune.provenance import hash_file, hash_files, versions


def write(folder: Path, **contents: str) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, content in contents.items():
        file = folder / name
        file.write_text(content)
        files.append(file)
    return files


def test_equal_files_have_equal_hashes_wherever_they_lie(tmp_path: Path):
    here = write(tmp_path / "here", a="1", b="2")
    there = write(tmp_path / "there", b="2", a="1")

    assert hash_files(here) == hash_files(there) == hash_files(reversed(here))


def test_a_change_of_content_or_name_changes_the_hash(tmp_path: Path):
    hashes = [
        hash_files(write(tmp_path / "0", a="1", b="2")),
        hash_files(write(tmp_path / "1", a="1", b="3")),
        hash_files(write(tmp_path / "2", a="1", c="2")),
        hash_files(write(tmp_path / "3", a="2", b="1")),
        hash_files(write(tmp_path / "4", a="1")),
        hash_files(write(tmp_path / "5", a="12", b="")),
    ]

    assert len(set(hashes)) == len(hashes)


def test_a_file_of_several_blocks_is_read_to_its_end(tmp_path: Path):
    file = tmp_path / "weights"
    file.write_bytes(b"x" * (2**22 + 5))
    before = hash_file(file)

    with file.open("r+b") as opened:
        opened.seek(-1, 2)
        opened.write(b"y")

    assert hash_file(file) != before


def test_versions_name_what_results_depend_on():
    found = versions()

    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"transformers", "tokenizers", "peft", "numpy", "datasets", "platform"} <= set(found)
