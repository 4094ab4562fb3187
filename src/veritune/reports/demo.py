"""The page of the demo: how near each objective comes to the distribution it claims."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from veritune.reports.axes import Axis
from veritune.reports.figures import Bar, Line, ReferenceLine, bar_chart, line_chart
from veritune.reports.numbers import format_count, format_number, format_seconds, format_share
from veritune.reports.page import Cell, Page, Section, Table, number, share, write_page


@dataclass(frozen=True)
class Sample:
    """One string of the small language with its exact probabilities."""

    prompt: str
    completion: str
    target_probability: float
    """Under the target."""

    before: float
    """Under the policy before training, which is the reference."""

    after: float
    """Under the policy after training."""


@dataclass(frozen=True)
class DemoRow:
    """What one objective did."""

    objective: str
    title: str
    """What the letters stand for."""

    claims_target: bool
    """Whether its paper says that it converges to this target on this feedback."""

    feedback: str
    """What data it got, in words."""

    kl_before: float
    """KL(target || policy) before training, exact, in nats."""

    kl_after: float
    """KL(target || policy) after training, exact, in nats."""

    reward_before: float
    """Exact expected reward before training."""

    reward_after: float
    """Exact expected reward after training."""

    seconds: float
    """Time of training."""

    curve: tuple[tuple[int, float], ...]
    """(step, exact KL in nats)."""

    samples: tuple[Sample, ...]
    """The most probable strings."""

    stopped: str | None = None
    """Why training ended early, in words; None if it did not. "After" is then the last weights."""


@dataclass(frozen=True)
class DemoResult:
    """Everything that the demo measured."""

    language: str
    """What the small language is, in a sentence."""

    num_strings: int
    """How many strings it has; every sum runs over all of them."""

    reward_target: float
    """Exact expected reward under the target."""

    rows: tuple[DemoRow, ...]
    """One for each objective, in the order in which they are shown."""

    seconds: float
    """Time of the whole demo."""

    settings: Mapping[str, str]
    """Name and value of whatever a reader needs to repeat it."""


def demo_page(result: DemoResult, file: Path) -> Path:
    """Write the page of the demo and return its file."""
    page = Page(
        title="Do these objectives reach the distribution they claim?",
        lead=(
            "A small language model was aligned with simulated feedback, once with each objective, "
            "by the code that trains large ones. The distances below are exact."
        ),
        facts=(
            ("Objectives", format_count(len(result.rows))),
            ("Strings of the language", format_count(result.num_strings)),
            ("Time", format_seconds(result.seconds)),
        ),
        findings=demo_findings(result),
        sections=_sections(result),
    )
    return write_page(page, file)


def summary_table(result: DemoResult) -> Table:
    """One row for each objective: distance and expected reward, before and after."""
    rows = tuple(
        (
            Cell(row.objective, "code"),
            Cell("yes" if row.claims_target else "no"),
            number(row.kl_before),
            number(row.kl_after),
            Cell(format_share(_closed(row)), "number"),
            number(row.reward_before),
            number(row.reward_after),
            Cell("stopped" if row.stopped else format_seconds(row.seconds), "number"),
        )
        for row in result.rows
    )
    return Table(
        (
            "objective",
            "claims the target",
            "KL before",
            "KL after",
            "distance closed",
            "reward before",
            "reward after",
            "time",
        ),
        rows,
        caption=_caption(result),
    )


def feedback_table(result: DemoResult) -> Table:
    """What each objective is and what data it learned from."""
    rows = tuple(
        (Cell(row.objective, "code"), Cell(row.title), Cell(row.feedback)) for row in result.rows
    )
    return Table(("objective", "stands for", "feedback it got"), rows)


def short_table(result: DemoResult) -> Table:
    """The columns of the summary that fit a terminal of 80 characters."""
    rows = tuple(
        (
            Cell(row.objective, "code"),
            Cell("yes" if row.claims_target else "no"),
            number(row.kl_before),
            number(row.kl_after),
            Cell(format_share(_closed(row)), "number"),
            number(row.reward_after),
            Cell("stopped" if row.stopped else format_seconds(row.seconds), "number"),
        )
        for row in result.rows
    )
    headers = ("objective", "claims", "before", "after", "closed", "reward", "time")
    return Table(headers, rows, caption=_caption(result))


def demo_findings(result: DemoResult) -> tuple[str, ...]:
    """What the numbers say, in plain sentences."""
    findings = []
    claiming = [
        row
        for row in result.rows
        if row.claims_target and not row.stopped and math.isfinite(row.kl_after)
    ]
    others = [row for row in result.rows if not row.claims_target and math.isfinite(row.kl_after)]
    if claiming:
        best = min(claiming, key=lambda row: row.kl_after)
        findings.append(
            f"Of the objectives that claim this target, {best.objective} came nearest: "
            f"{format_number(best.kl_before)} to {format_number(best.kl_after)} nats, "
            f"which closes {format_share(_closed(best))} of the distance."
        )
    if len(claiming) > 1:
        findings.append(
            f"The {len(claiming)} that claim it closed {_range_of_shares(claiming)} "
            "of the distance."
        )
    findings.extend(f"{row.objective} {row.stopped}." for row in result.rows if row.stopped)
    if others:
        subject = "The one that does" if len(others) == 1 else f"The {len(others)} that do"
        findings.append(
            f"{subject} not claim it closed {_range_of_shares(others)}: what is published names "
            "another optimum, or none."
        )
    beyond = [row.objective for row in result.rows if _overshoots(row, result.reward_target)]
    if beyond:
        findings.append(
            f"Expected reward went beyond the target's with {', '.join(beyond)}: that is not "
            "better alignment but more of the reward than the feedback asked for."
        )
    return tuple(findings)


def _sections(result: DemoResult) -> tuple[Section, ...]:
    curves = line_chart(
        "Distance to the target while training",
        [Line(row.objective, tuple((float(s), v) for s, v in row.curve)) for row in result.rows],
        x=Axis("optimizer step"),
        y=Axis("KL(target ‖ policy), nats", log=True),
    )
    rewards = bar_chart(
        "Expected reward after training",
        [Bar(row.objective, row.reward_after) for row in result.rows],
        axis=Axis("expected reward"),
        references=_reward_references(result),
    )
    return (
        Section(
            "What is aligned to what",
            (
                result.language,
                f"It has {result.num_strings:,} strings, so the probability of each can be written "
                "down and nothing has to be estimated from samples.",
                "The reference is the model before training. Simulated raters judged what it "
                "wrote; the target is the distribution that their feedback asks for. "
                "Each policy starts as the reference and learns from the feedback alone: "
                "it never sees the target.",
                "KL(target ‖ policy) says how far a policy is from the target: 0 nats if they are "
                "the same distribution. An objective can raise the reward and still miss the "
                "target, so both are shown.",
            ),
            tables=(feedback_table(result),),
        ),
        Section("Results", figures=(curves, rewards), tables=(summary_table(result),)),
        Section(
            "The most probable strings",
            ("Probabilities are exact. A policy that reached the target has after = target.",),
            tables=tuple(_samples_table(row) for row in result.rows if row.samples),
        ),
        Section(
            "Settings",
            tables=(
                Table(
                    ("name", "value"),
                    tuple((Cell(k, "code"), Cell(v, "code")) for k, v in result.settings.items()),
                ),
            ),
            folded=True,
        ),
    )


def _samples_table(row: DemoRow) -> Table:
    rows = tuple(
        (
            Cell(sample.prompt, "code"),
            Cell(sample.completion, "code"),
            share(sample.target_probability),
            share(sample.before),
            share(sample.after),
        )
        for sample in row.samples
    )
    headers = ("prompt", "completion", "target", "before", "after")
    return Table(headers, rows, caption=f"{row.objective}, from {row.feedback}")


def _reward_references(result: DemoResult) -> tuple[ReferenceLine, ...]:
    target = ReferenceLine(result.reward_target, f"target {format_number(result.reward_target)}")
    before = {format_number(row.reward_before) for row in result.rows}
    if len(before) != 1:
        return (target,)
    reference = ReferenceLine(result.rows[0].reward_before, f"reference {before.pop()}")
    return (reference, target)


def _caption(result: DemoResult) -> str:
    return (
        "KL(target ‖ policy) in nats, exact: 0 is the target itself. "
        f"Expected reward of the target: {format_number(result.reward_target)}."
    )


def _closed(row: DemoRow) -> float:
    """Which share of the distance to the target is gone; negative if the policy moved away."""
    return 1 - row.kl_after / row.kl_before if row.kl_before > 0 else math.nan


def _overshoots(row: DemoRow, reward_target: float) -> bool:
    """Whether the reward passed the target's by more than a twentieth of the way to it."""
    return row.reward_after - reward_target > 0.05 * abs(reward_target - row.reward_before)


def _range_of_shares(rows: Sequence[DemoRow]) -> str:
    shares = [value for row in rows if not math.isnan(value := _closed(row))]
    if not shares:
        return "none"
    low, high = format_share(min(shares)), format_share(max(shares))
    return low if low == high else f"between {low} and {high}"
