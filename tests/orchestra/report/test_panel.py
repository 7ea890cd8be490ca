"""What the report shows of a panel: every way of choosing beside the router, and a map of domains and arms."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from evals.panel import Draws, PanelEvaluation, evaluate_panel
from orchestra.report.page import _count_rows
from orchestra.report.panel import panel_parts, said
from orchestra.report.panel_charts import MapRow, panel_map

NBSP = "\u00a0"


def panel(arms=("base", "sums", "rates"), problems=40, generalist=True, name="a<b&c"):
    """Experts that are right in their own domain alone, the base nowhere; a router that knows the domains but sends
    a quarter of the second one to the base."""
    half = problems // 2
    answers_APS = np.zeros((len(arms), problems, 2))
    answers_APS[1, :half], answers_APS[2, half:] = 1, 1
    arm_P = np.repeat([1, 2], half)
    arm_P[half : half + half // 4] = 0
    domains = (name,) * half + ("rates",) * half
    draws = Draws(arms, domains, answers_APS, answers_APS, np.ones((problems, 2)) if generalist else None)
    return evaluate_panel(draws, arm_P, np.eye(len(arms))[arm_P], 0.95, table={name: "sums", "rates": "rates"})


def words(svg):
    """The texts of a drawing, which must be well formed."""
    # the page's parser knows the prefix
    root = ET.fromstring(svg.replace("xlink:", ""))
    return ["".join(one.itertext()).strip() for one in root.iter() if one.tag.endswith("text")]


def test_each_way_is_beside_the_router_with_how_far_it_is_ahead():
    chart, _, table = panel_parts("look", panel())
    told = words(chart.svg)
    assert len(re.findall(r"fill: var\(--second\)", chart.svg)) == 1, "the router's dot is filled, no other is"
    ways = ["routed", "best single", "generalist", "random", "domain table", "task oracle", "instance oracle"]
    assert [word for word in told if word in ways] == ways
    # 15 of 20 in one domain, 20 of 20 in the other; one expert has half, as has a random one; the others have all
    assert [word for word in told if re.fullmatch(r"[\d.]+ %", word)] == [
        "87.5 %", "50.0 %", "100.0 %", "50.0 %", "100.0 %", "100.0 %", "100.0 %",
    ]  # fmt: skip
    ahead = [word for word in told if re.match(r"[+−][\d.]+ \[", word)]
    assert [word.split()[0] for word in ahead] == ["+37.5", "−12.5", "+37.5", "−12.5", "−12.5", "−12.5"]
    rows = {row.name: row.value for row in _count_rows(table.tree)}
    assert rows["oracle gap, in points"].startswith("+12.5 [")
    assert rows["share recovered of what the oracle adds to the best single expert"].startswith(f"75{NBSP}% [")
    assert rows["sums"] == f"50.0{NBSP}%" and rows["base"] == f"12.5{NBSP}%"
    assert "best single (sums)" in rows and rows["routing entropy (0 decided, 1 undecided)"] == "0.000"


def test_a_rival_that_was_not_measured_is_not_shown():
    chart, _, table = panel_parts("look", panel(generalist=False))
    assert "generalist" not in words(chart.svg) and "generalist" not in table.tree["accuracy"]


def test_the_map_has_accuracy_load_and_number_in_every_cell():
    _, chart, _ = panel_parts("look", panel())
    told = words(chart.svg)
    assert [word for word in told if re.fullmatch(r"[\d.]+ %", word)] == [
        "0.0 %", "100.0 %", "0.0 %", "0.0 %", "0.0 %", "100.0 %", "0.0 %", "50.0 %", "50.0 %",
    ]  # fmt: skip
    # of 20 problems 5 to the base; of all 40: 5, 20 and 15, which are 12, 50 and 38 % (half to even)
    assert [word for word in told if word.startswith("→")] == [
        "→ 0 %", "→ 100 %", "→ 0 %", "→ 25 %", "→ 0 %", "→ 75 %", "→ 12 %", "→ 50 %", "→ 38 %",
    ]  # fmt: skip
    assert [word for word in told if word.startswith("n =")] == ["n = 20", "n = 20", "n = 40"]
    assert "a<b&c" in told, "a domain's name is text, whatever it holds"


def test_colours_are_the_pages_and_the_shade_is_the_accuracy():
    _, chart, _ = panel_parts("look", panel())
    assert "#0000" not in chart.svg
    shades = [float(shade) for shade in re.findall(r"opacity: ([\d.]+)", chart.svg)]
    assert len(shades) >= 9 and max(shades) <= 0.5, "words stay readable on the darkest"


@pytest.mark.parametrize("count", [2, 9])
def test_many_arms_with_long_names_and_what_was_not_graded(count):
    arms = [f"a-rather-long-name-{n}" for n in range(count)]
    row = MapRow("domain", 3, [None, *[0.5] * (count - 1)], [1 / count] * count, 1)
    told = words(panel_map("k", "t", arms, [row]))
    assert "–" in told and ("50.0 %" if count == 2 else "50") in told
    assert len([word for word in told if word.startswith("a-rather-long-nam")]) == count, "not cut to nothing"
    nothing = MapRow("domain", 3, [None] * count, [1 / count] * count)
    assert words(panel_map("k", "t", arms, [nothing])).count("–") == count


def test_where_there_is_nothing_to_recover_it_is_said():
    answers_APS = np.tile([[[1.0]], [[1.0]]], (1, 10, 1))
    draws = Draws(("base", "sums"), ("all",) * 10, answers_APS, answers_APS)
    found = evaluate_panel(draws, np.ones(10, dtype=int), np.full((10, 2), 0.5), 0.95)
    *_, table = panel_parts("look", found)
    assert table.tree["share recovered of what the oracle adds to the best single expert"] == (
        "unknown: the oracle is not known to be better than the best single expert ([0.0, 0.0] points)"
    )


def test_it_is_drawn_from_what_is_on_disk_to_the_same_bytes():
    found = panel()
    one, other = (list(panel_parts("look", of)) for of in (found, PanelEvaluation.from_json(found.to_json())))
    assert one == other
    assert said(found) == (f"routed 87.5{NBSP}%, +37.5 points to sums, the best single expert; oracle gap +12.5")
