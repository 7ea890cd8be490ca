"""Where a run is, from its folder: while files are written, after a kill, and for all runs of an experiment."""

import fcntl
import json
import os
import sys
import threading

import pytest
from fake_stages import STAGES

from orchestra import cli
from orchestra.config.faults import UserError
from orchestra.report.live import RELOAD_SECONDS
from orchestra.report.page import write_report
from orchestra.run import overview
from orchestra.run.folder import in_progress, locked
from orchestra.run.ledger import Fingerprint, Ledger, LedgerEntry, StageResult, write_json
from orchestra.run.progress import Done, Progress
from orchestra.run.show import current_of, results_of, sentences
from orchestra.run.state import bars_json, current_stage, last_line

HOSTILE = "</script><img src=x onerror=alert(1)>"


def begun(run_dir, finished=2, kind="grpo", gate=None):
    """A run of the stages of 40d, so many of which are finished, the next one begun with 40 steps in all."""
    run_dir.mkdir(parents=True)
    stages = [{"name": name, "kind": kind} for name in STAGES[1:]]
    write_json(run_dir / "run.json", {"name": "40d", "recipe": {"name": "40d", "stages": stages}})
    ledger = Ledger(run_dir)
    for index, name in enumerate(STAGES[: finished + 1]):
        folder = run_dir / f"{index:02}-{name}"
        folder.mkdir()
        write_json(folder / "config.json", {"stage": {"name": name, "kind": kind, "steps": 40}})
        if index < finished:
            last = index == finished - 1
            result = StageResult(name, kind, 0.5, 0.4, 0.6, seconds=60.0, gate=gate if last else None)
            write_json(folder / "result.json", result.to_json())
            ledger.record(LedgerEntry(folder.name, Fingerprint({}, {}, {}), {}, result))
    return run_dir


def test_a_run_is_in_progress_while_its_process_holds_the_lock(tmp_path):
    assert not in_progress(tmp_path) and not list(tmp_path.iterdir()), "to ask leaves nothing behind"
    with locked(tmp_path):
        assert in_progress(tmp_path) and in_progress(tmp_path)
    assert not in_progress(tmp_path)


def test_who_asks_takes_the_lock_from_nobody(tmp_path):
    """Asking holds it for microseconds, here for a tenth of a second; who works there holds it for longer."""
    (tmp_path / ".lock").touch()
    with open(tmp_path / ".lock") as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)
        timer = threading.Timer(0.1, fcntl.flock, (asking, fcntl.LOCK_UN))
        timer.start()
        with locked(tmp_path), pytest.raises(UserError, match=f"another run \\(process {os.getpid()}\\)"):
            timer.join()
            with locked(tmp_path):
                pass


def test_every_beginning_of_a_file_can_be_read(tmp_path):
    """metrics.jsonl at each byte of its way, a line being whole when its bracket is there."""
    lines = [json.dumps({"step": step, "reward": step / 4}) + "\n" for step in (1, 2, 3)]
    whole = "".join(lines)
    for size in range(len(whole) + 1):
        (tmp_path / "metrics.jsonl").write_text(whole[:size])
        done = sum(size >= len("".join(lines[:at])) - 1 for at in (1, 2, 3))
        assert last_line(tmp_path / "metrics.jsonl") == ({"step": done, "reward": done / 4} if done else {})
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n[1]\n{"x": 2}\n\xff\xfe\n{"step": 2, "a": NaN, "b": "x"}\n')
    assert last_line(tmp_path / "metrics.jsonl") == {"step": 2}
    assert last_line(tmp_path / "none") == {}


def test_a_long_course_is_not_read_whole(tmp_path):
    with open(tmp_path / "metrics.jsonl", "w") as file:
        for step in range(20_000):
            file.write(json.dumps({"step": step, "reward": 0.5}) + "\n")
    assert last_line(tmp_path / "metrics.jsonl")["step"] == 19_999


def test_the_stage_in_progress_and_the_one_that_was_stopped(tmp_path):
    run = begun(tmp_path / "run")
    (run / "02-imitate" / "metrics.jsonl").write_text('{"step": 12, "loss": 0.25}\n')
    names = frozenset(STAGES[:2])
    stopped = current_stage(run, names)
    assert (stopped.name, stopped.number, stopped.status, stopped.step, stopped.steps) == (
        "imitate", 2, "stopped", 12, 40,
    )  # fmt: skip
    bars = [Done("imitate: imitate", 13, 40, "steps", rate=0.5, note="loss 0.25")]
    (run / "progress.json").write_text(bars_json("imitate", bars, stopped.began + 1))
    assert current_stage(run, names).bars == (), "of a process that is gone"
    with locked(run):
        going = current_stage(run, names)
        # 27 steps at two seconds each
        assert going.running and going.bars == tuple(bars) and going.step == 13 and going.bar.left == 54
        said = sentences(going, 7)
        assert said[0].startswith("in progress: imitate (grpo), stage 3 of 7, for 0:0")
        assert said[1:] == ["  imitate: imitate: 13/40 steps, 2.0 s/step, 0:54 left", "  loss 0.25"]
        for left, told in (("explore", 1), ("imitate", -1)):
            (run / "progress.json").write_text(bars_json(left, bars, stopped.began + told))
            assert current_stage(run, names).bars == (), "of another stage, or of a process before this one"
        none, one = '{"stage": "imitate", "written": 1e12', '{"label": "a", "done": 1}'
        odd = (f'{none.replace("1e12", chr(34) + chr(34))}, "bars": []}}', f'{none}, "bars": [3, {one}]}}')
        for text in ("", "{", "[]", f"{none}}}", *odd):
            (run / "progress.json").write_text(text)
            assert sentences(current_stage(run, names), 7)[1:] == ["  step 12 of 40, loss 0.25"]
        (run / "02-a-note").write_text("of a person")
        assert current_stage(run, names) == current_stage(run, names | {"a-note"}), "no stage's folder"
        (run / "02-imitate" / "config.json").unlink()
        assert current_stage(run, names) is None, "between two stages"


def test_bars_are_told_from_outside_while_they_are_open():
    progress = Progress(quiet=True)
    with progress.bar("outer", 4, "steps") as outer, progress.bar("inner", 10, "problems"):
        outer.advance(note="reward 0.41")
        told = progress.bars
        assert [(bar.label, bar.done, bar.total, bar.note) for bar in told] == [
            ("outer", 1, 4, "reward 0.41"), ("inner", 0, 10, ""),
        ]  # fmt: skip
        assert told[0].left == pytest.approx(3 / told[0].rate)
        assert told[1].left is None and told[1].text() == "inner: 0/10 problems", "no rate before the first"
    assert progress.bars == []


def test_the_page_of_a_run_in_progress(tmp_path):
    run = begun(tmp_path / "run", kind=HOSTILE)
    (run / "02-imitate" / "evaluation.json").write_text('{"half')
    (run / "01-traces" / "evaluation.json").write_text('{"half')
    still = write_report(run).read_text()
    assert "refresh" not in still and "<script" not in still and "no process works on it" in still
    assert still.count("could not be read:") == 2
    with locked(run):
        html = write_report(run, 200.0).read_text()
        assert f'<meta http-equiv="refresh" content="{RELOAD_SECONDS}">' in html
        assert html.count("<script>") == html.count("</script>") == 1 and "<img" not in html
        assert "<strong>imitate</strong> is in progress" in html and "stage 3 of 7" in html
        assert 'data-old="1000"' in html and "every 3 min 20 s" in html, "five times 200 seconds"
        assert html.count("could not be read:") == 1, "not the file that is being written"
        (run / "01-traces" / "evaluation.json").unlink()
        finished = begun(tmp_path / "finished", finished=7)
    with locked(finished):
        assert "<script" not in write_report(finished).read_text(), "it is a function of the files alone"


@pytest.fixture
def experiment(tmp_path):
    """Two arms under two seeds: finished, stopped by a gate, in progress, to do."""
    write_json(tmp_path / "experiment.json", {"name": "arms", "arms": ["rising", "flat"], "seeds": [1, 2]})
    begun(tmp_path / "rising" / "seed-1", finished=7)
    begun(tmp_path / "flat" / "seed-1", finished=5, gate="NO-GO")
    going = begun(tmp_path / "rising" / "seed-2", finished=3)
    with locked(going):
        yield tmp_path


def test_show_of_an_experiment(experiment, capfd, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["orchestra", "show", str(experiment)])
    assert cli.main() == 0
    said = " ".join(capfd.readouterr().out.split())
    for row in (
        "rising 1 finished 7/7 0.500 0.400-0.600 release 7:00",
        "flat 1 no-go 5/7 0.500 0.400-0.600 consolidate 5:00",
        "rising 2 in progress: explore 3/7 0.500 0.400-0.600 imitate 3:00",
        "flat 2 to do 2 of 4 runs finished",
        "rising, seed 2: in progress: explore (grpo), stage 4 of 7, for 0:0",
    ):
        assert row in said, said
    monkeypatch.setattr(sys, "argv", ["orchestra", "show", str(experiment), "--json"])
    assert cli.main() == 0
    rows = json.loads(capfd.readouterr().out)
    assert [(row["arm"], row["seed"], row["status"], row["finished_stages"]) for row in rows] == [
        ("rising", 1, "finished", 7), ("flat", 1, "no-go", 5), ("rising", 2, "in progress", 3), ("flat", 2, "to do", 0),
    ]  # fmt: skip
    assert [row["name"] for row in rows[2]["results"]] == STAGES[:4]


def test_a_run_of_an_experiment_that_was_killed(experiment):
    run = experiment / "flat" / "seed-2"
    begun(run, finished=1)
    state = overview.overview_of(experiment)[3]
    assert state.status == "stopped" and state.words == "stopped: traces"
    results = results_of(run)
    assert sentences(current_of(run, results), 7) == [
        "stopped in traces (grpo), stage 2 of 7; the same command goes on"
    ]


@pytest.mark.parametrize("text", ["{}", "[]", "{", '{"arms": "ab", "seeds": 3}', '{"arms": ["a"], "seeds": ["x"]}'])
def test_an_experiment_that_does_not_say_what_it_is(experiment, capfd, monkeypatch, text):
    (experiment / "experiment.json").write_text(text)
    for command in ("show", "report", "compare"):
        monkeypatch.setattr(sys, "argv", ["orchestra", command, str(experiment)])
        assert cli.main() == 1
        said = capfd.readouterr().err
        assert "experiment.json is damaged (" in said and said.count("\n") == 1


def test_a_run_that_is_no_folder_is_to_do(experiment):
    (experiment / "flat" / "seed-2").write_text("of a person")
    assert overview.overview_of(experiment)[3].status == "to do"
