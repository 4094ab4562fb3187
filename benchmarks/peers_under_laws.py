"""Runs the checks of Veritune's objectives on TRL's and Liger-Kernel's, and writes docs/peers.md.

make peers                           the whole, in an environment of its own
peers_under_laws.py --list           names of all losses, steps and settings
peers_under_laws.py --only "ipo"     those that have a text in their name, printed in full
peers_under_laws.py --render         docs/peers.md from the stored results
"""

import argparse
import importlib
import json
import logging
import os
import re
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[1]
_RESULTS = _ROOT / "benchmarks" / "results" / "peers_under_laws.json"
_PAGE = _ROOT / "docs" / "peers.md"
_RELEASED = {
    ("trl", "1.16.0"): "wheel of 2026-10-15",
    ("liger-kernel", "0.8.5"): "wheel of 2026-10-21",
}
"""When the files of a release were made."""

_MODULES = {
    "TRL": ("trl_pairs", "trl_labels", "trl_samples"),
    "Liger": ("liger_losses",),
    "Veritune": ("veritune_losses",),
}
_NEEDED = {"TRL": "trl", "Liger": "liger_kernel.chunked_loss", "Veritune": "veritune"}


def silence() -> None:
    """No progress bars, no advice, nothing from a network."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()


def all_losses() -> tuple[list[Any], dict[str, str]]:
    """Every implementation that can be imported, and why others cannot."""
    found, missing = [], {}
    for library, modules in _MODULES.items():
        try:
            importlib.import_module(_NEEDED[library])
        except ImportError as error:
            missing[library] = f"{type(error).__name__}: {error}"
            continue
        for module in modules:
            found += importlib.import_module(f"peers.{module}").implementations()
    return found, missing


def check_loss(loss: Any) -> dict[str, Any]:
    """Every check of one implementation."""
    from peers.checks import CHECKS
    from peers.optimum import optimum

    checks: dict[str, Any] = {}
    for name, check in {**CHECKS, "optimum": optimum}.items():
        outcome = check(loss)
        checks[name] = (
            None
            if outcome is None
            else {
                "holds": outcome.holds,
                "measured": outcome.measured,
            }
        )
    return {
        "name": loss.name,
        "library": loss.library,
        "source": loss.formula.source,
        "settings": loss.settings,
        "checks": checks,
    }


def versions() -> dict[str, str]:
    """Of what took part."""
    names = ["trl", "torch", "transformers", "veritune"]
    try:
        version("liger-kernel")
        names.insert(1, "liger-kernel")
    except importlib.metadata.PackageNotFoundError:
        pass
    return {name: version(name).split("+")[0] for name in names}


def run_everything() -> dict[str, Any]:
    """All losses, real steps and settings."""
    from peers import accumulation, settings

    losses, missing = all_losses()
    found = versions()
    results: dict[str, Any] = {
        "versions": found,
        "released": {
            name: _RELEASED.get((name, found[name]), "date unknown")
            for name in ("trl", "liger-kernel")
            if name in found
        },
        "missing": missing,
        "losses": [],
        "steps": [],
        "cases": [],
    }
    for loss in losses:
        results["losses"].append(check_loss(loss))
        _say(results["losses"][-1])
    for step in accumulation.steps():
        results["steps"].append(accumulation.run(step))
    for case in settings.CASES:
        results["cases"].append(settings.run(case))
    return results


def _say(loss: dict[str, Any]) -> None:
    wrong = [name for name, given in loss["checks"].items() if given and not given["holds"]]
    print(f"{loss['name']:<60} {'all hold' if not wrong else ', '.join(wrong)}", flush=True)


def print_some(pattern: str) -> None:
    """Everything whose name contains a text, with the numbers that went in."""
    from peers import accumulation, settings
    from peers.batches import random_batch

    for loss in all_losses()[0]:
        if pattern not in loss.name:
            continue
        print(f"{loss.name}\n  formula: {loss.formula.source}\n  settings: {loss.settings}")
        outcomes = {name: given for name, given in check_loss(loss)["checks"].items() if given}
        for name, given in outcomes.items():
            print(f"  {name:<10} {'holds' if given['holds'] else 'FAILS'}: {given['measured']}")
        words = " ".join(given["measured"] for given in outcomes.values() if not given["holds"])
        for seed in sorted(set(map(int, re.findall(r"batch (\d+)", words)))):
            rows = random_batch(loss.kind, seed).rows
            print(f"  batch {seed}: lengths {rows.lengths.tolist()}")
            print(
                "    log-probabilities of completions"
                + (", chosen ones first:" if loss.kind == "pairs" else ":")
            )
            print(f"    policy    {_numbers(rows.policy_sums)}")
            print(f"    reference {_numbers(rows.reference_sums)}")
    for step in accumulation.steps():
        if pattern in step.name:
            print(f"one step of {step.name}: {accumulation.run(step)['measured']}")
    for case in settings.CASES:
        if pattern in case.__name__:
            given = settings.run(case)
            print(f"{given['name']}: {given['holds']}\n  {given['claim']}\n  {given['measured']}")


def _every_name() -> list[str]:
    from peers import accumulation, settings

    losses = [loss.name for loss in all_losses()[0]]
    steps = [f"one step of {step.name}" for step in accumulation.steps()]
    return [*losses, *steps, *(case.__name__ for case in settings.CASES)]


def _numbers(values: Any) -> str:
    return ", ".join(f"{float(value):.6g}" for value in values)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", metavar="NAME", help="print what has this text in its name")
    parser.add_argument("--list", action="store_true", help="print all names")
    parser.add_argument("--render", action="store_true", help="write the page from stored results")
    given = parser.parse_args()
    from peers.document import document

    if given.render:
        _PAGE.write_text(document(json.loads(_RESULTS.read_text(encoding="utf-8"))), "utf-8")
        return
    silence()
    if given.list:
        print("\n".join(_every_name()))
    elif given.only:
        print_some(given.only)
    else:
        results = run_everything()
        _RESULTS.parent.mkdir(exist_ok=True)
        _RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        _PAGE.write_text(document(results), encoding="utf-8")
        print(f"wrote {_PAGE.relative_to(_ROOT)} and {_RESULTS.relative_to(_ROOT)}")


if __name__ == "__main__":
    main()
