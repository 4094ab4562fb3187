"""One preference step through Veritune and TRL's DPOTrainer, in turns; writes docs/performance.md.

make bench PAIRS=pairs.jsonl                 every case, in an environment of its own
preference_step.py --resume                  the cases that an interrupted run has not measured
preference_step.py --list                    names of the cases
preference_step.py --only tldr --steps 3     some of them, printed and not kept
preference_step.py --render                  docs/performance.md from the stored results

Both toolkits get the same model folder, records in the same order, objective (DPO), precision,
learning rate and groups per step, and run through their own training loops in processes of their
own. Only one of them works at a time: each makes a step when it is told to.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from kept_results import PERFORMANCE_PAGE, RESULTS, keep, taken_part
from step.bound import Group, matrix_rate, step_operations, useful_tokens
from step.cases import (
    CASES,
    LEARNING_RATE,
    SEED,
    SHAPES,
    Case,
    Shape,
    case_words,
    record_tokens,
    write_task,
)
from step.document import table, write_page

from veritune.batches.order import RecordOrder
from veritune.models.adapters import AdapterConfig

HERE = Path(__file__).resolve().parent


class Contestant(NamedTuple):
    """Who takes part."""

    module: str
    """The worker."""

    train: dict[str, Any]
    """Its training settings beyond what the case gives."""

    without: str | None = None
    """What of Veritune is replaced by the plain way, from `step.without`."""


CONTESTANTS = {
    "veritune": Contestant("step.veritune_worker", {}),
    "trl": Contestant("step.trl_worker", {}),
    "trl_tuned": Contestant(
        "step.trl_worker", {"precompute_ref_log_probs": True, "gradient_checkpointing": False}
    ),
}
PACKAGES = ("trl", "accelerate")
"""Of peers; others are named beside every result."""


@dataclass
class Worker:
    """A process that makes a step when told to."""

    name: str
    process: "subprocess.Popen[str]"
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    error: str | None = None

    def read(self) -> None:
        """Take in its next report; note how it ended if there is none."""
        assert self.process.stdout is not None, "reports come through a pipe"
        line = self.process.stdout.readline()
        if not line:
            self.error = f"ended with exit code {self.process.wait()}"
            return
        facts = json.loads(line)
        if "seconds" in facts:
            self.seconds.append(facts.pop("seconds"))
        self.facts |= facts

    def send(self, text: str) -> None:
        """Tell it something; a worker that is gone cannot hear it."""
        assert self.process.stdin is not None, "words go through a pipe"
        try:
            self.process.stdin.write(text + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self.error = f"ended with exit code {self.process.wait()}"


def start(name: str, contestant: Contestant, task: dict[str, Any], log: Path) -> Worker:
    """Start a contestant and wait until it stands before its first step."""
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "true"}
    process = subprocess.Popen(
        [sys.executable, "-m", contestant.module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log.open("w"),
        text=True,
        env=environment,
    )
    worker = Worker(name, process)
    own = {"train": contestant.train, "without": contestant.without}
    worker.send(json.dumps({**task, **own, "output": f"{task['folder']}/{name}"}))
    worker.read()
    return worker


def measure(
    case: Case,
    pairs: Path | None,
    contestants: Mapping[str, Contestant],
    show: Callable[[str], None],
) -> dict[str, Any]:
    """One case: every contestant makes each step in turn."""
    if case.peer_recomputes and "trl_tuned" in contestants:
        tuned = contestants["trl_tuned"]
        recomputes = tuned._replace(train={**tuned.train, "gradient_checkpointing": True})
        contestants = {**contestants, "trl_tuned": recomputes}
    shape = SHAPES[case.shape]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory(prefix="preference-step-") as name:
        folder = Path(name)
        task = write_task(case, folder, pairs)
        groups = record_tokens(Path(task["model"]), Path(task["records"]))
        order = RecordOrder(len(groups), SEED).slice(0, len(groups))
        rows = case.groups * case.completions // 2
        task |= {
            "order": order,
            "steps": case.steps,
            "rows_per_device": rows // case.peer_accumulation,
            "accumulation": case.peer_accumulation,
            # Of the weights, as Veritune keeps them; on a GPU both compute in bfloat16.
            "dtype": "float32",
        }
        workers = []
        for who, contestant in contestants.items():
            worker = start(who, contestant, task, folder / f"{who}.log")
            show(f"  {who:<10} ready after {worker.facts.get('ready', float('nan')):.1f} s")
            workers.append(worker)
        rates = _steps(workers, case, shape, device, show)
        for worker in workers:
            if worker.error is None:
                worker.send("end")
                worker.read()
            worker.process.wait()
            seen, given = _peer_tokens(worker.facts), _pair_tokens(groups)
            if worker.error is None and seen not in (None, given):
                worker.error = f"trains on {seen} tokens and not on {given}"
            if worker.error is not None:
                show(f"  {worker.name}: {worker.error}")
                show((folder / f"{worker.name}.log").read_text()[-2000:])
    in_order = [groups[index] for index in order]
    return {
        "title": case.title,
        "shape": shape.name,
        "completions": case.completions,
        "groups": case.groups,
        "adapter": case.adapter,
        "lengths": None if case.lengths is None else asdict(case.lengths),
        "long_prompts": case.long_prompts,
        "dtype": task["dtype"],
        "peer_accumulation": case.peer_accumulation,
        "steps": _counts(case, in_order),
        "matrix_rates": rates,
        "contestants": {
            worker.name: {
                "error": worker.error,
                "settings": contestants[worker.name].train,
                "setup_seconds": worker.facts.get("ready"),
                "resident_bytes": worker.facts.get("resident_bytes"),
                "peak_bytes": worker.facts.get("peak_bytes"),
                "seconds": worker.seconds[1:],
                "losses": worker.facts.get("losses"),
            }
            for worker in workers
        },
    }


def _steps(
    workers: list[Worker],
    case: Case,
    shape: Shape,
    device: torch.device,
    show: Callable[[str], None],
) -> list[float]:
    """All steps in turn, another contestant first each time; the rate of matrices between them."""
    rates = []
    for step in range(case.steps + 1):
        rates.append(matrix_rate(shape, device=device))
        for place in range(len(workers)):
            worker = workers[(place + step) % len(workers)]
            if worker.error is None:
                worker.send("go")
                worker.read()
        times = "  ".join(f"{w.name} {w.seconds[-1]:.2f}" for w in workers if w.seconds)
        show(f"  step {step}: {times} s")
    return rates


def _counts(case: Case, in_order: list[Group]) -> list[dict[str, float]]:
    """What each measured step holds, and what it must cost."""
    counts = []
    rank = AdapterConfig().rank if case.adapter else None
    for step in range(1, case.steps + 1):
        groups = in_order[step * case.groups : (step + 1) * case.groups]
        operations = step_operations(SHAPES[case.shape], groups, rank=rank)
        counts.append({"tokens": useful_tokens(groups), "operations": operations})
    return counts


def _pair_tokens(groups: list[Group]) -> int:
    """Tokens of all groups as pairs: every prompt once a pair."""
    return sum(prompt * (len(sizes) // 2) + sum(sizes) for prompt, sizes in groups)


def _peer_tokens(facts: dict[str, Any]) -> int | None:
    """The same as a peer counts them."""
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return sum(sum(facts[name]) for name in names) if names[0] in facts else None


def _resumed(kept: dict[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The cases of an interrupted run, if it was made with the same things as this one."""
    now = {"versions": taken_part(), **facts}
    differ = [name for name, what in now.items() if name != "cases" and kept.get(name) != what]
    if differ:
        raise SystemExit(
            f"the interrupted run differs in {', '.join(differ)}; leave out --resume to begin anew"
        )
    found: dict[str, Any] = kept["cases"]
    return found


def main() -> None:
    """Measure the cases, keep the results and write the page."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = case_words(__doc__)
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    parser.add_argument("--render", action="store_true", help="write the page and stop")
    parser.add_argument("--resume", action="store_true", help="keep what an interrupted run has")
    parser.add_argument("--steps", type=int, help="measured steps of each case")
    parser.add_argument(
        "--contestants", nargs="+", default=list(CONTESTANTS), choices=list(CONTESTANTS)
    )
    arguments = parser.parse_args()
    if arguments.list:
        for case in CASES[device]:
            print(f"{case.name:<28}{case.title}")
        return
    file = RESULTS / f"preference_step_{device}.json"
    if arguments.render:
        write_page(RESULTS, PERFORMANCE_PAGE)
        return
    chosen = [c for c in CASES[device] if not arguments.only or c.name in arguments.only]
    facts: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        **{name: version(name) for name in PACKAGES},
        "learning_rate": LEARNING_RATE,
        "seed": SEED,
        "adapter": AdapterConfig().model_dump(mode="json"),
        "cases": {},
    }
    # An hour of measuring outlives what interrupts it, and replaces nothing before its end.
    partial = file.with_suffix(".partial.json")
    if arguments.resume and partial.is_file():
        facts["cases"] = _resumed(json.loads(partial.read_text()), facts)
    for case in chosen:
        if case.name in facts["cases"]:
            print(f"{case.name}: measured before")
            continue
        if case.lengths is None and arguments.pairs is None:
            print(f"{case.name}: left out; it needs real pairs, which --pairs names")
            continue
        print(f"{case.name}: {case.title}", flush=True)
        wanted = case if arguments.steps is None else replace(case, steps=arguments.steps)
        result = measure(
            wanted,
            arguments.pairs,
            {name: CONTESTANTS[name] for name in arguments.contestants},
            lambda text: print(text, flush=True),
        )
        facts["cases"][case.name] = result
        print(table({case.name: result}), flush=True)
        if not arguments.only:
            keep(partial, facts)
    if not arguments.only:
        partial.replace(file)
        write_page(RESULTS, PERFORMANCE_PAGE)


if __name__ == "__main__":
    main()
