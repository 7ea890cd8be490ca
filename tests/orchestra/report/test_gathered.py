"""By which evaluation a run is compared, and on which sets; what `orchestra compare` tells of it."""

import json
import sys

import pytest
import written_experiment as written
from rich.console import Console

from orchestra import cli
from orchestra.config.faults import UserError
from orchestra.report.arms import as_json, compare_runs, notes, show
from orchestra.report.gathered import gather

LOOK = "look: {kind: evaluate, min_p: 0.1, after: polish}"


def experiment(tmp_path, arms, answers=None, recipe=written.RECIPE, **more):
    loaded = written.load(tmp_path, arms, recipe)
    answers = answers or written.drawn(dict.fromkeys(loaded.named, 0.5), 20, 1)
    return written.write(loaded, tmp_path / "asked-none", answers, **more)


@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        ("{}", "polish"),
        ("{stages: {polish: null}}", "explore"),
        # decodes otherwise
        (f"{{stages: {{{LOOK}}}}}", "look"),
        # of another policy, on other problems, on fewer, on several sets: not by these
        (f"{{stages: {{{LOOK.replace('min_p: 0.1', 'parent: base')}}}}}", "polish"),
        (f"{{stages: {{{LOOK.replace('min_p: 0.1', 'parent: explore')}}}}}", "polish"),
        (f"{{stages: {{{LOOK.replace('min_p: 0.1', 'problems: DATA')}}}}}", "polish"),
        (f"{{stages: {{{LOOK.replace('min_p: 0.1', 'limit: 10')}}}}}", "polish"),
        (f"{{stages: {{{LOOK.replace('min_p: 0.1', 'problems: {a: embedded, b: DATA}')}}}}}", "polish"),
        # the same problems by their name
        (f"{{stages: {{{LOOK.replace('min_p: 0.1', 'problems: embedded')}}}}}", "look"),
    ],
)
def test_the_stage_that_counts(tmp_path, changes, counts):
    other = "{stages: {imitate: {steps: 99}}}"
    folder = experiment(tmp_path, f"arms:\n  first: {other}\n  own: {changes}\n")
    found = gather([folder])
    assert found.stages == {"first": "polish", "own": counts} and not found.unfinished


def test_arms_that_train_nothing(tmp_path):
    """They are compared by what the base does."""
    recipe = written.RECIPE.split("  - {name: imitate")[0] + "  - {name: plain, kind: evaluate, samples: 2}\n"
    arms = "arms: {first: {}, hot: {stages: {hot: {kind: evaluate, min_p: 0.1, after: plain}}}}\n"
    assert gather([experiment(tmp_path, arms, recipe=recipe)]).stages == {"first": "plain", "hot": "hot"}


def test_it_is_the_recipes_stage_not_the_last_that_is_finished(tmp_path):
    """Of a run in progress that decodes otherwise at its end, the evaluation before that is none yet."""
    arms = f"arms:\n  first: {{}}\n  own: {{stages: {{{LOOK}}}}}\n"
    folder = experiment(tmp_path, arms, unfinished={("own", 17)})
    found = gather([folder])
    assert found.stages == {"first": "polish"} and found.unfinished == ["own, seed 17"]


def test_another_stage_by_name(tmp_path):
    """Arms that have none of that name are told apart from those that have not come so far."""
    folder = experiment(tmp_path, f"arms:\n  first: {{}}\n  own: {{stages: {{explore: null, {LOOK}}}}}\n")
    found = compare_runs([folder], "explore")
    assert [row.arm for row in found.comparison.rows] == ["first"] and found.without == ("own",)
    assert "without such a stage: own" in notes(found)
    with pytest.raises(UserError, match=r"no run has a stage 'explor' \(stages: .*did you mean 'explore'"):
        compare_runs([folder], "explor")


ARMS = "seeds: [1, 2]\narms: {a: {}, b: {stages: {imitate: {steps: 20}}}, c: {stages: {wide: null}}}\n"


def by_hand(arm, seed, stage, set_name):
    """Of 8 problems in each set: `a` has 4 and 2, `b` 6 and 2, under both seeds; elsewhere all have 4."""
    right = {"easy": {"a": 4, "b": 6}, "hard": {"a": 2, "b": 2}}.get(set_name, {}).get(arm, 4)
    return written.evaluation([[int(i < right)] for i in range(8)], [int(i < right) for i in range(8)], set_name)


@pytest.fixture
def sets(tmp_path):
    reported = "reported: {source: A blog, figures: [{what: own traces, value: 77.5, arm: a}]}\n"
    return experiment(tmp_path, ARMS + reported, by_hand, written.RECIPE + written.SETS)


def test_a_table_of_sets(sets):
    """The first table stays that of the last policy's own evaluation; an arm without the stage is not in the second."""
    found = compare_runs([sets])
    assert found.stages == dict.fromkeys("abc", "polish")
    assert [row.accuracy.estimate for row in found.comparison.rows] == [0.5] * 3
    wide = found.transfer
    assert wide.stages == {"a": "wide", "b": "wide"} and wide.differences == 2 and not wide.refused
    cells = {(row.arm, name): row for name, one in wide.sets.items() for row in one.rows}
    assert {key: row.accuracy.estimate for key, row in cells.items()} == {
        ("a", "easy"): 0.5, ("b", "easy"): 0.75, ("a", "hard"): 0.25, ("b", "hard"): 0.25,
    }  # fmt: skip
    assert cells["b", "easy"].difference.difference == 0.25 and cells["b", "hard"].difference.p_value == 1.0
    # over both sets, of which the other says nothing
    assert cells["b", "easy"].difference.p_holm == pytest.approx(2 * cells["b", "easy"].difference.p_value)
    console = Console(record=True, width=200)
    show(found, console)
    text = console.export_text()
    for words in ("easy (8 problems), sampled", "+25.0 [", "over all 2 differences of this table",
                  "reported by others, at another scale, so not to be set against the above: A blog",
                  "own traces: 77.5 (arm a)"):  # fmt: skip
        assert words in text, words


def test_one_set_in_full(sets):
    """Corrected as in the table of all of them."""
    found = compare_runs([sets], on="easy", of="greedy")
    assert found.comparison == compare_runs([sets], of="greedy").transfer.sets["easy"]
    assert found.stages == {"a": "wide", "b": "wide"}
    assert "p (Holm) is over the 2 differences on all sets" in notes(found)
    with pytest.raises(UserError, match=r"--set eazy: there is no such set \(sets: easy, hard\); did you mean 'easy'"):
        compare_runs([sets], on="eazy")
    # a stage may be named, too
    assert compare_runs([sets], "wide").transfer.sets.keys() == {"easy", "hard"}
    assert compare_runs([sets], "polish").transfer is None


def test_sets_that_are_not_to_be_had(tmp_path):
    folder = experiment(tmp_path, "arms: {a: {}, b: {stages: {polish: null}}}\n")
    with pytest.raises(UserError, match="no stage has asked all these runs several sets"):
        compare_runs([folder], on="easy")


def test_sets_that_cannot_be_compared(tmp_path):
    """One that the first arm was not asked, and one of which the arms were asked different problems."""
    arms = "arms: {a: {}, b: {stages: {wide: {problems: {easy: embedded, hard: DATA, more: DATA}}}}}\n"

    def answers(arm, seed, stage, name):
        return written.evaluation([[1], [0]], [1, 0], name, 10 if (arm, name) == ("b", "hard") else 0)

    folder = experiment(tmp_path, arms, answers, written.RECIPE + written.SETS)
    wide = compare_runs([folder]).transfer
    assert list(wide.sets) == ["easy"] and wide.differences == 1
    assert wide.refused["more"] == "arm 'a' was not asked it" and "4 problems in common" in wide.refused["hard"]
    with pytest.raises(UserError, match="--set more: arm 'a' was not asked it"):
        compare_runs([folder], on="more")


def test_json(sets):
    told = json.loads(as_json(compare_runs([sets])))
    assert told["transfer"]["sets"]["easy"]["rows"][1]["difference"]["difference"] == 0.25
    assert told["transfer"]["differences"] == 2 and told["rows"][0]["by_seed"] == [0.5, 0.5]
    assert told["reported"] == [{"source": "A blog", "figures": [{"what": "own traces", "value": 77.5, "arm": "a"}]}]
    assert told["set"] is None and json.loads(as_json(compare_runs([sets], on="hard")))["set"] == "hard"


def test_the_command_line(sets, monkeypatch, capfd):
    def orchestra(*arguments):
        monkeypatch.setattr(sys, "argv", ["orchestra", *arguments])
        return cli.main(), *capfd.readouterr()

    code, out, _ = orchestra("compare", str(sets), "--set", "hard", "--json")
    assert code == 0 and json.loads(out)["rows"][0]["accuracy"]["estimate"] == 0.25
    code, _, err = orchestra("compare", str(sets), "--set", "har")
    assert code == 1 and err.startswith("orchestra: --set har: there is no such set") and "did you mean 'hard'" in err
    code, out, _ = orchestra("report", str(sets))
    assert code == 0 and out.strip() == str(sets / "report.html")
    assert "By set of problems" in (sets / "report.html").read_text()


def test_runs_of_an_experiment_are_called_after_their_arms(tmp_path):
    """Both lie in folders called `seed-17`."""
    arms = "arms: {first: {}, own: {stages: {polish: {steps: 9}}}}\n"
    folder = experiment(tmp_path, arms)
    found = gather([folder / "first" / "seed-17", folder / "own" / "seed-17"])
    assert list(found.answers) == ["first", "own"]


def test_two_seeds_are_told_to_be_few(tmp_path):
    def said(seeds):
        arms = f"arms: {{first: {{}}, own: {{stages: {{polish: {{steps: 9}}}}}}}}\nseeds: {seeds}\n"
        place = tmp_path / str(seeds)
        place.mkdir()
        return [line for line in notes(compare_runs([experiment(place, arms)])) if "two training seeds" in line]

    assert len(said(2)) == 1 and said(1) == said(3) == []
