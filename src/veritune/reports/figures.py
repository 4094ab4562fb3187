"""Charts as inline SVG, drawn here so that a page needs no script and no other file.

Colors come from the page's style by class (`hue-0`, `hue-1`, …), so one drawing serves light and
dark. All text is escaped.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from markupsafe import Markup

from veritune.reports.axes import Axis, Scale, fit_scale, is_drawable
from veritune.reports.numbers import format_number

NUM_HUES = 7
"""Colors that the style of a page gives; further lines repeat them, dashed."""

Points: TypeAlias = tuple[tuple[float, float], ...]
"""(x, y) in the order of x. A y that is not a number is a gap."""

_WIDTH = 560
_LINE_HEIGHT = 300
_BOTTOM = 40
_TOP = 26
_RIGHT = 14
_CHARACTER = 7.4
_DASHES = ("", "7 4", "2 3", "9 3 2 3")
_GUIDE_DASH = "4 4"
_MAX_MARKERS = 60
_BAR_ROW = 42
_BAR_THICKNESS = 14


@dataclass(frozen=True)
class Line:
    """One named line of a chart."""

    name: str
    points: Points
    style: Literal["plain", "smoothed", "marked", "guide"] = "plain"
    """`smoothed`: a thick average over the faint raw line. `marked`: a dot at every point.

    `guide`: thin, dashed and without a color of its own: what the other lines are held against.
    """


@dataclass(frozen=True)
class ReferenceLine:
    """A dashed line across the chart at a value worth comparing with."""

    value: float
    label: str


class _Ink(NamedTuple):
    """How a line is told from the others: the class of its color, and its dashes."""

    color: str
    dash: str


@dataclass(frozen=True)
class Bar:
    """One named value, from zero, with an interval if it is an estimate."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x: Axis,
    y: Axis,
    reference: ReferenceLine | None = None,
    notes: Sequence[str] = (),
) -> Markup:
    """Lines over a common x, as a `<figure>` with its legend and the notes below it.

    Long lines are thinned to what a screen can show; values that cannot be drawn are gaps, and a
    note counts those that a logarithmic axis has no place for.
    """
    drawn = [Line(line.name, _placed(line.points, x), line.style) for line in lines]
    xs = [point[0] for line in drawn for point in line.points]
    ys = [point[1] for line in drawn for point in line.points]
    wanted = [*ys, *y.include, *([reference.value] if reference else [])]
    vertical = fit_scale(wanted, log=y.log, start=_LINE_HEIGHT - _BOTTOM, end=_TOP)
    left = _left_margin(vertical)
    horizontal = fit_scale(
        [*xs, *x.include], log=x.log, start=left, end=_WIDTH - _RIGHT, margin=False
    )
    body = [_horizontal_grid(vertical, left), _bottom_axis(horizontal, _LINE_HEIGHT, x.label)]
    body.append(Markup('<text class="label" x="2" y="13">{}</text>').format(y.label))
    inks = _inks(drawn)
    body += [
        _drawn_line(line, ink, horizontal, vertical) for line, ink in zip(drawn, inks, strict=True)
    ]
    if reference is not None and vertical.shows(reference.value):
        body.append(_horizontal_reference(reference, vertical, left))
    written = list(notes)
    if not any(is_drawable(value, log=y.log) for value in ys):
        body.append(
            Markup('<text class="empty" x="{}" y="{}">no values</text>').format(
                _WIDTH / 2, _LINE_HEIGHT / 2
            )
        )
    if y.log and (num_low := sum(1 for value in ys if value <= 0)):
        written.append(f"{num_low} at or below zero: no place on a logarithmic axis.")
    names = [line.name for line in drawn]
    legend = list(zip(inks, names, strict=True)) if len(drawn) > 1 else []
    spoken = "; ".join(_in_words(line) for line in drawn) or "no lines"
    return _figure(title, spoken, body, _LINE_HEIGHT, legend, written)


def bar_chart(
    title: str, bars: Sequence[Bar], *, axis: Axis, references: Sequence[ReferenceLine] = ()
) -> Markup:
    """Horizontal bars from zero, one below the other, as a `<figure>`.

    Args:
        title: What the bars show.
        bars: From top to bottom; one that is not a number keeps its place and says so.
        axis: The common axis; it is always linear, since a bar starts at zero.
        references: Vertical lines through all bars.
    """
    assert not axis.log, "a bar starts at zero, which a logarithmic axis does not have"
    top = _TOP + 14 * max(0, len(references) - 1)
    height = top + _BAR_ROW * max(1, len(bars)) + 6 + _BOTTOM
    ends = [end for bar in bars for end in (bar.value, bar.low, bar.high) if end is not None]
    values = [0.0, *ends, *axis.include, *(line.value for line in references)]
    # Room at the right for the value that is written behind the longest bar.
    scale = fit_scale(values, log=False, start=8, end=_WIDTH - 60, margin=min(values) < 0)
    body = [_vertical_grid(scale, top, height), _bottom_axis(scale, height, axis.label)]
    body += [_drawn_bar(i, bar, scale, top + _BAR_ROW * i) for i, bar in enumerate(bars)]
    body += [
        _vertical_reference(line, scale, 13 + 14 * i, height)
        for i, line in enumerate(references)
        if scale.shows(line.value)
    ]
    # After the reference lines, so that these do not strike through a value.
    body += [_bar_value(bar, scale, top + _BAR_ROW * i) for i, bar in enumerate(bars)]
    spoken = "; ".join(f"{bar.label}: {format_number(bar.value)}" for bar in bars) or "no bars"
    return _figure(title, spoken, body, height, [], [])


def thinned(points: Points, num_columns: int) -> list[Points]:
    """The unbroken pieces of a line, with at most four points for each column of pixels.

    A column keeps its first, lowest, highest and last point, so the drawing looks the same. A gap
    inside a column is too narrow to be seen and is closed.

    Args:
        points: The line; x in any unit.
        num_columns: Into how many equal parts the range of x is cut.
    """
    xs = [x for x, _ in points]
    width = (max(xs) - min(xs)) / num_columns if xs else 0.0
    columns: list[list[tuple[float, float]]] = []
    follows_gap: list[bool] = []
    current, gap = -1, True
    for x, y in points:
        if not math.isfinite(y):
            gap = True
            continue
        column = int((x - xs[0]) / width) if width > 0 else 0
        if column != current or not columns:
            columns.append([])
            follows_gap.append(gap)
            current = column
        columns[-1].append((x, y))
        gap = False
    pieces: list[list[tuple[float, float]]] = []
    for kept, starts in zip(map(_outline, columns), follows_gap, strict=True):
        if starts:
            pieces.append([])
        pieces[-1] += kept
    return [tuple(piece) for piece in pieces]


def smoothed(points: Points, half_life: float) -> Points:
    """An exponential average of the values up to each point; gaps stay gaps.

        average(t) = sum over s <= t of w^(t - s) y(s) / sum over s <= t of w^(t - s)

    Args:
        points: The line.
        half_life: Number of points after which a value counts half: `w = 2^(-1 / half_life)`.
    """
    weight = 2.0 ** (-1.0 / half_life)
    total = count = 0.0
    averaged = []
    for x, y in points:
        total, count = weight * total, weight * count
        if math.isfinite(y):
            total, count = total + y, count + 1
            averaged.append((x, total / count))
        else:
            averaged.append((x, math.nan))
    return tuple(averaged)


def _placed(points: Iterable[tuple[float, float]], x: Axis) -> Points:
    return tuple(point for point in points if is_drawable(point[0], log=x.log))


def _outline(column: list[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(column) <= 4:
        return column
    ys = [y for _, y in column]
    kept = sorted({0, ys.index(min(ys)), ys.index(max(ys)), len(column) - 1})
    return [column[i] for i in kept]


def _drawn_line(line: Line, ink: _Ink, horizontal: Scale, vertical: Scale) -> Markup:
    parts = []
    if line.style == "smoothed" and len(line.points) >= 20:
        parts.append(_path(line.points, horizontal, vertical, "raw", ""))
        average = smoothed(line.points, half_life=len(line.points) / 50)
        parts.append(_path(average, horizontal, vertical, "line", ink.dash))
    else:
        parts.append(_path(line.points, horizontal, vertical, "line", ink.dash))
    shown = [(a, b) for a, b in line.points if vertical.shows(b)]
    if line.style == "marked" and len(shown) <= _MAX_MARKERS:
        parts += [
            Markup('<circle class="dot" cx="{}" cy="{}" r="3.5"><title>{}</title></circle>').format(
                _round(horizontal.pixel(a)),
                _round(vertical.pixel(b)),
                f"{line.name}, {format_number(a, 6)}: {format_number(b, 4)}",
            )
            for a, b in shown
        ]
    return Markup('<g class="{}"><title>{}</title>{}</g>').format(
        ink.color, line.name, Markup("").join(parts)
    )


def _path(points: Points, horizontal: Scale, vertical: Scale, kind: str, dash: str) -> Markup:
    """The pieces of a line; a point that stands alone becomes a round dot."""
    pixels = tuple(
        (horizontal.pixel(a), vertical.pixel(b) if vertical.shows(b) else math.nan)
        for a, b in points
    )
    pieces = thinned(pixels, num_columns=_WIDTH)
    # A path from a point to itself draws the round cap of the stroke.
    text = " ".join(
        "M" + " ".join(f"{_round(a)},{_round(b)}" for a, b in (piece * 2)[: max(2, len(piece))])
        for piece in pieces
    )
    return Markup('<path class="{}" stroke-dasharray="{}" d="{}"/>').format(
        kind, dash or "none", text
    )


def _drawn_bar(index: int, bar: Bar, scale: Scale, top: float) -> Markup:
    label = Markup('<text class="name" x="{}" y="{}">{}</text>').format(8, top + 16, bar.label)
    middle = top + 22 + _BAR_THICKNESS / 2
    zero = scale.pixel(0.0)
    parts = []
    if scale.shows(bar.value):
        end = scale.pixel(bar.value)
        parts.append(
            Markup('<rect class="bar" x="{}" y="{}" width="{}" height="{}" rx="2"/>').format(
                _round(min(zero, end)), top + 22, _round(abs(end - zero)), _BAR_THICKNESS
            )
        )
    if bar.low is not None and bar.high is not None and scale.shows(bar.low + bar.high):
        low, high = scale.pixel(bar.low), scale.pixel(bar.high)
        parts.append(
            Markup('<path class="interval" d="M{},{}H{}"/>').format(
                _round(low), middle, _round(high)
            )
        )
    return Markup('<g class="{}"><title>{}</title>{}{}</g>').format(
        _hue(index), bar.label, label, Markup("").join(parts)
    )


def _bar_value(bar: Bar, scale: Scale, top: float) -> Markup:
    ends = [0.0, bar.value, *([] if bar.high is None else [bar.high])]
    right = max(scale.pixel(end) for end in ends if scale.shows(end))
    return Markup('<text class="value" x="{}" y="{}">{}</text>').format(
        _round(right + 5), top + 22 + _BAR_THICKNESS / 2 + 4.5, format_number(bar.value)
    )


def _figure(
    title: str,
    spoken: str,
    body: Iterable[Markup],
    height: float,
    legend: Sequence[tuple[_Ink, str]],
    notes: Sequence[str],
) -> Markup:
    svg = Markup(
        '<svg role="img" aria-label="{}" viewBox="0 0 {} {}"><title>{}</title>{}</svg>'
    ).format(f"{title}. {spoken}", _WIDTH, height, title, Markup("").join(body))
    entries = Markup("").join(
        Markup(
            '<li class="{}"><svg aria-hidden="true" viewBox="0 0 24 8">'
            '<path class="line" stroke-dasharray="{}" d="M2,4H22"/></svg>{}</li>'
        ).format(ink.color, ink.dash or "none", name)
        for ink, name in legend
    )
    keys = Markup('<ul class="legend">{}</ul>').format(entries) if entries else ""
    written = Markup("").join(Markup('<p class="note">{}</p>').format(note) for note in notes)
    return Markup('<figure class="chart"><figcaption>{}</figcaption>{}{}{}</figure>').format(
        title, svg, keys, written
    )


def _horizontal_grid(scale: Scale, left: float) -> Markup:
    return Markup("").join(
        Markup(
            '<path class="grid" d="M{},{}H{}"/><text class="tick" x="{}" y="{}" '
            'text-anchor="end">{}</text>'
        ).format(left, _round(at), _WIDTH - _RIGHT, left - 6, _round(at + 4.5), label)
        for at, label in scale.ticks()
    )


def _vertical_grid(scale: Scale, top: float, height: float) -> Markup:
    return Markup("").join(
        Markup('<path class="grid" d="M{},{}V{}"/>').format(_round(at), top, height - _BOTTOM)
        for at, _ in scale.ticks()
    )


def _bottom_axis(scale: Scale, height: float, label: str) -> Markup:
    base = height - _BOTTOM
    ticks = Markup("").join(
        Markup(
            '<path class="axis" d="M{},{}v4"/><text class="tick" x="{}" y="{}" '
            'text-anchor="{}">{}</text>'
        ).format(_round(at), base, _round(at), base + 18, _anchor(at), text)
        for at, text in scale.ticks()
    )
    return Markup(
        '<path class="axis" d="M{},{}H{}"/>{}<text class="label" x="{}" y="{}" '
        'text-anchor="end">{}</text>'
    ).format(scale.start, base, scale.end, ticks, _WIDTH - _RIGHT, height - 5, label)


def _horizontal_reference(line: ReferenceLine, scale: Scale, left: float) -> Markup:
    at = _round(scale.pixel(line.value))
    return Markup(
        '<g class="reference"><path d="M{},{}H{}"/><text x="{}" y="{}" text-anchor="end">{}</text>'
        "</g>"
    ).format(left, at, _WIDTH - _RIGHT, _WIDTH - _RIGHT - 2, at - 5, line.label)


def _vertical_reference(line: ReferenceLine, scale: Scale, y: float, height: float) -> Markup:
    at = _round(scale.pixel(line.value))
    is_right = at > _WIDTH / 2
    return Markup(
        '<g class="reference"><path d="M{},{}V{}"/><text x="{}" y="{}" text-anchor="{}">{}</text>'
        "</g>"
    ).format(
        at,
        y - 10,
        height - _BOTTOM,
        at - 5 if is_right else at + 5,
        y,
        "end" if is_right else "start",
        line.label,
    )


def _left_margin(scale: Scale) -> float:
    longest = max((len(label) for _, label in scale.ticks()), default=1)
    return _round(14 + _CHARACTER * longest)


def _anchor(at: float) -> str:
    return "end" if at > _WIDTH - 24 else "start" if at < 12 else "middle"


def _in_words(line: Line) -> str:
    values = [y for _, y in line.points if math.isfinite(y)]
    if not values:
        return f"{line.name}: no values"
    return (
        f"{line.name}: from {format_number(values[0])} to {format_number(values[-1])}, "
        f"lowest {format_number(min(values))}, highest {format_number(max(values))}"
    )


def _inks(lines: Sequence[Line]) -> list[_Ink]:
    """A color and a dash for each line; a guide takes none of the colors."""
    inks = []
    num_colored = 0
    for line in lines:
        if line.style == "guide":
            inks.append(_Ink("guide", _GUIDE_DASH))
        else:
            inks.append(_Ink(_hue(num_colored), _DASHES[num_colored // NUM_HUES % len(_DASHES)]))
            num_colored += 1
    return inks


def _hue(index: int) -> str:
    return f"hue-{index % NUM_HUES}"


def _round(pixel: float) -> float:
    return round(pixel, 1)
