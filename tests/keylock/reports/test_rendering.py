"""Pages: what they are given is text, whatever it looks like; tables name their rows; charts keep to their frame."""

import re

import pytest
from html_page import Page
from PIL import Image

pytest.importorskip("jinja2")

import itertools

from keylock.reports import Card, Cell, Line, Table, embed, line_chart, render_page

HOSTILE = [
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "شجرة 'קוף'",
    "x" * 300,
    "a & b &amp; c",
]


@pytest.fixture
def template(tmp_path, monkeypatch):
    """A package `report_of_a_test` with a template that shows one of everything."""
    package = tmp_path / "report_of_a_test"
    (package / "templates").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "templates" / "all.html").write_text(
        '{% extends "base.html" %}{% import "parts.html" as parts %}{% block title %}{{ name }}{% endblock %}'
        "{% block content %}<h1>{{ name }}</h1>{{ parts.cards(cards) }}{{ parts.table(table) }}"
        "{{ parts.definitions(rows) }}{{ parts.figure(picture) }}{{ parts.chart(chart) }}{% endblock %}"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return "report_of_a_test", "all.html"


def page_of(template, name):
    red = Image.new("RGB", (4, 4), "red")
    return Page(
        render_page(
            *template,
            name=name,
            cards=[Card(name, name, "bad")],
            table=Table.of(name, (name, "b"), [(name, Cell("1", name, "good"))]),
            rows=[(name, name), ("left out", "")],
            picture=embed(red, name, caption=name, kind="pixels"),
            chart=line_chart([Line(name, ((0, 0), (1, 1)))], title=name, x_label=name, y_label=name),
        )
    )


@pytest.mark.parametrize("name", HOSTILE)
def test_whatever_is_shown_is_text(template, name):
    page = page_of(template, name)
    page.check()
    assert name in page.words
    assert page.all("img")[0]["alt"] == name
    assert len(page.all("img")) == 1
    assert "left out" not in page.shown


def test_rows_are_named_by_their_first_cell_and_columns_by_their_header(template):
    page = page_of(template, "row")
    assert page.all("th") == [{"scope": "col"}, {"scope": "col"}, {"scope": "row"}]
    # On a phone, where there is no row of headers, every cell shows its own.
    assert page.all("td") == [{"class": "good", "data-title": "b"}]


def test_a_name_that_is_missing_is_a_fault_and_not_a_gap(template):
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError):
        render_page(*template, name="alone")


@pytest.mark.parametrize("logarithmic", [False, True])
@pytest.mark.parametrize("count", [1, 2, 40])
def test_everything_of_a_chart_lies_within_it(count, logarithmic):
    lines = [
        Line(
            f"line {number}",
            tuple((1 + 10.0**place, (-1) ** number * 0.9) for place in range(count)),
            colour=number,
            band=tuple((-1.2, 1.3) for _ in range(count)),
            dots=((5e5, 1.1),),
        )
        for number in range(12)
    ]
    chart = line_chart(lines, title="t", x_label="x", y_label="y", logarithmic=logarithmic)
    for line in chart.lines:
        for text in (line.path, line.band):
            for x, y in re.findall(r"(\S+),(\S+)", text):
                assert chart.left <= float(x) <= chart.right
                assert 0 <= float(y) <= chart.foot
    places = [tick.at for tick in chart.across]
    assert places == sorted(places)
    assert all(second - first >= 30 for first, second in itertools.pairwise(places))
    assert [tick.text for tick in chart.up if tick.zero] == ["0.00"]


def test_the_colours_of_a_chart_tell_lines_apart_for_as_long_as_there_are_any():
    lines = [Line(str(number), ((0, 0), (1, 1)), colour=number) for number in range(16)]
    kinds = {line.kind for line in line_chart(lines, title="t", x_label="x", y_label="y").lines}
    assert len(kinds) == 16
