"""What the report shows of a panel that grew: each window, who was there, what was tried, and the audit."""

import re
import xml.etree.ElementTree as ET

import pytest

from orchestra.report.data import StageRecord
from orchestra.report.growth import growth_parts
from orchestra.report.growth_charts import WindowRow, window_map
from orchestra.report.page import _count_rows

HOSTILE = "</svg><script>alert(1)</script>$x_{"


def window(load, unsolved=4, loss=0.5):
    domains = {"sums": {"problems": 10, "unsolved": 0}, "words": {"problems": 10, "unsolved": unsolved}}
    return {"problems": 20, "domains": domains, "load": load, "entropy": 0.7, "loss": loss, "effective": 2.0}


def change(at, action, expert, kept):
    difference = {"difference": 0.1, "low": 0.02, "high": 0.2}
    return {"window": at, "action": action, "expert": expert, "domain": "words", "reason": f"because {expert}",
            "kept": kept, "difference": difference}  # fmt: skip


GROWN = {
    "audit": None,
    "windows": [
        window({"base": 0.25, "sums": 0.75, "idle": 0.0}),
        window({"base": 0.25, "sums": 0.75}, loss=1.5),
        window({"base": 0.0, "sums": 0.5, HOSTILE: 0.5}, unsolved=1),
    ],
    "changes": [change(1, "prune", "idle", True), change(2, "grow", HOSTILE, True), change(2, "grow", "words", False)],
}
AUDIT = {"verdict": "NO-GO", "auc": 0.51, "shuffled_low": 0.4, "shuffled_high": 0.6, "p_value": 0.4,
         "classes": {"grow": 10, "stay": 20}}  # fmt: skip


def drawn(svg):
    """The words of a drawing, which must be well formed."""
    root = ET.fromstring(svg.replace("xlink:", ""))
    return ["".join(one.itertext()).strip() for one in root.iter() if one.tag.endswith("text")]


def test_each_window_has_its_shares_and_those_who_were_there():
    chart, _ = growth_parts("grow", GROWN)
    words = drawn(chart.svg)
    rows = ["no arm solves", "loss", "routing entropy", "base", "sums", "idle"]
    assert [word for word in words if word in rows] == rows
    # unsolved 4, 4 and 1 of 20; a loss may be above 1; idle was there once, and so was the last expert
    numbers = [word for word in words if word.isdigit()]
    assert " ".join(numbers) == "20 20 5 50 150 50 70 70 70 25 25 0 75 75 50 0 50 1 2 3"
    assert words.count("+") == 2 and words.count("−") == 1
    assert "<script>" not in chart.svg and chart.title == "grow: windows"


def test_what_was_not_done_is_grey():
    rows = [WindowRow("no arm solves", [0.1, 0.2])]
    for kept, color in ((True, "second"), (False, "muted")):
        svg = window_map("k", "t", rows, {1: [("+", kept)]})
        (style,) = re.findall(r"<text[^>]*style=\"([^\"]*)\"[^>]*>\+</text>", svg)
        assert f"var(--{color})" in style


def test_a_hundred_windows_are_shades_without_numbers():
    """A number would not fit; every tenth window is numbered."""
    words = drawn(window_map("k", "t", [WindowRow("loss", [0.5] * 100)], {}))
    assert [word for word in words if word.isdigit()] == [str(n) for n in range(10, 101, 10)]


def test_what_was_tried_is_told_with_its_numbers():
    *_, table = growth_parts("grow", GROWN)
    rows = {row.name: row.value for row in _count_rows(table.tree)}
    assert list(table.tree) == [
        "after window 1: prune idle", f"after window 2: grow {HOSTILE}", "after window 2: grow words",
    ]  # fmt: skip
    assert table.tree["after window 2: grow words"] == {
        "done": "no", "points on problems set aside": "+10.0 [+2.0, +20.0]", "why": "because words",
    }  # fmt: skip
    assert rows["done"] == "no", "the last one's"


def test_an_audit_is_told_also_where_it_stopped_everything():
    (table,) = growth_parts("grow", {"audit": AUDIT, "windows": [], "changes": []})
    assert table.tree["verdict"] == "NO-GO" and table.tree["held-out AUC"] == "0.510" and table.tree["p"] == "0.4"
    assert table.tree["rows"] == {"grow": 10, "stay": 20}


@pytest.mark.parametrize("found", [None, "", 3, []])
def test_a_stage_that_has_not_grown_yet_shows_nothing(found):
    assert list(growth_parts("grow", found)) == []


def test_the_stage_shows_both_growth_and_evaluation():
    parts = StageRecord("grow", "grow", outputs={"growth.json": GROWN}).parts
    assert [part.title for part in parts] == ["grow: windows", "grow: what was tried"]
