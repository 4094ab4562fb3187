"""How fast records become tokens, and in how much memory, from a thousand to a million of them.

    python benchmarks/prepare_records.py                        all sizes; keeps and draws
    python benchmarks/prepare_records.py --records 1000 10000   some sizes, printed and not kept

Pairs of dialogues of 100 to 300 tokens, made up of invented words that are as frequent as words
are, are written to a file and prepared as `veritune train` prepares them: read, checked, converted,
rendered by the chat template, tokenized and written to the cache. It is done in a process of its
own, and once more for what a second run takes. Memory is that of this process and the processes
that it starts, looked at every so often while they work.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any

import psutil
from kept_results import PERFORMANCE_PAGE, RESULTS, keep
from step.document import write_page

from veritune.commands.display import Display
from veritune.commands.run_data import prepare_run_data
from veritune.commands.train_settings import TrainConfig
from veritune.models.load import (
    end_tokens,
    find_model,
    load_settings,
    load_tokenizer,
    longest_input,
    quiet_libraries,
)
from veritune.models.tiny import byte_level_tokenizer, tiny_model, write_tiny_model
from veritune.tokens.encode import TextEncoder
from veritune.tokens.workers import num_cores

SIZES = (1_000, 10_000, 100_000, 1_000_000)
NUM_WORDS = 8_000
VOCAB_SIZE = 16_384
TEXTS_OF_TOKENIZER = 3_000
SECONDS_BETWEEN_LOOKS = 0.05
MIB = 2**20


def texts(seed: int) -> Iterator[str]:
    """Texts of 10 to 50 invented words without end; the n-th most frequent word is 1 / n as
    frequent as the first."""
    random = Random(seed)
    syllables = [one + other for one in "bcdfghklmnprstvw" for other in "aeiou"]
    words = ["".join(random.choices(syllables, k=random.randint(1, 4))) for _ in range(NUM_WORDS)]
    weights = list(accumulate(1 / (1 + rank) for rank in range(NUM_WORDS)))
    while True:
        length = random.randint(10, 50)
        yield " ".join(random.choices(words, cum_weights=weights, k=length)) + "."


def write_records(file: Path, number: int) -> None:
    """Pairs of dialogues, one a line."""
    source = texts(seed=1)
    with file.open("w", encoding="utf-8") as opened:
        for _ in range(number):
            row = {"prompt": [{"role": "user", "content": next(source)}]}
            for side in ("chosen", "rejected"):
                row[side] = [{"role": "assistant", "content": next(source)}]
            opened.write(json.dumps(row) + "\n")


def write_model(folder: Path) -> None:
    """A model folder whose tokenizer has learned the words; of the model its settings count."""
    source = texts(seed=2)
    trained_on = (next(source) for _ in range(TEXTS_OF_TOKENIZER))
    tokenizer = byte_level_tokenizer(trained_on, vocab_size=VOCAB_SIZE)
    model = tiny_model(
        "qwen2", vocab_size=len(tokenizer), hidden_size=16, num_layers=1, num_heads=2
    )
    write_tiny_model(folder, model, tokenizer)


def prepare(folder: Path) -> dict[str, Any]:
    """What a run does with its data before it loads its model."""
    quiet_libraries()
    config = TrainConfig.model_validate(
        {
            "model": str(folder / "model"),
            "data": str(folder / "pairs.jsonl"),
            "objective": "dpo",
            "output": str(folder / "run"),
            "cache": str(folder / "cache"),
        }
    )
    source = find_model(config.model)
    settings = load_settings(source)
    encoder = TextEncoder(load_tokenizer(source), config.tokens, end_tokens(settings))
    began = time.perf_counter()
    data = prepare_run_data(config, "paired", encoder, longest_input(settings), Display(quiet=True))
    return {
        "seconds": time.perf_counter() - began,
        "records": len(data.training),
        "tokens": len(data.training.ids),
    }


def watched(folder: Path) -> tuple[dict[str, Any], float, float]:
    """What `prepare` says in a process of its own, and the most MiB that this process and that it
    and all processes below it held."""
    words = [sys.executable, __file__, "--prepare", str(folder)]
    own = together = 0
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        family = psutil.Process(process.pid)
        while process.poll() is None:
            sizes = [resident(each) for each in [family, *family.children(recursive=True)]]
            own, together = max(own, sizes[0]), max(together, sum(sizes))
            time.sleep(SECONDS_BETWEEN_LOOKS)
        assert process.stdout is not None, "the pipe was asked for"
        said = process.stdout.read()
    if process.returncode:
        raise SystemExit(process.returncode)
    return json.loads(said), own / MIB, together / MIB


def resident(process: psutil.Process) -> int:
    """Bytes that a process holds in memory; 0 once it has ended."""
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def measure(number: int) -> dict[str, Any]:
    """One size: prepared, and prepared again."""
    with tempfile.TemporaryDirectory(prefix="prepare-records-") as name:
        folder = Path(name)
        write_records(folder / "pairs.jsonl", number)
        write_model(folder / "model")
        made, own, together = watched(folder)
        again, _, _ = watched(folder)
        return {
            "records": made["records"],
            "tokens": made["tokens"],
            "file_mib": round((folder / "pairs.jsonl").stat().st_size / MIB, 1),
            "seconds": round(made["seconds"], 2),
            "records_per_second": round(made["records"] / made["seconds"]),
            "seconds_again": round(again["seconds"], 2),
            "peak_mib_of_the_process": round(own),
            "peak_mib_of_all_processes": round(together),
        }


def main() -> None:
    """Measure and print; keep and draw the results of all sizes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--records", type=int, nargs="+", help="sizes other than the usual ones")
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.prepare is not None:
        print(json.dumps(prepare(words.prepare)))
        return
    rows = []
    for number in words.records or SIZES:
        rows.append(measure(number))
        print(json.dumps(rows[-1]), flush=True)
    if words.records is None:
        keep(RESULTS / "prepare_records.json", {"cores": num_cores(), "rows": rows})
        write_page(RESULTS, PERFORMANCE_PAGE)


if __name__ == "__main__":
    main()
