"""Every example runs as its first lines say, and shows what it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = {"own_training_loop.py", "inside_trl.py"}


def output_of(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", EXAMPLES / script],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_every_example_is_listed_and_run_here():
    files = {file.name for file in EXAMPLES.glob("*.py")}

    assert files == SCRIPTS | {"my_loss.py"}
    listed = (EXAMPLES / "README.md").read_text()
    assert all(f"`{name}`" in listed for name in files)


def test_the_loop_of_ones_own_lowers_the_loss_and_raises_the_ratio():
    output = output_of("own_training_loop.py")

    losses, ratios = (
        [float(number) for number in re.findall(pattern, output)]
        for pattern in (r"loss ([\d.]+)", r"ones ([\d.]+)")
    )
    # Two class means of softplus(0) with weights 1 + alpha and 1 - alpha.
    assert losses[0] == pytest.approx(1.3863, abs=1e-4)
    assert losses == sorted(losses, reverse=True)
    assert ratios[0] == pytest.approx(1.0, abs=1e-3)
    assert ratios[-1] > 1.5


def test_trl_trains_by_an_objective_of_veritune():
    pytest.importorskip("trl", reason="TRL is not installed")

    output = output_of("inside_trl.py")

    first, last = re.search(r"first step ([\d.]+), of the last ([\d.]+)", output).groups()
    # -log 2 - log(epsilon (1 - epsilon)) / 2 where policy and reference are equal.
    assert float(first) == pytest.approx(2.7612, abs=1e-3)
    assert float(last) < 2.5
