"""The output head's modes against its bare matrix products, a plain log-softmax and torch's own.

    python benchmarks/output_head.py                            the usual sizes of the device
    python benchmarks/output_head.py --sizes 1000x256x16384     targets x hidden x vocabulary
    python benchmarks/output_head.py --threads 2 --dtype float32 --print

Forward and backward pass with a gradient for every log-probability, on CUDA if there is a device.
Contestants work in turn, again and again; times are medians of the turns, and the bound is the sum
of the medians of the products that a contestant cannot do without. Memory is the most that one pass
adds to what its inputs take: on CUDA as the allocator counts it, on Linux the resident memory of a
process of its own. Results go to `results/output_head_<device>.json`.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from kept_results import RESULTS, keep
from torch import Tensor
from torch.nn import functional

from veritune.models.head import linear_logprobs

SIZES = {
    "cpu": ("1000x256x16384", "3000x256x16384", "1000x512x32000", "500x256x151936"),
    "cuda": ("8192x896x151936", "8192x1536x151936", "8192x4096x151936", "8192x4096x128256"),
}
WARM_UP = "200x64x2048"
EVERYTHING, NOTHING = 2**62, 0
"""Budgets of bytes."""

STATUS = Path("/proc/self/status")
PEAK_RESET = Path("/proc/self/clear_refs")


@dataclass
class Inputs:
    """What every contestant gets."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    upstream: Tensor

    @classmethod
    def made(cls, size: str, device: str, dtype: torch.dtype) -> "Inputs":
        """Random states and weights whose logits spread by about four nats."""
        rows, width, vocabulary = (int(part) for part in size.split("x"))
        torch.manual_seed(0)
        return cls(
            torch.randn(rows, width, device=device).to(dtype),
            (torch.randn(vocabulary, width, device=device) * 4 / width**0.5).to(dtype),
            torch.randint(0, vocabulary, (rows,), device=device),
            torch.ones(rows, device=device),
        )

    def leaves(self, trains: str) -> tuple[Tensor, Tensor]:
        """Hidden states and weight, with gradients for those that are named."""
        return (
            self.hidden.detach().requires_grad_("hidden" in trains),
            self.weight.detach().requires_grad_("weight" in trains),
        )


def veritune(budget: int, trains: str) -> Callable[[Inputs], None]:
    """The package's head with a budget that chooses its mode."""

    def run(given: Inputs) -> None:
        hidden, weight = given.leaves(trains)
        found = linear_logprobs(hidden, weight, given.targets, budget_bytes=budget)
        if trains:
            found.backward(given.upstream)

    return run


def naive(given: Inputs) -> None:
    """Logits, widened, and their log-softmax."""
    hidden, weight = given.leaves("hidden weight")
    logprobs = (hidden @ weight.T).float().log_softmax(-1)
    logprobs.gather(1, given.targets[:, None])[:, 0].backward(given.upstream)


def torch_chunked(given: Inputs) -> None:
    """The function of torch 2.13 and later, which rounds its results to the inputs' precision."""
    hidden, weight = given.leaves("hidden weight")
    options = torch.nn.LinearCrossEntropyOptions()
    loss = functional.linear_cross_entropy(
        hidden, weight, given.targets, reduction="none", options=options
    )
    loss.backward(given.upstream.to(loss.dtype))


def contestants() -> dict[str, tuple[Callable[[Inputs], None], int]]:
    """Name to function and the number of products in its bound."""
    found = {
        "kept": (veritune(EVERYTHING, "hidden weight"), 3),
        "recomputed": (veritune(NOTHING, "hidden weight"), 3),
        "frozen": (veritune(NOTHING, "hidden"), 2),
        "values": (veritune(NOTHING, ""), 1),
        "naive": (naive, 3),
    }
    if hasattr(functional, "linear_cross_entropy"):
        found["torch_chunked"] = (torch_chunked, 3)
    return found


def products(given: Inputs) -> list[Callable[[Inputs], object]]:
    """The three bare products, into memory that is there: logits, and both gradients."""
    hidden, weight = given.hidden, given.weight
    logits = hidden.new_empty(len(hidden), len(weight))
    d_hidden, d_weight = torch.empty_like(hidden), torch.empty_like(weight)
    return [
        lambda given: torch.mm(given.hidden, given.weight.T, out=logits),
        lambda given: torch.mm(logits, given.weight, out=d_hidden),
        lambda given: torch.mm(logits.T, given.hidden, out=d_weight),
    ]


def seconds(run: Callable[[Inputs], object], given: Inputs) -> float:
    """One turn."""
    if given.hidden.is_cuda:
        torch.cuda.synchronize()
    began = time.perf_counter()
    run(given)
    if given.hidden.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def resident(field: str) -> int:
    """A number of bytes that the kernel keeps about this process."""
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def peak_bytes(name: str, given: Inputs) -> int:
    """The most that a pass of a contestant adds to what there was."""
    run, _ = contestants()[name]
    # What libraries take when they first work is not the contestant's.
    run(Inputs.made(WARM_UP, given.hidden.device.type, given.hidden.dtype))
    if given.hidden.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(given)
        return torch.cuda.max_memory_allocated() - before
    PEAK_RESET.write_text("5", encoding="ascii")
    before = resident("VmRSS")
    run(given)
    return resident("VmHWM") - before


def peak_in_own_process(name: str, size: str, arguments: argparse.Namespace) -> int | None:
    """The same on a CPU, where memory that was used once may stay with a process."""
    if not PEAK_RESET.exists():
        return None
    command = [sys.executable, __file__, "--sizes", size, "--peak", name]
    command += ["--dtype", arguments.dtype, "--threads", str(arguments.threads)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(size: str, device: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for the bare products and one for each contestant."""
    given = Inputs.made(size, device, getattr(torch, arguments.dtype))
    racing = contestants()
    runs: dict[str, Callable[[Inputs], object]] = {
        f"product {place}": run for place, run in enumerate(products(given))
    }
    runs |= {name: run for name, (run, _) in racing.items()}
    for run in runs.values():
        seconds(run, given)
    turns = [
        {name: seconds(run, given) for name, run in runs.items()} for _ in range(arguments.turns)
    ]
    medians = {name: statistics.median(turn[name] for turn in turns) for name in runs}
    bare = [medians[f"product {place}"] for place in range(3)]
    rows: list[dict[str, Any]] = [
        {"size": size, "name": "products", "milliseconds": 1e3 * sum(bare), "over_bound": 1.0}
    ]
    for name, (_, count) in racing.items():
        own = [turn[name] for turn in turns]
        if device == "cuda":
            peak: int | None = peak_bytes(name, given)
        else:
            peak = peak_in_own_process(name, size, arguments)
        rows.append(
            {
                "size": size,
                "name": name,
                "milliseconds": 1e3 * medians[name],
                "fastest": 1e3 * min(own),
                "slowest": 1e3 * max(own),
                "over_bound": medians[name] / sum(bare[:count]),
                "peak_mebibytes": None if peak is None else peak / 2**20,
            }
        )
    return rows


def main() -> None:
    """Measure, print, and keep."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=SIZES[device])
    parser.add_argument("--dtype", default="bfloat16" if device == "cuda" else "float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--print", action="store_true", help="do not keep the results")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak is not None:
        given = Inputs.made(arguments.sizes[0], device, getattr(torch, arguments.dtype))
        print(peak_bytes(arguments.peak, given))
        return
    rows = []
    for size in arguments.sizes:
        for row in measure(size, device, arguments):
            rows.append(row)
            peak = row.get("peak_mebibytes")
            memory = "" if peak is None else f"{peak:9.0f} MiB"
            print(
                f"{row['size']:<18}{row['name']:<15}{row['milliseconds']:9.1f} ms"
                f"{row['over_bound']:7.2f} x bound{memory}",
                flush=True,
            )
    if not arguments.print:
        facts = {
            "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
            "dtype": arguments.dtype,
            "threads": arguments.threads,
            "turns": arguments.turns,
            "rows": rows,
        }
        keep(RESULTS / f"output_head_{device}.json", facts)


if __name__ == "__main__":
    main()
