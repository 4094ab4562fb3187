"""Where the time of a preference step goes, case by case: a profile of `veritune train`.

    python benchmarks/step_profile.py                     the cases with goals; kept, with the page
    python benchmarks/step_profile.py --only tldr         printed, and not kept

The model and the records are those of `preference_step.py`. The profiler makes every operation
slower, small ones most, so the shares say more than the seconds.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from kept_results import PERFORMANCE_PAGE, RESULTS, keep
from step.cases import Case, case_words, cpu_cases, write_task
from step.document import GOALS, write_page
from step.veritune_worker import config_of
from torch.profiler import profile

from veritune.commands.display import Display
from veritune.commands.train import train

PARTS = {
    "products of the layers": (
        *("aten::linear", "MmBackward0", "AddmmBackward0"),
        *("_AdaptedLinear", "_AdaptedLinearBackward"),
    ),
    "attention": ("_BlockAttention", "_BlockAttentionBackward"),
    "output head": ("_LinearLogProbs", "_LinearLogProbsBackward"),
    "optimizer": ("aten::_fused_adamw_", "aten::linalg_vector_norm"),
}
"""What operations and their parts, of which none lies in another, are counted as."""

NAMES = (*GOALS, "k4", "lora", "long")

REST = "normalization, activation, rotation, embedding and Python"


def shares(case: Case, pairs: Path | None) -> dict[str, float]:
    """Share of each part in the time of all steps but the first two."""
    watch = profile()

    def between(_: object, step: int) -> Mapping[str, float] | None:
        if step == 2:
            watch.start()
        elif step == case.steps + 1:
            watch.stop()
        return None

    with tempfile.TemporaryDirectory(prefix="step-profile-") as name:
        task = write_task(case, Path(name), pairs)
        config = config_of({**task, "output": f"{name}/run", "train": {}})
        train(config, Display(quiet=True), measure=between)
    events = {event.key: event for event in watch.key_averages()}
    whole = sum(event.self_cpu_time_total for event in events.values())
    found = {
        part: sum(events[name].cpu_time_total for name in names if name in events) / whole
        for part, names in PARTS.items()
    }
    return {**found, REST: 1 - sum(found.values())}


def main() -> None:
    """Profile the cases; keep the shares."""
    arguments = case_words(__doc__).parse_args()
    rows: list[dict[str, Any]] = []
    for case in cpu_cases(arguments.only or NAMES, arguments.pairs):
        rows.append({"case": case.title, "shares": shares(case, arguments.pairs)})
        told = ", ".join(f"{part} {share:.0%}" for part, share in rows[-1]["shares"].items())
        print(f"{case.title}: {told}", flush=True)
    if arguments.only is None:
        keep(RESULTS / "step_profile.json", {"threads": torch.get_num_threads(), "rows": rows})
        write_page(RESULTS, PERFORMANCE_PAGE)


if __name__ == "__main__":
    main()
