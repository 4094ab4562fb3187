import gc
from pathlib import Path

import pytest
import torch

from veritune.config import load_config
from veritune.errors import OutOfMemoryError, SettingsError
from veritune.training import device_memory
from veritune.training.device_memory import (
    forget_peak,
    free_memory,
    held_memory,
    in_words,
    peak_memory,
    return_freed_memory,
    shortage_in_words,
    size_in_bytes,
)
from veritune.training.loop import TrainingConfig

CPU = torch.device("cpu")
SIZE = 200_000_000


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GB", 8_000_000_000),
        ("1.5 GB", 1_500_000_000),
        ("500MB", 500_000_000),
        ("2GiB", 2**31),
        ("auto", None),
    ],
)
def test_a_size_is_a_number_and_a_unit(text: str, size: int | None) -> None:
    assert size_in_bytes(load_config(TrainingConfig, None, [f"memory={text}"]).memory) == size


@pytest.mark.parametrize("text", ["8", "GB", "8 gigabytes", "-1GB", "8gb"])
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(SettingsError, match=r"memory.*\n(.*\n)*.*8GB"):
        load_config(TrainingConfig, None, [f"memory='\"{text}\"'"])


@pytest.mark.parametrize(
    ("size", "words"),
    [(51_200, "51.2 kB"), (5e6, "5 MB"), (3.2e9, "3.2 GB"), (139e9, "139 GB"), (2e12, "2 TB")],
)
def test_bytes_are_said_in_three_digits(size: float, words: str) -> None:
    assert in_words(int(size)) == words


def test_what_a_process_takes_is_held_and_no_longer_free() -> None:
    return_freed_memory()
    # What other tests have dropped would go in between.
    gc.collect()
    forget_peak(CPU)
    free, held = free_memory(CPU), held_memory(CPU)
    tensor = torch.ones(SIZE, dtype=torch.uint8)
    assert held_memory(CPU) - held == pytest.approx(SIZE, rel=0.1)
    # Others take and give too.
    assert free - free_memory(CPU) > -SIZE
    del tensor
    assert held_memory(CPU) - held < SIZE / 2
    assert peak_memory(CPU) - held == pytest.approx(SIZE, rel=0.1)
    forget_peak(CPU)
    assert peak_memory(CPU) - held < SIZE / 2


def test_processes_of_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = free_memory(CPU)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_memory(CPU) < alone / 3


def test_the_limit_of_a_control_group_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {
        "memory.max": "1000000",
        "memory.current": "400000",
        "memory.stat": "anon 7\ninactive_file 100000\n",
    }
    for name, text in names.items():
        (tmp_path / name).write_text(text)
    left = device_memory._left_in_group(tmp_path, "memory.max", "memory.current", "inactive_file")
    # What was read from files is given up when memory is needed.
    assert left == 1_000_000 - 400_000 + 100_000
    (tmp_path / "memory.max").write_text("max")
    assert (
        device_memory._left_in_group(tmp_path, "memory.max", "memory.current", "inactive_file")
        is None
    )
    monkeypatch.setattr(device_memory, "_left_in_groups", lambda: iter([12345]))
    assert free_memory(CPU) == 12345


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has …"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_a_failed_allocation_says_where_how_much_and_what_to_change(error: Exception) -> None:
    with (
        pytest.raises(OutOfMemoryError) as caught,
        shortage_in_words("step 7", CPU, "take smaller rows"),
    ):
        raise error
    assert caught.value.exit_code == 1
    message = str(caught.value)
    assert message.startswith("step 7: the memory of cpu is too small")
    assert " in use, " in message
    assert "fix: take smaller rows" in message
    assert ("2.50 GiB more were asked for" in message) == ("2.50 GiB" in str(error))


def test_another_error_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="shapes"), shortage_in_words("step 7", CPU, "…"):
        raise RuntimeError("shapes do not fit")


def test_a_tensor_that_no_machine_holds_is_an_error_in_words() -> None:
    with pytest.raises(OutOfMemoryError), shortage_in_words("step 1", CPU, "…"):
        torch.empty(2**58, dtype=torch.uint8)
