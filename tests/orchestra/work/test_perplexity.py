"""Perplexity beside accuracy on the tiny model: by hand, before and after, which texts, and what is not read twice."""

import json
from dataclasses import replace
from math import exp

import pytest
import solved
import tiny

from evals.modelled import Modelled
from evals.perplexity import score
from models.adapters import save_adapter
from models.processes import Processes
from models.prompts import render_prompt
from orchestra.work import perplexity as module
from orchestra.work import texts
from orchestra.work.perplexity import HELD_OUT, measure
from orchestra.work.policies import evaluated, serve
from orchestra.work.texts import scored

SFT = {"kind": "sft", "steps": 1, "learning_rate": 1e-3, "preflight": False}
GRPO = {"kind": "grpo", "steps": 1, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def policy(tiny_path):
    return tiny.policy(tiny_path)


@pytest.fixture(scope="module")
def evaluation(tiny_path, engine, policy, tmp_path_factory):
    """Of the two held-out problems; which policy answered does not matter here."""
    folder = tmp_path_factory.mktemp("evaluated")
    recipe = solved.recipe(tiny_path, folder, [{"name": "explore", **GRPO}], test=solved.held_out())
    context = solved.context(recipe, "explore", folder, engine)
    serve(context, policy)
    return evaluated(context)[0]


@pytest.fixture
def stage(tiny_path, tmp_path, engine):
    """Makes the context of the last of some stages, of which `first` trains on one file and `second` on another."""
    files = {
        "one": solved.written(tmp_path / "one.jsonl", solved.rows()),
        "two": solved.written(tmp_path / "two.jsonl", solved.rows(2, solution="7 it is")),
    }

    def make(*stages, at=None, test=None, **sections):
        named = [{**one, "data": files[one["data"]]} if "data" in one else one for one in stages]
        test = solved.held_out() if test is None else test
        recipe = solved.recipe(tiny_path, tmp_path, named, test=test, **sections)
        return solved.context(recipe, at or named[-1]["name"], tmp_path / "run", engine)

    return make


FIRST, SECOND = ({"name": name, "data": data, **SFT} for name, data in (("first", "one"), ("second", "two")))


def nll(policy, context, lines):
    """Of the answer tokens of these solved problems, each text alone."""
    tokenizer, found = context.resources.tokenizer(), []
    for line in lines:
        prompt = render_prompt(tokenizer, context.resources.format.messages(line["question"]))
        text = f"<think>\n{line['solution']}\n</think>\n\\boxed{{{line['answer']}}}"
        asked, answer = tiny.tokens(tokenizer, [prompt, text])
        logprobs = tiny.next_token_logprobs(policy, [*asked, *answer, tokenizer.eos_token_id])
        found += [
            -float(logprobs[len(asked) - 1 + t, token]) for t, token in enumerate([*answer, tokenizer.eos_token_id])
        ]
    return sum(found) / len(found)


def test_by_hand(stage, policy, evaluation):
    """Of the file and of the one held-out solution, under the policy and under the base, which is the adapter off."""
    context = stage(FIRST)
    found = measure(context, policy, evaluation)
    assert (found.policy, found.start, list(found.sources)) == ("first", "base", ["one.jsonl", HELD_OUT])
    for name, lines in {"one.jsonl": solved.rows(), HELD_OUT: solved.held_out()[:1]}.items():
        one = found.sources[name]
        assert one.after.nll == pytest.approx(nll(policy, context, lines), rel=1e-5)
        with policy.disable_adapter():
            assert one.before.nll == pytest.approx(nll(policy, context, lines), rel=1e-5)
        assert one.ratio.ratio == pytest.approx(exp(one.after.nll - one.before.nll))
    assert Modelled.from_json((context.folder / "perplexity.json").read_text()) == found
    assert "    held-out text: 1 of the 2 problems in test.jsonl has a written solution" in solved.said(context)


def test_the_policy_that_it_started_from_is_what_it_is_held_against(stage, tiny_path, policy, evaluation):
    """Problem by problem too: where one of two problems was right before and none is now, accuracy fell by half."""
    context = stage(FIRST, SECOND)
    parent = tiny.policy(tiny_path, seed=9)
    folder = context.folder.parent / "first"
    save_adapter(parent, folder / "adapter")
    right = replace(evaluation, sampled=replace(evaluation.sampled, correct=((1,), (0,))))
    none = replace(evaluation, sampled=replace(evaluation.sampled, correct=((0,), (0,))))
    (folder / "evaluation.json").write_text(right.to_json())
    context = stage(FIRST, SECOND)
    found = measure(context, policy, none)
    assert (found.start, list(found.sources)) == ("first", ["one.jsonl", "two.jsonl", HELD_OUT])
    assert found.sources["one.jsonl"].before.nll == pytest.approx(nll(parent, context, solved.rows()), rel=1e-5)
    assert found.sources["one.jsonl"].after.nll == pytest.approx(nll(policy, context, solved.rows()), rel=1e-5)
    assert found.accuracy.difference == -0.5
    # other problems are no comparison
    (folder / "evaluation.json").write_text(replace(right, problem_ids=("a", "b")).to_json())
    assert measure(context, policy, none).accuracy is None


def test_what_was_measured_is_not_read_again(stage, policy, evaluation, monkeypatch):
    """A stage after `first` knows that one's numbers; of a file that is new the policy before is read as well."""
    read = []

    def counting(context, model, sequences, **named):
        read.append(len(sequences))
        return scored(context, model, sequences, **named)

    monkeypatch.setattr(module, "scored", counting)
    context = stage(FIRST, SECOND, at="first")
    before = measure(context, policy, evaluation)
    save_adapter(policy, context.folder / "adapter")
    # four texts and a held-out one, after and before
    assert read == [5, 5]
    found = measure(stage(FIRST, {"name": "explore", **GRPO}), policy, evaluation)
    assert read[2:] == [5] and found.start == "first"
    assert {name: one.before for name, one in found.sources.items()} == {
        name: one.after for name, one in before.sources.items()
    }
    # nothing was trained, so nothing changed
    assert all(one.ratio.ratio == 1 for one in found.sources.values())
    measure(stage(FIRST, SECOND), policy, evaluation)
    assert read[3:] == [7, 2]
    # from the base, of which `first` has measured all but the new file
    measure(stage(FIRST, {**SECOND, "parent": "base"}), policy, evaluation)
    assert read[5:] == [7, 2]
    (context.folder / "perplexity.json").write_text("{}")
    measure(stage(FIRST, {"name": "explore", **GRPO}), policy, evaluation)
    assert read[7:] == [5, 5]


def test_later_stages_do_not_count(stage, policy, evaluation):
    """They may be changed when this one is finished."""
    context = stage(FIRST, SECOND, at="first")
    assert list(measure(context, policy, evaluation).sources) == ["one.jsonl", HELD_OUT]


def test_one_text_a_problem_and_no_more_than_asked_for(stage, tmp_path, policy, evaluation):
    again = [{**line, "id": f"again-{at}", "solution": "no"} for at, line in enumerate(solved.rows())]
    long = {"question": "Why?", "answer": "7", "solution": "1 + " * 200}
    context = stage(FIRST, evaluate={"perplexity": 3})
    (tmp_path / "one.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*solved.rows(), *again, long]))
    one = measure(context, policy, evaluation).sources["one.jsonl"]
    assert len(one.after.tokens_by_text) == 3
    tokenizer = context.resources.tokenizer()
    texts = [f"<think>\n{line['solution']}\n</think>\n\\boxed{{7}}" for line in solved.rows()]
    assert set(one.after.tokens_by_text) <= {len(ids) + 1 for ids in tiny.tokens(tokenizer, texts)}


def test_where_nothing_is_held_out_or_asked_for(stage, policy, evaluation):
    unsolved = solved.held_out(None)
    context = stage(FIRST, test=unsolved)
    assert list(measure(context, policy, evaluation).sources) == ["one.jsonl"]
    assert "    held-out text: none of the 2 problems in test.jsonl has a written solution" in solved.said(context)
    (context.folder / "perplexity.json").unlink()
    for stages, sections in (({"name": "explore", **GRPO},), {}), ((FIRST,), {"evaluate": {"perplexity": 0}}):
        context = stage(*stages, test=unsolved, **sections)
        assert measure(context, policy, evaluation) is None
        assert not (context.folder / "perplexity.json").exists()


class Both(Processes):
    """Two processes in one: each does its share, one after the other."""

    def __init__(self) -> None:
        super().__init__(0, 2)

    def shared(self, pieces, work):
        parts = [list(work(range(rank, pieces, 2))) for rank in (0, 1)]
        return [parts[piece % 2][piece // 2] for piece in range(pieces)]


def test_two_processes_find_the_same_to_the_last_bit(stage, policy, monkeypatch):
    """What stands in a batch together decides how its rows are padded, so the batches are those of one process."""
    batches = []

    def noting(policy, batch, **named):
        batches.append(tuple(batch))
        return score(policy, batch, **named)

    monkeypatch.setattr(texts, "score", noting)
    context = stage(FIRST)
    sequences = [(tuple(range(1, 9 + at % 5)), tuple(range(20, 24 + at % 7))) for at in range(37)]
    alone = scored(context, policy, sequences, rare_below=0.01)
    of_one, batches[:] = sorted(batches), []
    assert scored(replace(context, processes=Both()), policy, sequences, rare_below=0.01) == alone
    assert sorted(batches) == of_one and len(of_one) == 5
    # each in its place
    assert [one.tokens for one in alone] == [len(answer) for _, answer in sequences]
