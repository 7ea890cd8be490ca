"""The page of a run that goes on: kept up to date by a process that can neither fail the run nor outlive it."""

import base64
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_stages import STAGES, Fake
from live_run import Standing
from rich.console import Console

from orchestra import cli
from orchestra.config.recipe import Recipe
from orchestra.report.page import write_report
from orchestra.run import live
from orchestra.run.ledger import Ledger
from orchestra.run.live import LiveReport
from orchestra.run.progress import Progress

ROOT = Path(__file__).parents[3]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Started:
    """`tests/live_run.py` in a folder."""

    def __init__(self, folder, seconds=0):
        self.folder, self.run_dir = folder, folder / "runs" / "40d-embedded"
        command = [sys.executable, str(ROOT / "tests" / "live_run.py"), str(folder / "go"), str(seconds)]
        command += ["run", "40d", "--scale", "embedded", "--runs", str(folder / "runs")]
        more = {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))), "OMP_WAIT_POLICY": "PASSIVE"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder, env=os.environ | more
        )

    def page(self, *words):
        """The page, when it has all of these words."""
        path = self.run_dir / "report.html"
        return until(lambda: (text := read(path)) and all(word in text for word in words) and text)

    def children(self):
        """Processes of this program that have to do with the run's folder, without the run itself."""
        return [pid for pid in processes_about(self.run_dir) if pid != self.process.pid]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait(30)
        self.process.stdout.close()

    def end(self):
        said, _ = self.process.communicate(timeout=60)
        return self.process.returncode, said


def read(path):
    return path.read_text() if path.is_file() else ""


def processes_about(folder):
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (place / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(folder).encode() in arguments:
            found.append(int(place.name))
    return found


def until(there, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := there():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not come")


def shown(capfd, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["orchestra", "show", *map(str, arguments)])
    assert cli.main() == 0
    return capfd.readouterr().out


@pytest.mark.slow
def test_a_run_from_its_first_page_over_a_kill_to_its_last(tmp_path, capfd, monkeypatch):
    # 1. in progress
    with Started(tmp_path) as run:
        html = run.page("<strong>explore</strong> is in progress", "explore: optimise: 3/30 steps")
        assert 'http-equiv="refresh"' in html and "3 of 7 stages" in html and "reward 0.375" in html
        assert "could not be read" not in html, "the line that is being written"
        said = shown(capfd, monkeypatch, run.run_dir)
        assert "in progress: explore (grpo), stage 4 of 7, for " in said and "3/30 steps" in said, said
        assert "reward 0.375, KL 0.001" in said
        rows = json.loads(shown(capfd, monkeypatch, run.run_dir, "--json"))
        assert [row["name"] for row in rows] == STAGES[:4] and ["status" in row for row in rows] == [False] * 3 + [True]
        (bar,) = rows[-1]["progress"]["doing"]
        assert rows[-1]["status"] == "in progress" and rows[-1]["accuracy"] is None
        assert (bar["done"], bar["total"], rows[-1]["progress"]["last"]["step"]) == (3, 30, 3)
        assert bar["seconds_left"] == pytest.approx(27 / bar["rate"]), "27 steps to go"
        # 2. killed while a page is being made: nothing is left running, and `show` knows
        until(run.children)
        run.process.kill()
        assert run.end()[0] == -signal.SIGKILL
        until(lambda: not run.children(), 10)
        said = shown(capfd, monkeypatch, run.run_dir)
        assert "stopped in explore (grpo), stage 4 of 7, at step 3 of 30; the same command goes on" in said
        assert json.loads(shown(capfd, monkeypatch, run.run_dir, "--json"))[-1]["status"] == "stopped"
        assert_a_browser_says_that_it_is_old(html, tmp_path)
    # 3. the same command to the end: the last page is its files' alone
    (tmp_path / "go").touch()
    with Started(tmp_path) as run:
        code, said = run.end()
    assert code == 0 and "report:" in said and not run.children(), said
    last = (run.run_dir / "report.html").read_bytes()
    assert b"refresh" not in last and b"<script" not in last and b"7 of 7 stages" in last
    assert write_report(run.run_dir).read_bytes() == last
    assert not [path.name for path in run.run_dir.iterdir() if path.name.startswith((".report", "progress", ".prog"))]
    rows = json.loads(shown(capfd, monkeypatch, run.run_dir, "--json"))
    assert [row["name"] for row in rows] == STAGES and not any("status" in row for row in rows)


def assert_a_browser_says_that_it_is_old(html, folder):
    """The script is the one that the policy lets run; opened five minutes after it was written the page tells."""
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'\"" in html
    if CHROMIUM is None:
        return
    written = re.search(r'data-written="([\d.]+)"', html)[1]
    page = html.replace(written, str(time.time() - 301))
    (folder / "old.html").write_text(page.replace('http-equiv="refresh"', "").replace('data-old="0"', 'data-old="300"'))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--dump-dom"]
    command = [CHROMIUM, *flags, f"--user-data-dir={folder / 'profile'}", (folder / "old.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert '<html lang="en" class="old">' in dom and 'class="card live ticks"' in dom
    assert re.search(
        r"This page is <span[^>]*>5 minutes</span> old, and there is no newer one: the run has stopped", dom
    )


@pytest.fixture
def run_here(tmp_path, capfd, monkeypatch):
    """run_here(fake): exit code and output of the command line in this process, with pages as fast as can be."""
    monkeypatch.setattr(live, "PAGE_SECONDS", 0.0)
    monkeypatch.setattr(live, "TICK_SECONDS", 0.1)
    command = ["orchestra", "run", "40d", "--scale", "embedded", "--runs", str(tmp_path / "runs")]
    monkeypatch.setattr(sys, "argv", command)

    def run(fake):
        fake.instead(monkeypatch)
        code = cli.main()
        return code, "".join(capfd.readouterr())

    run.run_dir = tmp_path / "runs" / "40d-embedded"
    return run


def test_a_run_that_is_stopped_says_so_on_its_last_page(run_here):
    """Ctrl-C, a polite kill, and an error, each while a page is being made."""
    page = run_here.run_dir / "report.html"
    ends = ((KeyboardInterrupt(), 130, "stopped in stage 'explore'"), (ValueError("no"), 1, "ValueError: no"))
    for error, wanted, words in ends:
        code, said = run_here(Fake(fail={"explore": error}))
        assert code == wanted and words in said and "could not be rewritten" not in said, said
        html = read(page)
        assert "no process works on it" in html and "refresh" not in html and "<script" not in html
        assert not processes_about(run_here.run_dir)
        assert not [path.name for path in run_here.run_dir.iterdir() if "progress" in path.name or ".tmp" in path.name]
        page.unlink()


def test_a_report_that_cannot_be_written_changes_nothing_else(run_here, start):
    """Where the page should be is a folder. It is said once while the run goes on, and once at its end."""
    (run_here.run_dir / "report.html").mkdir(parents=True)
    # the second one is started when it was seen how the first one ended
    code, said = run_here(Standing(lambda: read(run_here.run_dir / "log.txt").count("\nIsADirectoryError") > 1))
    assert code == 0 and not processes_about(run_here.run_dir), said
    assert said.count("the report could not be rewritten (exit code 1;") == 1, said
    assert said.count("the report could not be written (IsADirectoryError") == 1
    broken = Ledger(run_here.run_dir).entries
    shutil.rmtree(run_here.run_dir)
    start(Fake())
    whole = Ledger(start.run_dir).entries
    assert list(broken) == STAGES
    assert {name: entry.outputs for name, entry in broken.items()} == {n: e.outputs for n, e in whole.items()}


def test_a_page_that_hangs_ends_with_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "START", "import time; time.sleep(600)")
    (tmp_path / "run").mkdir()
    stage = Recipe.model_validate(RECIPE).stages[0]
    begun = time.monotonic()
    with LiveReport(tmp_path / "run", Progress(quiet=True)) as report:
        report.begin(stage)
        (pid,) = until(lambda: processes_about(tmp_path / "run"))
        report.begin(stage)
        time.sleep(0.2)
        assert processes_about(tmp_path / "run") == [pid], "one at a time"
    assert not processes_about(tmp_path / "run") and time.monotonic() - begun < live.END_SECONDS
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["log.txt"]


RECIPE = {
    "name": "small",
    "model": {"base": "embedded/student"},
    "problems": {"train": "embedded", "test": "embedded"},
    "stages": [{"name": "look", "kind": "evaluate"}],
}


def test_what_cannot_be_started_is_said_once(tmp_path, monkeypatch):
    """No interpreter, and no room for the bars: the run's thread goes on, and nothing is tried at every tick."""
    tried = []

    def refuse(*_, **__):
        tried.append(1)
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(live.subprocess, "Popen", refuse)
    monkeypatch.setattr(live, "TICK_SECONDS", 0.01)
    file = tmp_path / "said.txt"
    with open(file, "w") as out, LiveReport(tmp_path, Progress(Console(file=out, width=400))) as report:
        report.begin(Recipe.model_validate(RECIPE).stages[0])
        time.sleep(0.3)
    assert len(tried) == 1
    assert file.read_text().count("could not be rewritten (OSError: [Errno 12] Cannot allocate memory") == 1
    assert "Traceback" in (tmp_path / "log.txt").read_text()


def test_what_makes_a_page_is_light(tmp_path):
    """A few seconds of processor time a minute, at a lower priority, without what a run trains and samples with."""
    (tmp_path / "run.json").write_text(json.dumps({"recipe": RECIPE}))
    asked = "; import os; print(os.nice(0), [m for m in ('torch', 'transformers', 'vllm') if m in sys.modules])"
    command = [sys.executable, "-P", "-c", live.START + asked, str(tmp_path), "60", json.dumps(sys.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        seconds, more = process.stdout.read().splitlines()
    assert float(seconds) < live.PAGE_SECONDS * live.SHARE * 2
    assert more == f"{min(19, os.nice(0) + 10)} []" and "<title>small" in (tmp_path / "report.html").read_text()


def test_a_page_that_hangs_ends_with_a_killed_run(tmp_path):
    """Of a killed run nothing is left but the end of a pipe."""
    hang = "import time; from orchestra.report import page; page.write_report = lambda *_: print(1) or time.sleep(600)"
    begin, _, end = live.START.partition("; from orchestra")
    command = [sys.executable, "-u", "-P", "-c", f"{begin}; {hang}; from orchestra{end}"]
    command += [str(tmp_path), "60", json.dumps(sys.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"1\n" and process.poll() is None, "it hangs"
        process.stdin.close()
        assert process.wait(10) == 1


def test_a_page_that_the_kernel_killed_leaves_no_part_of_itself(tmp_path, monkeypatch):
    """Out of memory, or after so many seconds: it cannot clear up itself."""
    begin = "import json, os, signal, sys; from orchestra.report.html import partial_page; from pathlib import Path; "
    half = "partial_page(Path(sys.argv[1]), os.getpid()).write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    monkeypatch.setattr(live, "START", f"import sys, json; sys.path[:] = json.loads(sys.argv.pop()); {begin}{half}")
    monkeypatch.setattr(live, "TICK_SECONDS", 0.01)
    file = tmp_path / "said.txt"
    with open(file, "w") as out, LiveReport(tmp_path, Progress(Console(file=out, width=400))) as report:
        report.begin(Recipe.model_validate(RECIPE).stages[0])
        assert until(lambda: "exit code -9" in read(file))
        assert not list(tmp_path.glob(".report-*"))
