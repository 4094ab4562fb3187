"""Where every objective on pairs and labels ends as data grow, for three kinds of preferences.

    python benchmarks/where_each_ends.py

Takes half a minute. The rows are kept in benchmarks/results/where_each_ends.json, from which
`make docs` writes a table of docs/choosing-an-objective.md. `veritune lab` proves what they say.
"""

import json
from dataclasses import asdict
from pathlib import Path

import torch

from veritune.laboratory.theorems.degeneracy import NUM_COMPLETIONS, SCALE, where_each_ends
from veritune.provenance import versions

RESULTS = Path(__file__).resolve().parent / "results" / "where_each_ends.json"


def main() -> None:
    """Compute the rows and write them."""
    torch.set_num_threads(1)
    rows = [asdict(row) for row in where_each_ends()]
    text = {
        "versions": {name: what for name, what in versions().items() if name != "platform"},
        "completions": NUM_COMPLETIONS,
        "scale": SCALE,
        "rows": rows,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")
    print(f"{len(rows)} rows in {RESULTS}")


if __name__ == "__main__":
    main()
