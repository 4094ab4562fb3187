"""What one epoch of `veritune train` takes, in time and memory, as records become many.

    python benchmarks/growth.py                    1,000, 10,000 and 100,000 records; kept
    python benchmarks/growth.py --records 500      printed, and not kept

Short pairs and a small model, so that what grows with the number of records shows beside the steps:
reading, tokenizing, the reference's log-probabilities, the order, the log. Each size runs in a
process of its own, with an empty cache.

What steps waited for their batches is added up beside their own time; the first batch of all, which
no step hides, is in it. The peak is that of the process that trains: the processes that tokenize
for it are not in it (`prepare_records.py` counts those).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kept_results import PERFORMANCE_PAGE, RESULTS, keep
from step.cases import Case, Lengths, record_tokens, write_model, write_records
from step.document import write_page

SIZES = (1_000, 10_000, 100_000)
LENGTHS = Lengths(12, 0.3, 8, 0.4, 64)
BATCH = 64
SHAPE = "tiny"


def train(task: dict[str, str]) -> None:
    """One run in this process; its figures go to the last line of standard output."""
    import resource

    from veritune.commands.display import Display
    from veritune.commands.train import train as train_run
    from veritune.commands.train_settings import TrainConfig

    began = time.perf_counter()
    settings: dict[str, Any] = {
        "model": task["model"],
        "data": {"files": task["records"], "identical_pairs": "keep"},
        "objective": "dpo",
        "output": task["output"],
        "cache": task["cache"],
        "train": {"batch_size": BATCH, "checkpoint_every": 10**9},
    }
    train_run(TrainConfig.model_validate(settings), Display(quiet=True))
    seconds = time.perf_counter() - began
    lines = (Path(task["output"]) / "metrics.jsonl").read_text().splitlines()
    steps = [line for line in map(json.loads, lines) if "seconds" in line]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    facts = {
        "seconds": seconds,
        "step_seconds": sum(line["seconds"] for line in steps),
        "waited_seconds": sum(line["waited"] for line in steps),
        "peak_bytes": peak,
    }
    print(json.dumps(facts), flush=True)


def measure(records: int) -> dict[str, Any]:
    """One size, in a fresh process and a fresh folder."""
    case = Case("growth", "growth", LENGTHS, shape=SHAPE, groups=1, steps=records - 1)
    with tempfile.TemporaryDirectory(prefix="growth-") as name:
        folder = Path(name)
        file = write_records(case, folder, None)
        model = write_model(case, folder, None)
        task = {"model": str(model), "records": str(file)}
        task |= {"output": f"{name}/run", "cache": f"{name}/cache"}
        done = subprocess.run(
            [sys.executable, __file__, "--task", json.dumps(task)],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
    return {"records": records, **json.loads(done.stdout.splitlines()[-1])}


def main() -> None:
    """Measure every size; keep and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, nargs="+", help="sizes to measure; keeps nothing")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        train(json.loads(arguments.task))
        return
    rows = []
    for records in arguments.records or SIZES:
        rows.append(measure(records))
        row = rows[-1]
        print(
            f"{records:>9,} records: {row['seconds']:7.1f} s, of which steps "
            f"{row['step_seconds']:7.1f} s ({records / row['step_seconds']:,.0f} records/s), "
            f"waited for batches {row['waited_seconds']:.3f} s, peak "
            f"{row['peak_bytes'] / 1e6:,.0f} MB",
            flush=True,
        )
    if arguments.records is None:
        keep(RESULTS / "growth.json", {**_about(), "rows": rows})
        write_page(RESULTS, PERFORMANCE_PAGE)


def _about() -> dict[str, Any]:
    """The records' mean length, and the model's size."""
    from step.cases import SHAPES

    case = Case("growth", "growth", LENGTHS, shape=SHAPE, groups=1, steps=999)
    with tempfile.TemporaryDirectory(prefix="growth-") as name:
        file = write_records(case, Path(name), None)
        groups = record_tokens(write_model(case, Path(name), None), file)
    tokens = sum(prompt + sum(completions) for prompt, completions in groups) / len(groups)
    return {"tokens": tokens, "parameters": SHAPES[SHAPE].parameters, "batch_size": BATCH}


if __name__ == "__main__":
    main()
