import re

import pytest

from veritune.reports.axes import Axis
from veritune.reports.figures import Line, line_chart
from veritune.reports.page import Cell, Page, Section, Table, number, render, share, write_page

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(1)>'


def full_page(text: str) -> Page:
    """A page with the text in every place that can hold one."""
    table = Table((text, "p"), ((Cell(text, "code"), share(0.5)), (Cell(text), number(1.0))), text)
    figure = line_chart(text, [Line(text, ((0.0, 1.0),))], x=Axis(text), y=Axis(text))
    section = Section(text, (text,), (figure,), (table, table))
    folded = Section(text, tables=(table,), folded=True)
    return Page(text, text, ((text, text),), (text,), (text,), (section, folded))


def test_hostile_text_stays_text_in_every_place():
    harmless, hostile = render(full_page("harmless")), render(full_page(HOSTILE))
    assert "<script" not in hostile
    assert "<img" not in hostile
    assert len(re.findall(r"<[a-z]", hostile)) == len(re.findall(r"<[a-z]", harmless))
    assert hostile.count("&lt;script&gt;") >= harmless.count("harmless")


def test_a_page_needs_nothing_from_outside():
    html = render(full_page("text"))
    assert not re.search(r"https?:|//|\bsrc=|\bhref=|@import|url\(|<link|<script|<iframe", html)


def test_a_page_forbids_itself_to_load_anything():
    html = render(full_page("text"))
    assert "default-src 'none'" in html
    assert html.index("Content-Security-Policy") < html.index("<style")


def test_code_keeps_its_spaces_and_lines_and_empty_code_says_so():
    table = Table(("completion",), ((Cell("a  b\n c", "code"),), (Cell("", "code"),)))
    html = render(Page("t", "l", sections=(Section("s", tables=(table,)),)))
    assert "<code>a  b\n c</code>" in html
    assert "<em>empty</em>" in html


@pytest.mark.parametrize(
    ("value", "percent"),
    [(0.25, "25.0%"), (0.0, "0.0%"), (7.0, "100.0%"), (-1.0, "0.0%"), (float("nan"), "0.0%")],
)
def test_the_bar_of_a_share_stays_in_its_cell(value, percent):
    assert share(value).percent == percent


def test_a_header_over_numbers_is_aligned_with_them():
    table = Table(("name", "KL"), ((Cell("a"), number(0.5)), (Cell("b"), number(0.1))))
    assert [table.is_number(column) for column in (0, 1)] == [False, True]


def test_a_table_without_rows_is_drawn():
    html = render(Page("t", "l", sections=(Section("s", tables=(Table(("a",), ()),)),)))
    assert "<th" in html


def test_lone_surrogates_do_not_stop_a_page(tmp_path):
    file = write_page(Page("t", "half a pair: \ud800"), tmp_path / "below" / "page.html")
    assert "half a pair: ?" in file.read_text("utf-8")
    assert [path.name for path in file.parent.iterdir()] == ["page.html"]
