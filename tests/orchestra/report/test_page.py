"""The report: derived from a run folder, whole or in pieces, safe to open, and readable in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from evals.evaluate import Evaluation, Pass, Sample, compare
from evals.modelled import Change, Modelled
from evals.perplexity import Scored, perplexity, perplexity_ratio
from evals.statistics import accuracy, paired_difference
from orchestra import cli
from orchestra.config.loading import load_recipe
from orchestra.report.data import read_run
from orchestra.report.modelled import perplexity_charts
from orchestra.report.page import _count_rows, write_report
from orchestra.text import duration, number, p_value, percent, points, shortened

HOSTILE = "</pre><script>alert('xss')</script><img src=http://evil.example/x onerror=alert(1)>\x00\u202e$x_{$"
RECIPE = """\
name: 40d
seed: 17
model:
  base: embedded/student
  lora: {rank: 16, alpha: 32}
stages:
  - {name: traces, kind: distill, teacher: embedded/teacher, samples: 4}
  - {name: imitate, kind: sft, data: traces, steps: 60, learning_rate: 1e-3}
  - {name: explore, kind: grpo, steps: 40, learning_rate: 3e-4, beta: 0.0}
  - {name: consolidate, kind: grpo, steps: 40, learning_rate: 3e-4, beta: 0.001}
  - name: polish
    kind: grpo
    steps: 30
    learning_rate: 1e-4
    beta: 0.01
    gate: {metric: accuracy, against: base, min_difference: 0.05}
  - {name: release, kind: export}
"""
DOMAINS = ("arithmetic", "equations", "multi-step", "sequences")
STAGES = {  # name: kind, skill, completion length, beta
    "base": ("base", -1.6, 96, None),
    "traces": ("distill", None, None, None),
    "imitate": ("sft", 0.1, 74, None),
    "explore": ("grpo", 0.7, 66, 0.0),
    "consolidate": ("grpo", 0.95, 62, 0.001),
    "polish": ("grpo", 1.05, 60, 0.01),
    "release": ("export", None, None, None),
}


def decoded(rng: np.random.Generator, chance_P: np.ndarray, samples: int, length: float, temperature: float) -> Pass:
    correct = (rng.random((len(chance_P), samples)) < chance_P[:, None]).astype(int)
    return Pass(
        temperature=temperature,
        correct=tuple(map(tuple, correct.tolist())),
        accuracy=accuracy(correct, 0.95),
        mean_length=length,
        truncation_rate=0.08 * length / 96,
        format_rate=1 - 0.3 * length / 96,
        ungradable=0,
        tokens=int(length * correct.size),
        seconds=correct.size / 90,
    )


def evaluated(name: str, problems: int, text: str = "") -> Evaluation:
    _, skill, length, _ = STAGES[name]
    rng = np.random.default_rng(3)
    hardness_P = rng.normal(size=problems) * 1.4
    rng = np.random.default_rng(len(name))
    chance_P = 1 / (1 + np.exp(hardness_P - skill))

    def sample(kind: str, id: str, question: str, gold: str, *steps: str) -> Sample:
        answer = steps[-1].split()[-2]
        completion = "<think>\n" + "\n".join(steps) + f"\n</think>\n\\boxed{{{answer}}}" + text
        return Sample(kind, id, question + text, gold, completion, 8 + 9 * len(steps))

    rolls = "A baker packs 4 trays of 12 rolls and sells 19 of them.\nHow many rolls are left?"
    half = "Half of 84 plus a third of 27?"
    right = name != "base"
    shown = (
        sample("right", "p0", rolls, "29", "4 * 12 = 48 ;", "48 - 19 = 29 ;")
        if right
        else sample("wrong", "p0", rolls, "29", "4 + 12 = 16 ;", "19 - 16 = 3 ;"),
        sample("right", f"p1{name}", "Solve 3 x + 4 = 19 for x.", "5", "19 - 4 = 15 ;", "15 / 3 = 5 ;"),
        sample("wrong", f"p2{name}", "What comes next: 2, 6, 18, 54, ...?", "162", "54 / 18 = 3 ;", "54 * 3 = 152 ;"),
        sample("wrong", "p3", half, "51", "84 / 2 = 42 ;", "27 / 3 = 8 ;", "42 + 8 = 50 ;"),
        Sample("truncated", f"p4{name}", rolls, "29", "<think>\n" + "4 * 12 = 48 ; " * 14, 96),
    )
    return Evaluation(
        problem_ids=tuple(f"p{at}" for at in range(problems)),
        domains=tuple(DOMAINS[at % 4] for at in range(problems)),
        sampled=decoded(rng, chance_P, 4, length, 1.0),
        greedy=decoded(rng, np.clip(chance_P * 1.1, 0, 1), 1, length - 4, 0.0),
        pass_at_k={4: 0.5 + skill / 8},
        samples=shown,
        seed=0,
    )


def build_run(run_dir: Path, *, problems: int = 80, steps: int = 40, text: str = "", name: str = "40d") -> Path:
    """A finished run of the recipe above, its folders as the runner leaves them."""
    run_dir.mkdir(parents=True)
    recipe = RECIPE.replace("name: 40d", f"name: {json.dumps(name)}", 1)
    versions = {"python": "3.11.2", "torch": "2.13.0+cpu", "trl": "1.16.0", "vllm": "0.31.0", "code": "6e40f37"}
    plan = [
        {"name": stage, "seconds": 55.0, "tokens": 400_000, "peak_bytes": 3 << 30} for stage in ("imitate", "explore")
    ]
    (run_dir / "plan.json").write_text(json.dumps({"recipe": "40d", "stages": plan}))
    about = {"recipe": recipe, "scale": "embedded", "seed": 17, "versions": versions, "machine": "2 cores, 23 GiB"}
    (run_dir / "run.json").write_text(json.dumps(about))
    rng = np.random.default_rng(1)
    base = previous = None
    for at, (stage, (kind, skill, length, beta)) in enumerate(STAGES.items()):
        folder = run_dir / f"{at:02d}-{stage}"
        folder.mkdir()
        result = {"name": stage, "kind": kind, "beta": beta, "seconds": 31.5 + 9 * at, "tokens": 310_220}
        config: dict[str, object] = {"name": stage, "kind": kind, "gate": None}
        if kind in ("sft", "grpo"):
            result |= {"steps": steps, "adapter_sha256": "9f" * 32, "kl": None if kind == "sft" else 0.012 / at}
            metrics(folder / "metrics.jsonl", rng, kind, steps, skill, length, beta)
        if skill is not None:
            evaluation = evaluated(stage, problems, text)
            (folder / "evaluation.json").write_text(evaluation.to_json())
            result |= against(evaluation, previous, base)
            base, previous = base or evaluation, evaluation
        if kind == "distill":
            dropped = {"wrong": 341, "truncated": 120, "duplicate": 88, "overlaps_a_test_problem": 6}
            numbers = {"problems": 512, "sampled": 2048, "correct": 1587, "dropped": dropped, "kept": 1493}
            (folder / "statistics.json").write_text(json.dumps(numbers))
        if stage == "polish":
            config["gate"] = {"metric": "accuracy", "against": "base", "min_difference": 0.05}
            result |= {"gate": "GO", "beta": beta, "extra": {"kl_to_base": 0.81, "kl_to_imitate": 0.093}}
        (folder / "config.json").write_text(json.dumps({"stage": config, "digest": "0", "config": {}, "inputs": {}}))
        (folder / "result.json").write_text(json.dumps(result))
    return run_dir


def against(evaluation: Evaluation, previous: Evaluation | None, base: Evaluation | None) -> dict[str, float]:
    interval = evaluation.sampled.accuracy
    found = {"accuracy": interval.estimate, "low": interval.low, "high": interval.high}
    if previous is not None and base is not None:
        step, whole = compare(evaluation, previous), compare(evaluation, base)
        found |= {"difference": step.difference, "difference_low": step.low, "difference_high": step.high}
        found |= {"p_value": step.p_value, "base_difference": whole.difference, "base_p_value": whole.p_value}
    return found


def metrics(path: Path, rng: np.random.Generator, kind: str, steps: int, skill: float, length: float, beta) -> None:
    with path.open("w") as file:
        for step in range(1, steps + 1):
            done = step / steps
            row = {"step": step, "loss": 1.6 * np.exp(-3 * done) + 0.2 + 0.05 * rng.normal(), "learning_rate": 3e-4}
            if kind == "grpo":
                row |= {
                    "beta": beta,
                    "reward": 0.45 + 0.3 * skill + 0.08 * done + 0.05 * rng.normal(),
                    "kl": (0.02 if beta == 0 else 0.008) * done * (1 + 0.2 * rng.normal()),
                    "entropy": 0.52 - 0.15 * skill - 0.05 * done + 0.02 * rng.normal(),
                    "completion_length": length + 6 * (1 - done) + 1.5 * rng.normal(),
                    "truncated": abs(0.04 - 0.03 * done + 0.01 * rng.normal()),
                    "zero_variance_groups": 0.35 + 0.1 * done + 0.04 * rng.normal(),
                }
            file.write(json.dumps(row) + "\n")


class Page(HTMLParser):
    """Tags, the addresses that they would load, text, and what stands in `pre`."""

    LOADED = ("src", "href", "xlink:href", "srcset", "data", "action", "poster", "background")

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.attributes: set[str] = set()
        self.ids: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.loaded += [value or "" for name, value in attrs if name in self.LOADED]
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    return build_run(tmp_path_factory.mktemp("runs") / "40d-embedded")


@pytest.fixture(scope="module")
def page(run_dir: Path) -> Page:
    path = write_report(run_dir)
    assert path == run_dir / "report.html" and path.stat().st_size < 400_000
    return Page(path.read_text())


def test_it_says_what_happened(page: Page, run_dir: Path):
    evaluations = {s.name: s.evaluation for s in read_run(run_dir).evaluated}
    base, final = evaluations["base"], evaluations["polish"]
    text = page.text.replace("\u00a0", " ")
    for part in (base.sampled, final.sampled, final.greedy):
        assert f"{100 * part.accuracy.estimate:.1f} %" in text
    whole = compare(final, base)
    assert f"+{100 * whole.difference:.1f} points" in text and "paired over 80 problems, 4 samples each" in text
    assert "p < 0.001" in text and "7 of 7 stages" in text and "not finished" not in text
    for word in (
        "GO",
        "at least +5.0 points",
        "overlaps a test problem",
        "1\u202f493",
        "pass@4",
        "2.13.0+cpu",
        "2 cores, 23 GiB",
    ):
        assert word in text
    assert "learning_rate: 3e-4" in text and "Planned and measured" in text and "400k" in text and "3.0 GiB" in text


def test_charts_have_stages_and_betas(page: Page):
    # accuracy per stage and per domain, six courses, one loss
    assert page.tags.count("svg") == 9
    for word in ("explore", "consolidate", "polish", "β 0.001", "β 0.01"):
        assert page.text.count(word) >= 6
    assert "arithmetic" in page.text


def test_nothing_is_loaded_and_nothing_runs(page: Page, run_dir: Path):
    html = (run_dir / "report.html").read_text()
    assert "script" not in page.tags and "iframe" not in page.tags and "img" not in page.tags
    assert all(address.startswith("#") or address == "data:," for address in page.loaded), page.loaded
    assert not re.search(r"url\((?!#)|@import", html)
    assert not any(name.startswith("on") for name in page.attributes)
    assert "default-src 'none'" in html and str(run_dir.parent) not in html
    anchors = {address[1:] for address in page.loaded if address.startswith("#")}
    assert len(page.ids) == len(set(page.ids)) and anchors <= set(page.ids)


def test_hostile_text_stays_text(tmp_path):
    run_dir = build_run(tmp_path / "40d-embedded", text=HOSTILE, name=HOSTILE)
    folder = run_dir / "03-explore"
    folder.rename(run_dir / "03-<img src=x onerror=alert(2)>$x_{$")
    page = Page(write_report(run_dir).read_text())
    assert "script" not in page.tags and "img" not in page.tags and "onerror" not in page.attributes
    assert page.tags.count("pre") > 5 and "<script>alert('xss')</script>" in page.text
    assert "\x00" not in page.text and "\ufffd" in page.text
    assert "$x_{$" in page.text  # not read as mathtext


def test_the_same_run_gives_the_same_page(run_dir: Path):
    first = write_report(run_dir).read_bytes()
    assert write_report(run_dir).read_bytes() == first
    assert [path.name for path in run_dir.iterdir() if path.name.startswith(".")] == []


def test_a_run_that_is_still_going(tmp_path):
    run_dir = build_run(tmp_path / "40d-embedded")
    for name in ("05-polish", "06-release"):
        shutil.rmtree(run_dir / name)
    going = run_dir / "04-consolidate"
    (going / "result.json").unlink()
    (going / "evaluation.json").unlink()
    with (going / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "rew')  # the line that was being written
    (run_dir / "02-imitate" / "evaluation.json").write_text("{")
    page = Page(write_report(run_dir).read_text())
    assert "This run is not finished" in page.text and "4 of 7 stages" in page.text
    assert "consolidate: unfinished" in page.text and "polish: to do" in page.text
    assert "02-imitate/evaluation.json could not be read" in page.text
    assert "metrics.jsonl" not in page.text
    run = read_run(run_dir)
    assert [len(stage.metrics) for stage in run.stages if stage.name == "consolidate"] == [40]


def test_a_gate_that_stopped_the_run(tmp_path):
    run_dir = build_run(tmp_path / "40d-embedded")
    path = run_dir / "05-polish" / "result.json"
    base = json.loads((run_dir / "00-base" / "result.json").read_text())["accuracy"]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"gate": "NO-GO", "accuracy": base + 0.011}))
    accuracies = {stage.name: stage.evaluation.sampled.accuracy.estimate for stage in read_run(run_dir).evaluated}
    best = max(accuracies, key=accuracies.get)
    text = Page(write_report(run_dir).read_text()).text
    assert "NO-GO at polish." in text and "at least +5.0 points; measured +1.1" in text
    assert f"{best} is the best so far" in text


@pytest.mark.parametrize("kept", [(), ("00-base",), ("00-base", "02-imitate"), ("01-traces",), ("03-explore",)])
def test_any_part_may_be_missing(tmp_path, kept):
    run_dir = build_run(tmp_path / "40d-embedded")
    for folder in run_dir.glob("0*"):
        if folder.name not in kept:
            shutil.rmtree(folder)
    assert "not finished" in Page(write_report(run_dir).read_text()).text
    if kept:
        (run_dir / "run.json").unlink()
        write_report(run_dir)


def test_steps_of_a_resumed_run_count_once(tmp_path):
    run_dir = build_run(tmp_path / "40d-embedded", steps=6)
    path = run_dir / "03-explore" / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:5], *lines[3:]]) + "\n")
    metrics = next(stage.metrics for stage in read_run(run_dir).stages if stage.name == "explore")
    assert [row["step"] for row in metrics] == [1, 2, 3, 4, 5, 6]


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such run folder"):
        write_report(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="not a run folder"):
        write_report(tmp_path)


def test_numbers_as_people_read_them():
    assert [percent(0.4215), percent(None)] == ["42.1\u00a0%", "–"]
    assert [points(0.0132), points(-0.0132), points(None)] == ["+1.3", "−1.3", "–"]
    assert [p_value(p) for p in (0.0002, 0.0214, 0.4, None)] == [
        "p\u00a0<\u00a00.001",
        "p\u00a0=\u00a00.021",
        "p\u00a0=\u00a00.40",
        "–",
    ]
    assert [duration(s) for s in (4.2, 41, 100, 7300, None)] == ["4.2 s", "41 s", "1 min 40 s", "2 h 1 min", "–"]
    assert [number(n) for n in (12345, 0.00123456, -2, None, "a\x01")] == [
        "12\u202f345",
        "0.001235",
        "−2",
        "–",
        "a\ufffd",
    ]
    assert len(shortened("x" * 9000)) < 2_500 and shortened("x" * 2_400) == "x" * 2_400


def test_the_recipe_is_written_as_a_person_would(run_dir: Path, tmp_path):
    copy = shutil.copytree(run_dir, tmp_path / "40d-embedded")
    about = json.loads((copy / "run.json").read_text())
    recipe = load_recipe("40d", "embedded")
    (copy / "run.json").write_text(json.dumps(about | {"recipe": recipe.model_dump(mode="json")}))
    text = read_run(copy).recipe
    assert text.startswith("name: 40d\nseed:") or text.startswith("name: 40d\nmodel:")
    assert "  - {name: explore, kind: grpo, " in text and "num_iterations" not in text and "null" not in text
    other = {"name": "old", "stages": [{"name": "explore", "kind": "grpo", "gone": 1}]}  # of another version
    (copy / "run.json").write_text(json.dumps(about | {"recipe": other}))
    assert "{name: explore, kind: grpo, gone: 1}" in read_run(copy).recipe


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --hide-scrollbars --timeout=20000"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: the report is not opened in a browser")
@pytest.mark.parametrize("width", [1200, 400])
def test_a_browser_shows_it(run_dir: Path, tmp_path, width: int):
    path = write_report(run_dir)
    # a measuring script, in a copy whose policy lets it run: the layout must not spill over sideways
    probe = """<script>addEventListener("load", () => { document.documentElement.dataset.seen = [
        innerWidth, document.documentElement.scrollWidth, document.querySelectorAll("svg").length,
        [...document.querySelectorAll("svg")].every(svg => svg.getBoundingClientRect().height > 50),
        getComputedStyle(document.querySelector(".climb .to .big")).fontWeight] })</script></body>"""
    html = path.read_text().replace("default-src 'none'", "default-src 'none'; script-src 'unsafe-inline'")
    measured, picture = tmp_path / "measured.html", tmp_path / "report.png"
    measured.write_text(html.replace("</body>", probe))

    def browser(*arguments: str) -> str:
        profile = tmp_path / arguments[0].strip("-").partition("=")[0]
        command = [CHROMIUM, *FLAGS.split(), f"--window-size={width},3000", f"--user-data-dir={profile}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

    dom = browser("--dump-dom", measured.as_uri())
    inner, scroll, charts, drawn, weight = re.search(r'data-seen="([^"]*)"', dom)[1].split(",")
    assert int(scroll) <= int(inner) <= max(width, 500)
    assert (charts, drawn, weight) == ("9", "true", "650")
    assert "Accuracy per stage" in dom
    browser(f"--screenshot={picture}", path.as_uri())
    assert picture.stat().st_size > 50_000


def test_tokens_and_counts_are_not_drawn_on_one_scale():
    """2,048 samples are the longest bar, 512 problems a quarter of it; 100,000 tokens have none."""
    tree = {"problems": 512, "sampled": 2048, "dropped": {"wrong": 1024}, "tokens": 48.5, "sampled_tokens": 100_000}
    bars = {row.name: row.bar for row in _count_rows(tree)}
    assert bars == {
        "problems": 25,
        "sampled": 100,
        "dropped": None,
        "wrong": 50,
        "tokens": None,
        "sampled_tokens": None,
    }
    assert [row.bar for row in _count_rows({"kept": 0})] == [0.0]


# perplexity beside accuracy, and on trace cards

HELD_OUT = "held-out text"


def read_at(nll: float, texts: int = 42):
    """Of texts of ten tokens, around so many nats a token."""
    return perplexity([Scored(10 * nll * (1 + (at % 3 - 1) / 10), 10, 0) for at in range(texts)], confidence=0.95)


def changed(before: float, after: float, texts: str = "same") -> Change:
    one, other = read_at(before), read_at(after)
    return Change(texts, one, other, perplexity_ratio(other, one, confidence=0.95))


def lost(problems: int):
    """Of 40 solved before."""
    after_PS = np.ones((40, 1))
    after_PS[:problems] = 0
    return paired_difference(after_PS, np.ones((40, 1)), 0.95, 0)


@pytest.fixture
def modelled(tmp_path):
    """As 40d leaves it; nats a token: traces 1.0, 0.8 (nothing lost), 0.6 (12 of 40 lost), held-out 0.5, 0.5, 0.5."""
    run_dir = build_run(tmp_path / "40d-embedded")
    for folder, start, nats, problems in (
        ("02-imitate", "base", (1.0, 0.8), 0), ("03-explore", "imitate", (0.8, 0.6), 12),
    ):  # fmt: skip
        sources = {"traces": changed(*nats), HELD_OUT: changed(0.5, 0.5)}
        found = Modelled(folder[3:], start, sources, lost(problems))
        (run_dir / folder / "perplexity.json").write_text(found.to_json())
    return run_dir


def test_a_chart_for_each_source_and_a_notice(modelled):
    page = Page(write_report(modelled).read_text())
    assert "Perplexity of traces" in page.text and f"Perplexity of {HELD_OUT}" in page.text
    assert (
        page.text.index("Accuracy per stage")
        < page.text.index("Perplexity of traces")
        < page.text.index("Accuracy in per cent")
    )
    # exp(1), exp(0.8), exp(0.6), the last with the mark; exp(0.5) in three stages
    for value, times in (("2.72", 1), ("2.23", 1), ("1.82 ⚠", 1), ("1.65", 3)):
        assert page.text.count(f"  {value}") == times, value
    assert "explore, from imitate:" in page.text and "imitate, from base:" not in page.text
    assert "perplexity of traces fell to 0.819 [" in page.text and "accuracy fell by 30.0 points [" in page.text
    assert page.text.count("text is modelled better, problems are solved worse") == 1
    assert len(page.ids) == len(set(page.ids))


def test_other_texts_are_not_drawn_in_the_same_chart(modelled):
    found = Modelled("polish", "consolidate", {"traces": changed(3.0, 2.0, "other")}, None)
    (modelled / "05-polish" / "perplexity.json").write_text(found.to_json())
    stages = read_run(modelled).stages
    chart = next(iter(perplexity_charts(stages, [stage.name for stage in read_run(modelled).evaluated])))
    drawn = Page(chart.svg).text
    # exp(3) and exp(2), and not exp(1)
    assert "2.72" not in drawn and "20.1" in drawn and "7.39" in drawn


@pytest.mark.parametrize(
    "text", ["{", "{}", '{"policy": "x", "start": "y", "sources": {"a": 1}, "accuracy": null}', "[]"]
)
def test_a_file_that_is_none(modelled, text):
    for stage in ("02-imitate", "03-explore"):
        for name in ("perplexity", "preflight"):
            (modelled / stage / f"{name}.json").write_text(text)
    page = Page(write_report(modelled).read_text())
    assert "Perplexity of" not in page.text and "Accuracy per stage" in page.text


def test_a_run_without_any(tmp_path):
    assert "erplexity" not in Page(write_report(build_run(tmp_path / "40d-embedded")).read_text()).text


TRACE = {"problem_id": "p", "question": "?", "gold": "4", "completion": "4", "verdict": "correct", "tokens": 3}


def cards(*places):
    done = CliRunner().invoke(cli.app, ["diff", *map(str, places), "--json"])
    assert done.exit_code == 0, done.output
    return [json.loads(done.stdout)[which]["perplexity"] for which in ("first", "second")]


def test_a_card_has_what_the_run_measured_under_the_base(modelled, tmp_path):
    traces, alone = modelled / "01-traces", tmp_path / "alone"
    alone.mkdir()
    for folder in (traces, alone):
        (folder / "traces.jsonl").write_text(json.dumps(TRACE) + "\n")
    assert cards(traces, alone) == [pytest.approx(np.e), None]
    assert cards(alone / "traces.jsonl", traces / "traces.jsonl") == [None, pytest.approx(np.e)]
    shown = CliRunner().invoke(cli.app, ["diff", str(traces), str(alone)]).stdout
    (line,) = [line for line in shown.splitlines() if line.startswith("perplexity under the base")]
    assert line.split() == ["perplexity", "under", "the", "base", "2.718", "–", "–"]
    # under another policy it is another number
    (modelled / "02-imitate" / "perplexity.json").unlink()
    assert cards(traces, alone) == [None, None]
