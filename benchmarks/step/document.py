"""Results to the text and the pictures of docs/performance.md. Pure: the same give the same."""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Results = dict[str, Any]

GOALS: dict[str, dict[str, float]] = {
    "real": {"trl": 5.0, "trl_tuned": 3.5},
    "ultrafeedback": {"trl": 4.0, "trl_tuned": 2.5},
    "tldr": {"trl": 6.0, "trl_tuned": 4.0},
    "k8": {"trl": 6.0, "trl_tuned": 4.0},
}
"""How many times a peer's rate each case should reach on a CPU."""

GPU_GOALS = {
    "a step": (
        "3 times the rate of TRL as it comes and 1.8 times that of TRL tuned",
        "at least 45 % of the measured matrix rate in bfloat16 on the 1.5B shape",
        "at most 40 % of TRL's peak memory",
    ),
    "the output head": (
        "bfloat16, 151,936 tokens of vocabulary, width 4,096, 8,192 targets, forward and backward: "
        "less than TRL's chunked head (167 ms, 13.1 GiB) and Liger's (192 ms, 6.1 GiB); bare "
        "products take 42 ms",
    ),
}
"""What is to be reached on an H200; where others' figures stand, they were published (trl#7244)."""

MEMORY_GOAL = 1 / 3
"""The most of a peer's peak memory."""

BOUND_GOAL = 2.5
"""The most of the time that the operations alone would take."""

CURVE_GOAL = 1e-3
"""The most that a loss of the training curve may differ from the peer's."""

PEERS = {"trl": "TRL as it comes", "trl_tuned": "TRL tuned"}
_GIGA = 1e9


@dataclass(frozen=True)
class Measured:
    """What one case says, in medians over its steps."""

    name: str
    title: str
    seconds: dict[str, float]
    ratios: dict[str, list[float]]
    """A peer's time over Veritune's at each step."""

    rates: dict[str, float]
    """Useful tokens per second."""

    peaks: dict[str, float]
    """Bytes."""

    over_bound: float
    """Veritune's time over that of the operations at the measured matrix rate."""

    curve: float | None
    """Largest difference to TRL's losses, over the larger of 1 and the loss; None where the two do
    not train the same."""

    failed: dict[str, str]

    def ratio(self, peer: str) -> float:
        """Median over the steps."""
        return statistics.median(self.ratios[peer])

    def memory(self, peer: str) -> float:
        """Veritune's peak over a peer's."""
        return self.peaks["veritune"] / self.peaks[peer]


def measured(name: str, case: Results) -> Measured:
    """Medians and ratios of a case."""
    found = {who: what for who, what in case["contestants"].items() if what["error"] is None}
    ours = found["veritune"]["seconds"]
    rate = statistics.median(case["matrix_rates"])
    tokens = sum(step["tokens"] for step in case["steps"])
    bound = sum(step["operations"] for step in case["steps"]) / rate
    return Measured(
        name,
        case["title"],
        {who: statistics.median(what["seconds"]) for who, what in found.items()},
        {
            who: [theirs / own for theirs, own in zip(what["seconds"], ours, strict=True)]
            for who, what in found.items()
            if who != "veritune"
        },
        {who: tokens / sum(what["seconds"]) for who, what in found.items()},
        {who: what["peak_bytes"] for who, what in found.items()},
        sum(ours) / bound,
        _curve_difference(case, found),
        {who: what["error"] for who, what in case["contestants"].items() if what["error"]},
    )


def _curve_difference(case: Results, found: Results) -> float | None:
    """Largest difference of losses, relative where they are above 1; adapters begin at random."""
    peer = next((who for who in PEERS if who in found), None)
    if case["completions"] != 2 or case["adapter"] or peer is None:
        return None
    pairs = zip(found["veritune"]["losses"], found[peer]["losses"], strict=True)
    return max(abs(own - theirs) / max(1.0, abs(theirs)) for own, theirs in pairs)


def table(cases: dict[str, Results]) -> str:
    """A few lines per case, for a terminal."""
    lines = []
    for name, case in cases.items():
        if case["contestants"].get("veritune", {}).get("error", "absent"):
            lines.append(f"{name}: Veritune did not finish")
            continue
        found = measured(name, case)
        for who, seconds in found.seconds.items():
            line = f"{name:<16}{who:<11}{seconds:8.2f} s {found.rates[who]:9.0f} tokens/s"
            line += f"  peak {found.peaks[who] / _GIGA:5.2f} GB"
            if who != "veritune":
                line += f"  Veritune: {found.ratio(who):5.2f} times the rate"
            lines.append(line)
        curve = "" if found.curve is None else f", losses differ by {found.curve:.1e}"
        lines.append(f"{'':<16}{found.over_bound:.2f} times the operation bound{curve}")
    return "\n".join(lines)


def document(results: Path) -> str:
    """The whole page, from whatever results are kept."""
    parts = [_OPENING]
    for device, title in (("cpu", "On a CPU"), ("cuda", "On a GPU")):
        file = results / f"preference_step_{device}.json"
        if file.is_file():
            parts += _step_section(json.loads(file.read_text()), title, device)
        else:
            parts.append(f"## {title}\n\nNot measured yet: `make bench` on such a machine does.")
            parts += [_GPU_GOALS] if device == "cuda" else []
    sections: tuple[tuple[str, Callable[[Results], str]], ...] = (
        ("step_gains", _gains_section),
        ("step_profile", _profile_section),
        ("growth", _growth_section),
        ("prepare_records", _prepare_section),
    )
    for name, section in sections:
        file = results / f"{name}.json"
        if file.is_file():
            parts.append(section(json.loads(file.read_text())))
    return "\n\n".join(part for part in parts if part) + "\n"


_GPU_GOALS = "\n".join(
    (
        "Goals on an H200, none of them measured. What runs on a GPU alone (the kernels `varlen`, "
        "`flash` and `flex`, compiled layers, the head's Triton kernel) is tested by what stands "
        "in for it on a processor.",
        "",
        *(f"- {what}: {goal}." for what, goals in GPU_GOALS.items() for goal in goals),
    )
)

_OPENING = "\n\n".join(
    (
        "# Performance",
        "Generated from `benchmarks/results/` by `make bench`; `benchmarks/README.md` says what "
        "each benchmark is.",
        "**What is compared.** The same model folder, records in the same order, objective (DPO), "
        "precision, learning rate and groups per step go through TRL's `DPOTrainer` and through "
        "`veritune train`, each by its own training loop in a process of its own. They take turns: "
        "each makes one step while the others wait, and another one is first each time. The first "
        "step is not counted. *As it comes* is TRL with its defaults (it recomputes activations "
        "and runs the reference in every step); *tuned* has a precomputed reference and no "
        "activation checkpointing. TRL's own chunked output head is on in both. Its cut at 1,024 "
        "tokens is off, because Veritune keeps those tokens; and the chat template writes nothing "
        "behind the end of a turn, because TRL would learn that too. Both count the same tokens, "
        "or the case fails.",
        "**Why it differs.** A prompt is computed once per group and not once per completion; "
        "nothing is padded; the output head runs on the tokens that bear loss, and keeps its "
        "logits for the backward pass a few groups at a time; the reference is scored once, before "
        "the first step; activations are not computed twice where they fit. None of it changes the "
        "loss: the last column of each table is the largest difference between the two training "
        "curves, relative where a loss is above 1. Adapters begin at random, and TRL has no "
        "objective on groups of K, so their curves are not compared.",
        "**The bound** is the time that the matrix products and the attention of a step would take "
        "at the rate at which this machine multiplies matrices of the model's shape, measured "
        "between the steps: every prompt once, the head on completion tokens, forward and "
        "backward, nothing twice. Element-wise work, normalization, the optimizer and Python are "
        "not in it.",
    )
)


def _step_section(results: Results, title: str, device: str) -> list[str]:
    cases = [
        measured(name, case)
        for name, case in results["cases"].items()
        if not case["contestants"]["veritune"]["error"]
    ]
    versions = results["versions"]
    rates = [rate for case in results["cases"].values() for rate in case["matrix_rates"]]
    opening = (
        f"## {title}\n\n{results['device']}, {results['threads']} threads; Veritune "
        f"{versions['veritune']}, TRL {results['trl']}, torch {versions['torch']}, transformers "
        f"{versions['transformers']}. Matrix products run at "
        f"{statistics.median(rates) / 1e9:,.0f} GFLOP/s (median; from {min(rates) / 1e9:,.0f} to "
        f"{max(rates) / 1e9:,.0f}).\n\n    make bench PAIRS=pairs.jsonl"
    )
    parts = [opening, _step_table(cases), f"![times the rate of TRL](performance_{device}.svg)"]
    parts.append(_setup_table(results["cases"]))
    if device == "cpu":
        parts.append(_goals(cases))
    return parts


def _step_table(cases: Sequence[Measured]) -> str:
    lines = [
        "| case | Veritune, s | tokens/s | times TRL's rate | times TRL tuned | peak, GB | TRL | "
        "TRL tuned | over the bound | curves differ by |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        cells = [
            case.title,
            f"{case.seconds['veritune']:.2f}",
            f"{case.rates['veritune']:,.0f}",
            *(_spread(case, peer) for peer in PEERS),
            f"{case.peaks['veritune'] / _GIGA:.2f}",
            *(f"{case.peaks[p] / _GIGA:.2f}" if p in case.peaks else "–" for p in PEERS),
            f"{case.over_bound:.2f}",
            "–" if case.curve is None else f"{case.curve:.0e}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    note = (
        "Medians over the steps, with the smallest and the largest step in brackets; tokens are "
        "those of prompts, once, and completions; memory is the largest resident set of the "
        "process (or what torch had allocated on the GPU) during the steps, the libraries included."
    )
    failed = [f"{PEERS[p]} on “{c.title}”: {why}." for c in cases for p, why in c.failed.items()]
    if failed:
        failed.append("Linux ends a process with -9 when there is no memory left.")
    return "\n\n".join(["\n".join(lines), note, *failed])


def _setup_table(cases: dict[str, Results]) -> str:
    """What each contestant does before its first step."""
    names = {"veritune": "Veritune", **PEERS}
    lines = ["| case | " + " | ".join(names.values()) + " |", "|---" * (len(names) + 1) + "|"]
    for case in cases.values():
        found = (case["contestants"].get(who, {}).get("setup_seconds") for who in names)
        cells = ["–" if seconds is None else f"{seconds:.1f}" for seconds in found]
        lines.append("| " + " | ".join([case["title"], *cells]) + " |")
    return (
        "Seconds before the first step, which no rate above contains: the model is loaded, the "
        "records are tokenized, and Veritune and TRL tuned score the reference once; TRL as it "
        "comes runs it in every step. In a run of many epochs or objectives it is paid once.\n\n"
        + "\n".join(lines)
    )


def _spread(case: Measured, peer: str) -> str:
    if peer not in case.ratios:
        return "–"
    ratios = case.ratios[peer]
    text = f"**{statistics.median(ratios):.1f}**"
    return text if len(ratios) == 1 else f"{text} [{min(ratios):.1f}, {max(ratios):.1f}]"


def _goals(cases: Sequence[Measured]) -> str:
    """What was set as a goal before, and how far each case is from it."""
    lines = [
        "| case | times TRL's rate | times TRL tuned | of TRL's memory | of TRL tuned | over the "
        "bound | curves differ by |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        goals = GOALS.get(case.name, {})
        cells = [
            *(_held(case.ratio(p) if p in case.ratios else None, goals.get(p)) for p in PEERS),
            *(_held(case.memory(p) if p in case.peaks else None, most=MEMORY_GOAL) for p in PEERS),
            _held(case.over_bound, most=BOUND_GOAL),
            _held(case.curve, most=CURVE_GOAL),
        ]
        lines.append("| " + " | ".join([case.title, *cells]) + " |")
    table = "\n".join(lines)
    told = f"Goals that were set before measuring, and what was reached:\n\n{table}"
    if "not reached" in table:
        told += "\n\n[Where the time goes](#where-the-time-goes) shows what is beyond the bound."
    return told


def _held(value: float | None, least: float | None = None, *, most: float | None = None) -> str:
    """What was reached, and in brackets the goal."""
    if value is None or least is most is None:
        return "–"
    if least is not None:
        text, holds = f"{value:.1f} (≥ {least:g})", value >= least
    else:
        assert most is not None, "one of them is given"
        told = f"{value:.2f} (≤ {most:.2f})" if most > 0.01 else f"{value:.0e} (≤ {most:.0e})"
        text, holds = told, value <= most
    return text if holds else f"{text}, **not reached**"


def _gains_section(results: Results) -> str:
    parts = list(dict.fromkeys(part for row in results["rows"] for part in row["gains"]))
    lines = ["| without | " + " | ".join(row["case"] for row in results["rows"]) + " |"]
    lines.append("|---" * (len(results["rows"]) + 1) + "|")
    for part in parts:
        gains = (row["gains"].get(part) for row in results["rows"])
        cells = ("–" if gain is None else _gain(gain) for gain in gains)
        lines.append("| " + " | ".join([part, *cells]) + " |")
    return (
        "## What each part gives\n\n"
        "How many times as long a step takes when one part is missing (the median, with the "
        "smallest and the largest step in brackets), and how many times the memory. The steps are "
        "made in turns with the whole.\n\n"
        "    python benchmarks/step_gains.py --pairs pairs.jsonl\n\n" + "\n".join(lines)
    )


def _gain(gain: Results) -> str:
    if "error" in gain:
        return str(gain["error"])
    return (
        f"**{gain['time']:.2f}** [{gain['least']:.2f}, {gain['most']:.2f}], "
        f"memory {gain['memory']:.2f}"
    )


def _profile_section(results: Results) -> str:
    parts = list(results["rows"][0]["shares"])
    lines = ["| case | " + " | ".join(parts) + " |", "|---" * (len(parts) + 1) + "|"]
    for row in results["rows"]:
        cells = [f"{row['shares'][part]:.0%}" for part in parts]
        lines.append("| " + " | ".join([row["case"], *cells]) + " |")
    return (
        "## Where the time goes\n\n"
        "Shares of a step on the CPU by torch's profiler, which makes small operations slower than "
        "they are. The bound holds the products of layers and head, and of attention its "
        "multiplications alone: a row of scores is also masked, its exponentials taken and summed, "
        "and in the backward pass computed again. The shorter the sequences, the more a step "
        "consists of what is not in the bound; and the narrow matrices of adapters, which are in "
        "it, multiply at less than the rate of wide ones.\n\n"
        "    python benchmarks/step_profile.py --pairs pairs.jsonl\n\n" + "\n".join(lines)
    )


def _growth_section(results: Results) -> str:
    lines = [
        "| records | records/s in steps | records/s in all | steps waited for batches, s | "
        "peak, MB |",
        "|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        waited = row.get("waited_seconds")
        lines.append(
            f"| {row['records']:,} | {row['records'] / row['step_seconds']:,.0f} | "
            f"{row['records'] / row['seconds']:,.0f} | "
            f"{'–' if waited is None else f'{waited:.2f}'} | {row['peak_bytes'] / 1e6:,.0f} |"
        )
    return (
        "## Cost grows linearly\n\n"
        f"One epoch of `veritune train` over pairs of {results['tokens']:.0f} tokens, a model of "
        f"{results['parameters'] / 1e6:.1f} M parameters, one process.\n\n"
        "    python benchmarks/growth.py\n\n"
        + "\n".join(lines)
        + f"\n\nMemory grows by {_kilobytes_per_record(results['rows']):.1f} kB a record, the "
        "parts of tokens and reference values that were read from the disk among them."
        + "\n\n![time and memory over the number of records](performance_growth.svg)"
    )


def _kilobytes_per_record(rows: Sequence[Results]) -> float:
    """Growth of the peak from the second size to the last, in kB; the first is mostly libraries."""
    few, many = rows[1], rows[-1]
    return (many["peak_bytes"] - few["peak_bytes"]) / (many["records"] - few["records"]) / 1e3


def _prepare_section(results: Results) -> str:
    lines = [
        "| records | records/s | a second run, s | peak of the process, MiB | with workers, MiB |",
        "|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        lines.append(
            f"| {row['records']:,} | {row['records_per_second']:,} | {row['seconds_again']:.1f} "
            f"| {row['peak_mib_of_the_process']:,} | {row['peak_mib_of_all_processes']:,} |"
        )
    return (
        "## Preparing records\n\nReading, checking, rendering and tokenizing, in worker processes; "
        "a second run finds the tokens in the cache.\n\n"
        "    python benchmarks/prepare_records.py\n\n" + "\n".join(lines)
    )


_WIDTH, _LEFT, _ROW, _BAR = 830, 375, 46, 16
_STYLE = (
    "<style>text{font:13px system-ui,sans-serif;fill:#333}.one{fill:#2a6f97}.two{fill:#e09f3e}"
    ".axis{stroke:#999;stroke-width:1}.value{font-size:12px}"
    "@media (prefers-color-scheme:dark){text{fill:#ddd}.one{fill:#61a5c2}}</style>"
)


def ratio_picture(results: Results) -> str:
    """Bars: how many times TRL's rate, per case."""
    cases = [
        measured(name, case)
        for name, case in results["cases"].items()
        if not case["contestants"]["veritune"]["error"]
    ]
    largest = max(case.ratio(peer) for case in cases for peer in case.ratios)
    scale = (_WIDTH - _LEFT - 60) / largest
    height = 40 + _ROW * len(cases) + 10
    one = _LEFT + scale
    body = [
        f'<text x="{_LEFT}" y="16">times the rate of TRL</text>',
        '<rect class="one" x="545" y="6" width="12" height="12"/>',
        '<text x="562" y="16">as it comes</text>',
        '<rect class="two" x="665" y="6" width="12" height="12"/><text x="682" y="16">tuned</text>',
        f'<path class="axis" d="M{one:.1f},28V{height - 8}"/>',
    ]
    for number, case in enumerate(cases):
        top = 34 + _ROW * number
        body.append(_text(_LEFT - 8, top + 21, case.title, anchor="end"))
        for place, (peer, kind) in enumerate(zip(PEERS, ("one", "two"), strict=True)):
            y = top + place * (_BAR + 2)
            if peer not in case.ratios:
                body.append(f'<text class="value" x="{one + 5:.1f}" y="{y + 13}">died</text>')
                continue
            value = case.ratio(peer)
            width = value * scale
            body.append(
                f'<rect class="{kind}" x="{_LEFT}" y="{y}" width="{width:.1f}" height="{_BAR}"/>'
                f'<text class="value" x="{_LEFT + width + 5:.1f}" y="{y + 13}">{value:.1f}</text>'
            )
    return _svg(height, body, "How many times TRL's rate Veritune trains")


def growth_picture(results: Results) -> str:
    """Dots over the number of records: time per record, and peak memory, both from zero."""
    body: list[str] = []
    kinds = (
        ("one", "milliseconds per record", lambda r: 1e3 * r["seconds"] / r["records"]),
        ("two", "peak memory, MB", lambda r: r["peak_bytes"] / 1e6),
    )
    rows = results["rows"]
    for panel, (kind, title, value) in enumerate(kinds):
        left, bottom, height, width = 60 + panel * 380, 220, 170, 290
        largest = max(value(row) for row in rows) * 1.15
        body.append(f'<text x="{left}" y="24">{title}</text>')
        body.append(f'<path class="axis" d="M{left},{bottom}H{left + width}"/>')
        for place, row in enumerate(rows):
            x = left + 30 + place * (width - 60) / max(1, len(rows) - 1)
            y = bottom - height * value(row) / largest
            body.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
            shown = f"{value(row):,.2f}" if value(row) < 10 else f"{value(row):,.0f}"
            body.append(_text(x, y - 10, shown))
            body.append(_text(x, bottom + 20, f"{row['records']:,}"))
        body.append(_text(left + width / 2, bottom + 42, "records"))
    return _svg(275, body, "Time per record and peak memory over the number of records")


def _text(x: float, y: float, text: str, *, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _svg(height: float, body: Sequence[str], title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" '
        f'role="img"><title>{title}</title>{_STYLE}' + "".join(body) + "</svg>\n"
    )


def write_page(results: Path, page: Path) -> None:
    """The page, and beside it its pictures."""
    page.write_text(document(results), encoding="utf-8")
    for device in ("cpu", "cuda"):
        file = results / f"preference_step_{device}.json"
        if file.is_file():
            picture = page.with_name(f"performance_{device}.svg")
            picture.write_text(ratio_picture(json.loads(file.read_text())), encoding="utf-8")
    growth = results / "growth.json"
    if growth.is_file():
        picture = page.with_name("performance_growth.svg")
        picture.write_text(growth_picture(json.loads(growth.read_text())), encoding="utf-8")
