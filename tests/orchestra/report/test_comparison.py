"""The page of an experiment: what it says of real files, in progress or not, and that nothing in it is markup."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import written_experiment as written

from orchestra.config.faults import UserError
from orchestra.report import arm_charts
from orchestra.report.comparison import write_any, write_comparison

HOSTILE = "<img src=x onerror=alert(1)></dd><script>alert('xss')</script>\x00"
ARMS = """
seeds: 3
arms:
  plain: {}
  longer: {stages: {imitate: {steps: 20}, explore: null}}
  decode: {stages: {look: {kind: evaluate, min_p: 0.1, after: polish}}}
"""
REPORTED = f"""
reported:
  source: {json.dumps("A blog, " + HOSTILE.replace(chr(0), ""))}
  figures:
    - {{what: {json.dumps("accuracy " + HOSTILE.replace(chr(0), ""))}, value: 77.5, arm: longer}}
    - {{what: base, value: 76.4}}
"""
CHANCES = {"plain": 0.3, "longer": 0.8, "decode": 0.3}


class Page(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.links, self.ids = [], "", [], []
        self.attributes = set()
        self.feed(html)
        self.text = re.sub(r"\s+", " ", self.text.replace("\u00a0", " ").replace("−", "-"))

    def handle_starttag(self, tag, attrs):
        self.text += " "
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value for name, value in attrs if tag == "a" and name == "href"]
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_data(self, data):
        self.text += data


def page_of(folder):
    path = write_comparison(folder)
    assert path == folder / "report.html"
    return Page(path.read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("experiment")
    experiment = written.load(place, ARMS + REPORTED, written.RECIPE + written.SETS)
    return written.write(experiment, place / "asked-none", written.drawn(CHANCES), scale="embedded")


@pytest.fixture(scope="module")
def page(folder):
    write_any(folder / "longer" / "seed-1")
    return page_of(folder)


def test_numbers_by_hand(tmp_path):
    """Of 10 problems with one sample the first arm has 4, the second these and 5 more; greedily 5 and 5, the same."""
    right = {"a": [1] * 4 + [0] * 6, "b": [1] * 9 + [0]}
    experiment = written.load(tmp_path, "arms: {a: {}, b: {stages: {imitate: {steps: 20}}}}\n")
    answers = lambda arm, *_: written.evaluation([[one] for one in right[arm]], [1] * 5 + [0] * 5)  # noqa: E731
    text = page_of(written.write(experiment, tmp_path / "x", answers)).text
    assert "40.0 %" in text and "90.0 %" in text and "b, sampled +50.0" in text
    # exact McNemar: 5 of 5 problems changed to the better, 2 / 2^5 = 0.0625
    assert "p = 0.062 alone p = 0.062" in text
    assert "not resolved" in text and "finished" in text and "not finished" not in text
    assert "50.0 %" in text and "+0.0" in text and "On 10 held-out" not in text and "on 10 held-out problems" in text
    assert "these very training runs" in text


def test_it_tells_the_question_and_the_answer(page, folder):
    text = page.text
    for words in (
        "9 of 9 runs", "3 arms × 3 seeds", "embedded scale", "2 cores, 24 GiB", "Training seeds 1, 2, 3.",
        "stages.imitate.steps 10 → 20", "stages.explore taken out: grpo, steps 10, learning_rate 1e-05",
        "stages.look put in: evaluate, min_p 0.1", "What the others are compared with.",
        "decode look", "plain polish", "longer polish",
        "Difference to plain, sampled", "Accuracy by seed, greedy", "Holm-corrected over all 4 differences",
    ):  # fmt: skip
        assert words in text, words
    # two forests, two of seeds, two of sets
    assert page.tags.count("svg") == 6
    assert "better" in text and "not resolved: differences below" in text
    told = json.loads((folder / "experiment.json").read_text())
    assert told["changes"]["longer"][0] == {"key": "stages.imitate.steps", "before": "10", "after": "20"}


def test_others_numbers_are_marked_as_theirs(page):
    assert "Theirs" in page.text and "Ours, at the embedded scale" in page.text and "not to be compared" in page.text
    assert re.search(r"77\.5 longer \d\d\.\d %", page.text) and "76.4 – –" in page.text


def test_runs_are_linked_where_they_have_a_page(page, folder):
    runs = [link for link in page.links if not link.startswith("#")]
    assert runs == ["longer/seed-1/report.html"] and (folder / runs[0]).is_file()


def test_nothing_in_it_is_markup_and_nothing_is_loaded(tmp_path):
    """Neither in what was reported nor in what an arm changes, a machine, a stage or a folder is called."""
    experiment = written.load(tmp_path, ARMS + REPORTED)
    folder = written.write(experiment, tmp_path / "<b>x</b>", written.drawn(CHANCES, 30), scale=HOSTILE, set=[HOSTILE])
    about = json.loads((folder / "experiment.json").read_text())
    about["changes"]["longer"] = [{"key": HOSTILE, "before": HOSTILE, "after": HOSTILE}]
    about["name"] = HOSTILE
    (folder / "experiment.json").write_text(json.dumps(about))
    run = folder / "plain" / "seed-1" / "run.json"
    run.write_text(json.dumps(json.loads(run.read_text()) | {"machine": HOSTILE, "versions": {HOSTILE: HOSTILE}}))
    page = page_of(folder)
    assert "script" not in page.tags and "img" not in page.tags and page.tags.count("b") == 2  # the tiles' own
    assert not any(name.startswith("on") for name in page.attributes)
    assert "alert('xss')" in page.text and "\x00" not in (folder / "report.html").read_text()
    html = (folder / "report.html").read_text()
    assert "default-src 'none'" in html and not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org)", html)
    anchors = {link[1:] for link in page.links if link.startswith("#")}
    assert anchors <= set(page.ids) and len(page.ids) == len(set(page.ids))


def test_in_progress(tmp_path):
    """Seed 1 is through but for `decode`, which has begun; of the others nothing is there."""
    experiment = written.load(tmp_path, ARMS)
    to_come = {(arm, seed) for arm in CHANCES for seed in (2, 3)}
    folder = written.write(
        experiment, tmp_path / "x", written.drawn(CHANCES), unfinished={("decode", 1)}, to_come=to_come
    )
    text = page_of(folder).text
    assert "This experiment is not finished." in text and "2 of 9 runs" in text
    # base, imitate and explore are finished, polish and look are not
    assert "decode, seed 1: 3 of 5 stages" in text and "plain, seed 2: to do" in text
    assert "longer, sampled" in text and "decode, sampled" not in text and "of these training runs alone" in text


def test_while_the_first_arm_is_to_come_differences_are_not_said_to_be_to_it(tmp_path):
    """The second one, which they are to until then, stands in its place."""
    reported = "reported: {source: a blog, figures: [{what: accuracy, value: 70, arm: c}]}\n"
    arms = "{a: {}, b: {stages: {imitate: {steps: 20}}}, c: {stages: {imitate: {steps: 30}}}}"
    experiment = written.load(tmp_path, f"seeds: 1\narms: {arms}\n{reported}")

    def answers(arm, *_):
        one = written.evaluation([[int(arm == "c")]] * 5 + [[0]] * 5, [0] * 6 + [1] * 4)
        told = {"lengths": ((3,),) * 10, "cut_off": ((False,),) * 10}
        return replace(one, sampled=replace(one.sampled, **told), greedy=replace(one.greedy, **told))

    text = page_of(written.write(experiment, tmp_path / "x", answers, unfinished={("a", 1)})).text
    assert "Difference to b, sampled" in text and "sampled accuracy to b, by what" in text and "to b: +50.0" in text
    assert "What the others are compared with, when it has been evaluated." in text
    assert not re.search(r"(to|accuracy to) a\b", text)


def test_nothing_yet(tmp_path):
    experiment = written.load(tmp_path, ARMS)
    every = {(arm, seed) for arm in CHANCES for seed in (1, 2, 3)}
    folder = written.write(experiment, tmp_path / "x", written.drawn(CHANCES), to_come=every)
    page = page_of(folder)
    assert "there is nothing to compare yet" in page.text and "svg" not in page.tags
    assert "stages.imitate.steps 10 → 20" in page.text


@pytest.mark.parametrize(("seeds", "charts"), [("[5]", 0), ("[5, 6]", 2)])
def test_one_arm(tmp_path, seeds, charts):
    """An accuracy, and with several seeds where each lies; nothing is compared."""
    experiment = written.load(tmp_path, f"seeds: {seeds}\n")
    page = page_of(written.write(experiment, tmp_path / "x", written.drawn({"asked": 0.5})))
    assert "One recipe under" in page.text and "Verdict" not in page.text and page.tags.count("svg") == charts


def test_other_problems(tmp_path):
    """What not all were asked is left out, and that is said; where nothing is left the page says that."""
    experiment = written.load(tmp_path, "arms: {a: {}, b: {stages: {polish: null}}}\n")
    chances = {"a": 0.5, "b": 0.5}
    shifted = written.drawn(chances, 80, first=lambda arm: 50 if arm == "b" else 0)
    text = page_of(written.write(experiment, tmp_path / "x", shifted)).text
    # 0 to 79 and 50 to 129: 30 in common, 100 not
    assert "100 problems were not asked in all runs and are left out." in text and "on 30 held-out problems" in text
    apart = written.drawn(chances, 80, first=lambda arm: 500 if arm == "b" else 0)
    page = page_of(written.write(experiment, tmp_path / "y", apart))
    assert "none of their 160 problems in common" in page.text and "2 of 2 runs" in page.text


def test_greedy_where_not_all_were_asked_so(tmp_path):
    experiment = written.load(tmp_path, "arms: {a: {}, b: {stages: {polish: null}}}\n")
    draw = written.drawn({"a": 0.5, "b": 0.5})

    def answers(arm, *where):
        found = draw(arm, *where)
        return written.evaluation(found.sampled.correct, None if arm == "b" else [1] * 80)

    text = page_of(written.write(experiment, tmp_path / "x", answers)).text
    assert "--greedy" not in text
    assert "Not all runs were evaluated greedy." in text and "Arm, greedy" not in text and "Arm, sampled" in text


def test_a_folder_that_is_nothing(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_any(tmp_path)


def test_an_older_folder(folder, tmp_path):
    """One that does not say what its arms change."""
    old = tmp_path / "old"
    old.mkdir()
    about = json.loads((folder / "experiment.json").read_text())
    del about["changes"], about["reported"]
    (old / "experiment.json").write_text(json.dumps(about))
    for arm in CHANCES:
        (old / arm).symlink_to(folder / arm)
    page = page_of(old)
    assert "What it changes was not recorded." in page.text and "Reported" not in page.text


def test_a_damaged_folder_is_one_message(tmp_path):
    (tmp_path / "experiment.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        write_comparison(tmp_path)


def test_charts_hold_what_is_far_out():
    """No difference could have been seen, or a very large one: intervals still have most of the width."""
    effects = [
        arm_charts.Effect("a", 0.02, -0.01, 0.05, None, False),
        arm_charts.Effect("<b>$x_{$", -0.3, -0.4, -0.2, 0.9, True),
    ]
    svg = arm_charts.forest_chart("k", "t", effects)
    assert "var(--main)" in svg and "&lt;b&gt;$x_{$" in svg and "#0000" not in svg
    assert "−30.0" in svg and "−50" in svg and "−100" not in svg
    seeds = arm_charts.seeds_chart("s", "t", {"a": {1: 0.5, 2: 0.6}, "b": {2: 0.7}}, second=True)
    assert "55.0 %" in seeds and "70.0 %" in seeds and "var(--second)" in seeds
