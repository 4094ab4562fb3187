"""Where benchmarks keep what they measured, and with what it was measured."""

import json
from pathlib import Path
from typing import Any

from veritune.provenance import versions

RESULTS = Path(__file__).resolve().parent / "results"
PERFORMANCE_PAGE = RESULTS.parents[1] / "docs" / "performance.md"


def taken_part() -> dict[str, str]:
    """Versions of what takes part; the machine is nobody's concern."""
    return {name: what for name, what in versions().items() if name != "platform"}


def keep(file: Path, facts: dict[str, Any]) -> None:
    """Write facts as JSON below the versions of what took part."""
    file.parent.mkdir(exist_ok=True)
    text = json.dumps({"versions": taken_part(), **facts}, indent=1)
    file.write_text(text + "\n", encoding="utf-8")
