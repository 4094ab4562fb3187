"""Where every objective on pairs and labels ends as data grow, for three kinds of preferences.

    python benchmarks/where_each_ends.py

Takes half a minute. The rows are kept in benchmarks/results/where_each_ends.json, from which
`make docs` writes a table of docs/choosing-an-objective.md. `veritune lab` proves what they say.
"""

from dataclasses import asdict

import torch
from kept_results import RESULTS, keep

from veritune.laboratory.theorems.degeneracy import NUM_COMPLETIONS, SCALE, where_each_ends

_FILE = RESULTS / "where_each_ends.json"


def main() -> None:
    """Compute the rows and write them."""
    torch.set_num_threads(1)
    rows = [asdict(row) for row in where_each_ends()]
    keep(_FILE, {"completions": NUM_COMPLETIONS, "scale": SCALE, "rows": rows})
    print(f"{len(rows)} rows in {_FILE}")


if __name__ == "__main__":
    main()
