"""The curves of a stage that was asked on its way, which step is kept and whether it memorises, in words."""

import json

from orchestra.report.data import StageRecord, read_run
from orchestra.report.page import render
from orchestra.report.parts import Chart
from orchestra.run.ledger import StageResult


def rows(memorised=(), read=True):
    """Steps 10 to 40: 20 %, 40 %, 40 %, 30 %."""
    made = []
    for step, accuracy in zip((10, 20, 30, 40), (0.2, 0.4, 0.4, 0.3), strict=True):
        row = {"step": step, "accuracy": accuracy, "low": accuracy - 0.1, "high": accuracy + 0.1, "problems": 80}
        if read:
            row |= {"trained_nll": 1 / step, "held_out_nll": 2 / step, "memorised": int(step in memorised)}
            row |= {"held_out_ratio": 1.2 + step / 100, "held_out_ratio_low": 1.01, "held_out_ratio_high": 2.0}
        made.append(row)
    return tuple(made)


def parts(kind="sft", kept=20, **how):
    result = StageResult("imitate", kind, extra={"kept_step": kept}) if kept else None
    return [part for part in StageRecord("imitate", kind, sweep=rows(**how), result=result).parts
            if isinstance(part, Chart)]  # fmt: skip


def test_the_step_that_is_kept_is_told_beside_the_last():
    accuracy, traces = parts()
    assert accuracy.title == "Validation accuracy of imitate"
    assert accuracy.note == "on 80 validation problems, step 20 is kept (filled): 40.0\u00a0%, the last has 30.0\u00a0%"
    assert "40.0 %" in accuracy.svg and "30.0 %" not in accuracy.svg, "written beside the step that is kept"
    assert "set aside" in traces.svg and "trained on" in traces.svg
    assert parts(kept=40)[0].note.endswith("step 40 is kept (filled)")
    assert parts(kept=None)[0].note == "on 80 validation problems, so far", "while it trains"


def test_the_alarm_is_said_in_words():
    assert parts()[1].note == (
        "nats per answer token; no alarm: at the last, traces set aside have 1.60 [1.01, 2.00] times the perplexity of "
        "those trained on"
    )
    assert "ALARM: memorised from step 30 on, where traces set aside have 1.50 " in parts(memorised=(30, 40))[1].note


def test_grpo_has_the_one_and_stages_that_nobody_asks_have_none():
    (accuracy,) = parts(kind="grpo", read=False)
    assert accuracy.title == "Validation accuracy of imitate"
    for kind in ("sft", "grpo", "distill"):
        assert not [part for part in StageRecord("x", kind).parts if isinstance(part, Chart)]


def test_they_are_on_the_page_of_a_run_in_progress(tmp_path):
    place = tmp_path / "01-imitate"
    place.mkdir()
    (tmp_path / "run.json").write_text("{}")
    (place / "config.json").write_text(json.dumps({"stage": {"name": "imitate", "kind": "sft"}}))
    lines = [json.dumps(row) + "\n" for row in rows(memorised=(20,))]
    (place / "sweep.jsonl").write_text("".join(lines) + '{"step": 50, "accur')
    page = render(read_run(tmp_path))
    assert "on 80 validation problems, so far" in page and "ALARM: memorised from step 20 on" in page
    (place / "sweep.jsonl").write_text(lines[0])
    assert "so far" in render(read_run(tmp_path)), "of one point"
