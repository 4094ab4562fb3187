"""What produced a file: settings, versions, content hashes."""

import hashlib
import importlib.metadata
import platform
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_PACKAGES = ("veritune", "torch", "transformers", "tokenizers", "datasets", "peft", "numpy")
_BLOCK = 2**22


def versions() -> dict[str, str]:
    """Versions of Python, the platform and the packages that results depend on."""
    found = {"python": sys.version.split()[0], "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def hash_files(files: Iterable[Path]) -> str:
    """A hash of the names and contents of files, independent of their folder and order."""
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(files, key=lambda f: f.name):
        digest.update(file.name.encode() + b"\0")
        digest.update(bytes.fromhex(hash_file(file)))
    return digest.hexdigest()


def hash_file(file: Path) -> str:
    """A hash of the content of a file: of the hashes of its blocks, made side by side."""
    starts = range(0, file.stat().st_size, _BLOCK)

    def hash_block(start: int) -> bytes:
        with file.open("rb") as stream:
            stream.seek(start)
            return hashlib.blake2b(stream.read(_BLOCK)).digest()

    digest = hashlib.blake2b(digest_size=16)
    # Hashing lets other threads run.
    with ThreadPoolExecutor() as threads:
        for block in threads.map(hash_block, starts):
            digest.update(block)
    return digest.hexdigest()
