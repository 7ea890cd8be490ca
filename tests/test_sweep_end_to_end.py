"""The miniature recipe with stages that are asked on their way: killed in an evaluation, on two processes, changed."""

import signal

import pytest
import test_end_to_end as one
import test_two_processes as two

from models.sweep import best_of, read_sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
STEPS = {"imitate": [2, 4, 6], "polish": [2, 4]}
RECIPE = (
    one.RECIPE.replace("test_limit: 12}", "test_limit: 12, validation: 10}")
    .replace("learning_rate: 1e-3}", "learning_rate: 1e-3, evaluate_every: 2, keep: best}")
    .replace("reference: start,", "reference: start, evaluate_every: 2, keep: best,")
)


def sweep(folder, stage):
    (place,) = (folder / "runs" / "mini-none").glob(f"*-{stage}")
    assert not (place / "checkpoints").exists(), "with the adapters that are not kept"
    return read_sweep(place)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(folder, process) of the recipe run from beginning to end."""
    folder = one.write(tmp_path_factory.mktemp("whole"), RECIPE)
    return folder, one.orchestra(folder)


def test_the_best_step_is_kept_and_said(whole):
    folder, done = whole
    assert done.returncode == 0, done.stderr[-3000:]
    assert "traces of 2 problems aside to tell memorising" in done.stdout or "traces of 1 problems" in done.stdout
    for stage, steps in STEPS.items():
        lines, extra = sweep(folder, stage), one.result(folder, stage)["extra"]
        assert [line["step"] for line in lines] == steps
        best = best_of(lines)
        assert (extra["kept_step"], extra["validation_accuracy"]) == (best["step"], best["accuracy"])
        assert f"keeps step {best['step']:.0f} of {steps[-1]}" in done.stdout
    assert "held_out_ratio" in sweep(folder, "imitate")[0] and "held_out_ratio" not in sweep(folder, "polish")[0]
    assert "Validation accuracy of polish" in (folder / "runs" / "mini-none" / "report.html").read_text()


@pytest.mark.parametrize("stage", STEPS)
def test_killed_in_an_evaluation_it_ends_with_the_same_bytes(whole, tmp_path, stage):
    """The metrics of step 4 are told before the policy is asked at step 4."""
    folder, _ = whole
    one.write(tmp_path, RECIPE)
    assert one.killed_in(tmp_path, stage, 4) == -signal.SIGKILL
    done = one.orchestra(tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in STEPS:
        assert sweep(tmp_path, name) == sweep(folder, name)
    for name in ("imitate", "explore", "polish", "release"):
        assert one.result(tmp_path, name)["adapter_sha256"] == one.result(folder, name)["adapter_sha256"], name
        assert one.result(tmp_path, name)["accuracy"] == one.result(folder, name)["accuracy"], name


def test_two_processes_keep_the_same_step(whole, tmp_path):
    """Answers and verdicts are those of one process; perplexities follow from weights that differ by rounding."""
    folder, _ = whole
    one.write(tmp_path, RECIPE)
    assert two.start(tmp_path, one.command(tmp_path)[1:]).wait(900) == 0, (tmp_path / "out.txt").read_text()[-3000:]
    for stage in STEPS:
        alone, both = sweep(folder, stage), sweep(tmp_path, stage)
        for line, other in zip(alone, both, strict=True):
            nll = {key for key in line if "nll" in key or "ratio" in key} - {"truncation_rate"}
            assert {k: v for k, v in line.items() if k not in nll} == {k: v for k, v in other.items() if k not in nll}
            assert [line[key] for key in nll] == pytest.approx([other[key] for key in nll], rel=1e-3)
        assert one.result(folder, stage)["extra"]["kept_step"] == one.result(tmp_path, stage)["extra"]["kept_step"]


def test_a_validation_source_that_is_tested_is_refused_before_anything_is_trained(tmp_path):
    rows = "".join(f'{{"question": "What is {n} + 1?", "answer": "{n + 1}"}}\n' for n in range(4))
    (tmp_path / "test.jsonl").write_text(rows)
    (tmp_path / "own.jsonl").write_text(rows.splitlines(keepends=True)[2])
    one.write(
        tmp_path,
        RECIPE.replace("validation: 10", "validation: own.jsonl").replace("test: embedded", "test: test.jsonl"),
    )
    done = one.orchestra(tmp_path)
    assert done.returncode == 1 and "1 of the 1 problems" in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not list((tmp_path / "runs").glob("*/0*/metrics.jsonl"))
