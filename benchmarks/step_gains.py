"""What each part of a preference step gives: Veritune beside itself with one part missing.

    python benchmarks/step_gains.py                     all cases; kept, with the page
    python benchmarks/step_gains.py --only tldr         printed, and not kept

The contestants take turns, as in `preference_step.py`, whose cases and workers these are.
"""

import statistics
from dataclasses import replace
from typing import Any

import torch
from kept_results import PERFORMANCE_PAGE, RESULTS, keep
from preference_step import Contestant, measure
from step.cases import case_words, cpu_cases
from step.document import write_page
from step.without import OF_ADAPTERS, PLAIN_WAYS

WORKER = "step.veritune_worker"
GAINS = {
    "each prompt once": Contestant(WORKER, {"sharing": "packed"}),
    "each prompt once, no padding": Contestant(WORKER, {"sharing": "padded"}),
    "activations kept": Contestant(WORKER, {"gradient_checkpointing": True}),
    **{part: Contestant(WORKER, {}, part) for part in PLAIN_WAYS},
}
"""What is missing, and how it is taken away."""

NAMES = ("real", "ultrafeedback", "tldr", "k8", "lora")


def gains(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """How many times the time and the memory a step takes without each part."""
    contestants = result["contestants"]
    whole = contestants["veritune"]
    found = {}
    for name, one in contestants.items():
        if one is whole:
            continue
        if one["error"] is not None:
            found[name] = {"error": one["error"]}
            continue
        ratios = [a / b for a, b in zip(one["seconds"], whole["seconds"], strict=True)]
        found[name] = {
            "time": statistics.median(ratios),
            "least": min(ratios),
            "most": max(ratios),
            "memory": one["peak_bytes"] / whole["peak_bytes"],
        }
    return found


def main() -> None:
    """Measure the cases; keep what each part gives."""
    parser = case_words(__doc__)
    parser.add_argument("--steps", type=int, help="measured steps of each case")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for case in cpu_cases(arguments.only or NAMES, arguments.pairs):
        print(f"{case.name}: {case.title}", flush=True)
        wanted = case if arguments.steps is None else replace(case, steps=arguments.steps)
        missing = {part: g for part, g in GAINS.items() if case.adapter or part != OF_ADAPTERS}
        contestants = {"veritune": Contestant(WORKER, {}), **missing}
        result = measure(wanted, arguments.pairs, contestants, lambda text: print(text, flush=True))
        rows.append({"case": case.title, "gains": gains(result)})
        for name, gain in rows[-1]["gains"].items():
            told = gain.get("error") or f"{gain['time']:.2f} x time, {gain['memory']:.2f} x memory"
            print(f"  without {name}: {told}", flush=True)
    if arguments.only is None:
        keep(RESULTS / "step_gains.json", {"threads": torch.get_num_threads(), "rows": rows})
        write_page(RESULTS, PERFORMANCE_PAGE)


if __name__ == "__main__":
    main()
