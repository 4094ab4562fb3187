import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

import veritune.reports
from veritune.reports.axes import Axis
from veritune.reports.figures import (
    NUM_HUES,
    Bar,
    Line,
    ReferenceLine,
    bar_chart,
    line_chart,
    smoothed,
    thinned,
)

STEP = Axis("step")
LOSS = Axis("loss")
HOSTILE = "\"><script>alert(1)</script>&'<b>"


def parsed(figure) -> ElementTree.Element:
    """The drawing as a tree; fails unless every tag is closed and every text escaped."""
    return ElementTree.fromstring(str(figure))


def paths(figure, kind: str) -> list[str]:
    return [
        element.attrib["d"]
        for group in parsed(figure).iterfind("./svg/g")
        for element in group.iter("path")
        if element.attrib.get("class") == kind
    ]


def num_points(path: str) -> int:
    return path.count(",")


def chart(*lines: Line, y: Axis = LOSS, **named):
    return line_chart("Loss", lines, x=STEP, y=y, **named)


def test_thinning_keeps_the_extremes_of_ten_thousand_points():
    points = tuple((float(i), math.sin(i / 50)) for i in range(10_000))
    points = (*points[:5_010], (5_010.0, 9.0), (5_011.0, -9.0), *points[5_012:])

    (piece,) = thinned(points, 100)

    assert len(piece) <= 4 * 101
    assert piece[0] == points[0]
    assert piece[-1] == points[-1]
    assert (5_010.0, 9.0) in piece
    assert (5_011.0, -9.0) in piece
    assert list(piece) == sorted(piece)


def test_thinning_leaves_few_points_as_they_are():
    points = ((1.0, 2.0), (2.0, 1.0), (3.0, 5.0))
    assert thinned(points, 500) == [points]


def test_thinning_breaks_the_line_where_values_are_missing():
    points = ((0.0, 1.0), (1.0, math.nan), (2.0, 3.0), (3.0, 4.0), (4.0, math.inf))
    assert thinned(points, 500) == [((0.0, 1.0),), ((2.0, 3.0), (3.0, 4.0))]


def test_thinning_bounds_the_pieces_of_a_line_that_is_half_missing():
    points = tuple((float(i), math.nan if i % 2 else 1.0) for i in range(10_000))
    pieces = thinned(points, 100)
    assert len(pieces) <= 101
    assert sum(map(len, pieces)) <= 4 * 101


def test_thinning_of_nothing_is_nothing():
    assert thinned((), 100) == []
    assert thinned(((1.0, math.nan),), 100) == []
    assert thinned(((1.0, 2.0), (1.0, 3.0)), 100) == [((1.0, 2.0), (1.0, 3.0))]


def test_smoothing_weighs_a_value_half_after_the_half_life():
    averaged = smoothed(((0.0, 8.0), (1.0, 2.0)), half_life=1)
    assert averaged[0] == (0.0, 8.0)
    assert averaged[1][1] == pytest.approx((0.5 * 8 + 2) / (0.5 + 1))


def test_smoothing_keeps_gaps_and_is_not_spoiled_by_them():
    averaged = smoothed(((0.0, 4.0), (1.0, math.nan), (2.0, 1.0)), half_life=1)
    assert math.isnan(averaged[1][1])
    assert averaged[2][1] == pytest.approx((0.25 * 4 + 1) / (0.25 + 1))


def test_a_smoothed_line_is_drawn_over_the_faint_raw_one():
    points = tuple((float(i), float(i % 2)) for i in range(100))
    figure = chart(Line("loss", points, "smoothed"))
    assert len(paths(figure, "raw")) == len(paths(figure, "line")) == 1
    assert paths(figure, "raw") != paths(figure, "line")
    assert str(figure).index('class="raw"') < str(figure).index('class="line"')


def test_thousands_of_points_make_a_small_drawing():
    points = tuple((float(i), math.sin(i)) for i in range(50_000))
    figure = chart(Line("loss", points, "smoothed"))
    for kind in ("raw", "line"):
        (path,) = paths(figure, kind)
        assert 1_000 < num_points(path) <= 4 * 561


def test_a_missing_value_breaks_the_drawn_line():
    points = ((0.0, 1.0), (1.0, 2.0), (2.0, math.nan), (3.0, 2.0), (4.0, 1.0))
    (path,) = paths(chart(Line("loss", points)), "line")
    assert path.count("M") == 2
    assert "nan" not in str(chart(Line("loss", points))).lower()


def test_a_point_between_gaps_is_drawn():
    points = ((0.0, math.nan), (1.0, 2.0), (2.0, math.nan))
    (path,) = paths(chart(Line("loss", points)), "line")
    first, second = path.removeprefix("M").split()
    assert first == second


def test_a_logarithmic_axis_leaves_zeros_out_and_says_how_many():
    points = ((0.0, 1.0), (1.0, 0.0), (2.0, -1e-17), (3.0, 0.01))
    figure = chart(Line("KL", points), y=Axis("KL (nats)", log=True))
    (path,) = paths(figure, "line")
    assert path.count("M") == 2
    assert "2 at or below zero" in str(figure)
    assert "at or below zero" not in str(chart(Line("KL", points)))


def test_a_logarithmic_x_axis_leaves_step_zero_out():
    points = ((0.0, 1.0), (1.0, 2.0), (100.0, 3.0))
    (path,) = paths(line_chart("t", [Line("a", points)], x=Axis("step", log=True), y=LOSS), "line")
    assert num_points(path) == 2


@pytest.mark.parametrize("points", [(), ((1.0, math.nan),), ((1.0, math.inf), (2.0, -math.inf))])
@pytest.mark.parametrize("log", [False, True])
def test_a_chart_without_values_says_so(points, log):
    figure = chart(Line("loss", points, "marked"), y=Axis("loss", log=log))
    assert "no values" in "".join(parsed(figure).itertext())


def test_a_chart_without_lines_is_drawn():
    assert "no values" in str(chart())


def test_the_legend_names_the_lines_only_where_there_are_several():
    one, two = Line("training", ((0.0, 1.0),)), Line("held-out", ((0.0, 2.0),))
    assert "legend" not in str(chart(one))
    names = [e.text or "".join(e.itertext()) for e in parsed(chart(one, two)).iter("li")]
    assert names == ["training", "held-out"]


def test_marked_lines_have_a_dot_with_its_value_at_every_point():
    figure = chart(Line("held-out", ((0.0, 0.7), (50.0, 0.6)), "marked"))
    titles = [circle.findtext("title") for circle in parsed(figure).iter("circle")]
    assert titles == ["held-out, 0: 0.7000", "held-out, 50: 0.6000"]


def test_a_reference_line_is_in_view_and_labelled():
    figure = chart(Line("loss", ((0.0, 1.0), (1.0, 2.0))), reference=ReferenceLine(5.0, "log 2"))
    (group,) = [g for g in parsed(figure).iter("g") if g.attrib.get("class") == "reference"]
    assert group.findtext("text") == "log 2"
    y = float(re.match(r"M[\d.]+,([\d.]+)H", group.find("path").attrib["d"])[1])
    assert 0 < y < 100


def test_a_reference_line_below_zero_is_left_out_of_a_logarithmic_axis():
    reference = ReferenceLine(0.0, "none")
    figure = chart(Line("a", ((0.0, 1.0),)), y=Axis("y", log=True), reference=reference)
    assert "reference" not in str(figure)


def test_drawings_describe_themselves_to_those_who_do_not_see_them():
    svg = parsed(chart(Line("training", ((0.0, 0.7), (1.0, 0.5))))).find("svg")
    assert svg.attrib["role"] == "img"
    assert svg.attrib["aria-label"] == (
        "Loss. training: from 0.700 to 0.500, lowest 0.500, highest 0.700"
    )
    assert svg.findtext("title") == "Loss"


def test_hostile_names_are_text():
    line = Line(HOSTILE, ((0.0, 1.0), (1.0, 2.0)), "marked")
    figures = [
        line_chart(
            HOSTILE,
            [line, line],
            x=Axis(HOSTILE),
            y=Axis(HOSTILE),
            reference=ReferenceLine(1.5, HOSTILE),
        ),
        bar_chart(
            HOSTILE,
            [Bar(HOSTILE, 1.0)],
            axis=Axis(HOSTILE),
            references=[ReferenceLine(1.5, HOSTILE)],
        ),
    ]
    for figure in figures:
        tree = parsed(figure)
        assert not list(tree.iter("script"))
        assert not list(tree.iter("b"))
        assert tree.findtext("figcaption") == HOSTILE


def test_bars_start_at_zero_and_are_as_long_as_their_values():
    rects = list(parsed(bar_chart("r", [Bar("a", 1.0), Bar("b", 2.0)], axis=LOSS)).iter("rect"))
    (short, long) = (float(rect.attrib["width"]) for rect in rects)
    assert long == pytest.approx(2 * short, abs=0.2)
    assert rects[0].attrib["x"] == rects[1].attrib["x"]


def test_a_negative_bar_points_to_the_left():
    rects = list(parsed(bar_chart("r", [Bar("a", -1.0), Bar("b", 1.0)], axis=LOSS)).iter("rect"))
    left, right = ((float(r.attrib["x"]), float(r.attrib["width"])) for r in rects)
    assert left[0] + left[1] == pytest.approx(right[0], abs=0.2)


def test_a_bar_that_is_not_a_number_keeps_its_place_and_says_so():
    figure = bar_chart("r", [Bar("a", math.nan), Bar("b", 1.0)], axis=LOSS)
    assert len(list(parsed(figure).iter("rect"))) == 1
    values = [t.text for t in parsed(figure).iter("text") if t.attrib.get("class") == "value"]
    assert values == ["–", "1"]


def test_a_bar_of_an_estimate_has_its_interval():
    figure = bar_chart("r", [Bar("a", 1.0, low=0.8, high=1.2)], axis=LOSS)
    (interval,) = paths(figure, "interval")
    low, high = re.match(r"M([\d.]+),[\d.]+H([\d.]+)", interval).groups()
    assert float(low) < float(high)


def test_bars_without_any_are_drawn():
    assert parsed(bar_chart("r", [], axis=LOSS)) is not None


def test_lines_beyond_the_palette_repeat_it_dashed():
    lines = [Line(str(i), ((0.0, float(i)), (1.0, 2.0))) for i in range(NUM_HUES + 1)]
    groups = list(parsed(chart(*lines)).iterfind("./svg/g"))
    assert groups[0].attrib["class"] == groups[-1].attrib["class"] == "hue-0"
    assert groups[0].find("path").attrib["stroke-dasharray"] == "none"
    assert groups[-1].find("path").attrib["stroke-dasharray"] != "none"


def test_a_guide_is_dashed_and_takes_no_color_from_the_lines():
    points = ((0.0, 1.0), (1.0, 2.0))
    figure = parsed(chart(Line("one", points), Line("limit", points, "guide"), Line("two", points)))

    groups = [group.attrib["class"] for group in figure.iterfind("./svg/g")]
    (guide,) = figure.iterfind("./svg/g[@class='guide']")

    assert groups == ["hue-0", "guide", "hue-1"]
    assert guide.find("path").attrib["stroke-dasharray"] != "none"
    assert [item.attrib["class"] for item in figure.iter("li")] == groups


def test_notes_stand_below_the_chart_escaped():
    text = str(chart(Line("one", ((0.0, 1.0),)), notes=(HOSTILE,)))

    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_the_style_of_the_page_has_every_hue_in_light_and_dark():
    template = Path(veritune.reports.__file__).with_name("template.html").read_text("utf-8")
    for hue in range(NUM_HUES):
        assert len(re.findall(rf"--hue-{hue}: #", template)) == 2
        assert f".hue-{hue} {{" in template
    assert f"--hue-{NUM_HUES}:" not in template
