"""Preflight on the tiny model: its numbers by hand, what it stops for, what it warns of, and what it is measured on."""

import json
from math import exp, log

import pytest
import tiny
from rich.console import Console

from evals.perplexity import PerplexityRatio
from models.prompts import render_prompt
from orchestra.config.faults import UserError
from orchestra.config.recipe import Recipe
from orchestra.run.gates import sentence
from orchestra.run.progress import Progress
from orchestra.work import preflight as module
from orchestra.work.context import StageContext
from orchestra.work.preflight import Rates, _warnings, preflight
from orchestra.work.resources import Resources
from orchestra.work.settings import PreflightSettings
from orchestra.work.traces import traces_of

LONGEST = 200
TEMPLATE = "Problem: {question}\nSolution:"


def rows(**more):
    """Solved problems; a value of `more` is that of each row, or made from its question."""
    return [
        {"question": question, "answer": "7", "solution": f"{at} + {at} = 7"}
        | {name: value(question) if callable(value) else value for name, value in more.items()}
        for at, question in enumerate(tiny.QUESTIONS[:4])
    ]


@pytest.fixture
def prepare(tiny_path, tmp_path, engine):
    """Makes the context of a preflight of files with these rows."""

    def make(*files, said=None, **keys):
        paths = [tmp_path / f"source{at}.jsonl" for at in range(len(files))]
        for path, lines in zip(paths, files, strict=True):
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        (tmp_path / "test.jsonl").write_text(json.dumps({"question": tiny.QUESTIONS[5], "answer": "19"}) + "\n")
        recipe = Recipe.model_validate(
            {
                "name": "small",
                "model": {"base": str(tiny_path), "lora": {"rank": 4, "alpha": 8}},
                "problems": {"train": str(paths[0]), "test": str(tmp_path / "test.jsonl")},
                "rollouts": {"engine": "transformers", "max_completion_tokens": 12, "max_prompt_tokens": 100},
                "stages": [{"name": "fit", "kind": "preflight", "data": [str(path) for path in paths], **keys}],
            }
        )
        resources = Resources(recipe)
        resources._own[str(tiny_path)] = engine
        progress = Progress(Console(record=True, width=2000))
        return StageContext(recipe, recipe.stages[0], tmp_path, tmp_path, {}, (), resources, progress)

    return make


@pytest.fixture(scope="module")
def policy(tiny_path):
    return tiny.policy(tiny_path)


def measure(context, policy):
    sources = {source: traces_of(context, source)[0] for source in context.stage.data}
    return preflight(context, policy, sources, context.stage, max_length=LONGEST)


def asked(context, question):
    return render_prompt(context.resources.tokenizer(), context.resources.format.messages(question))


def nats(policy, prompt, answer):
    """Of each answer token."""
    logprobs = tiny.next_token_logprobs(policy, [*prompt, *answer])
    return [-float(logprobs[len(prompt) - 1 + t, token]) for t, token in enumerate(answer)]


def test_numbers_by_hand(prepare, policy, tokenizer, monkeypatch):
    """Text, template gap and ratio from the policy's own log-probabilities, each sequence alone."""
    context = prepare(rows(), template="Q {question} A")
    answers = {}
    sampled = module._own_answers
    monkeypatch.setattr(module, "_own_answers", lambda *args: answers.update(sampled(*args)) or dict(answers))
    found = measure(context, policy)
    (one,) = found.sources
    text, otherwise, own = [], [], []
    for row in rows():
        prompt, second = tiny.tokens(tokenizer, [asked(context, row["question"]), f"Q {row['question']} A"])
        completion = f"<think>\n{row['solution']}\n</think>\n\\boxed{{7}}"
        answer = [*tiny.tokens(tokenizer, [completion])[0], tokenizer.eos_token_id]
        text += nats(policy, prompt, answer)
        otherwise += nats(policy, second, answer)
        own += nats(policy, prompt, answers[tuple(prompt)].token_ids)
    mean = sum(text) / len(text)
    assert one.text.nll == pytest.approx(mean, rel=1e-5) and one.text.tokens == len(text)
    assert one.text.rare == sum(value > -log(0.01) for value in text) / len(text)
    assert one.template_gap == pytest.approx(sum(otherwise) / len(text) - mean, rel=1e-4)
    assert one.own.nll == pytest.approx(sum(own) / len(own), rel=1e-5) and found.tokens == len(own)
    assert one.ratio.ratio == pytest.approx(exp(mean - sum(own) / len(own)), rel=1e-4)


def test_a_stage_tells_it(prepare):
    """In the result, two files, the terminal and the report, whose table has the same numbers."""
    context = prepare(rows(), rows()[:2])
    result = context.stage.run(context)
    written, table = (json.loads((context.folder / f"{name}.json").read_text()) for name in ("preflight", "statistics"))
    said = context.progress.console.export_text().splitlines()
    assert [one["source"] for one in written["sources"]] == list(table) == ["source0.jsonl", "source1.jsonl"]
    assert [line.split()[:3] for line in said if " nats a token" in line] == [
        ["source0.jsonl:", "4", "problems,"], ["source1.jsonl:", "2", "problems,"]
    ]  # fmt: skip
    for source in table:
        assert table[source] == {name: result.extra[f"{source}: {name}"] for name in table[source]}
    warnings = [line for line in said if "warning: source" in line]
    assert result.extra["warnings"] == len(warnings) == sum(len(one["warnings"]) for one in written["sources"]) > 0
    # random weights write all but this
    assert any("of the policy's own answers, above 1.25 (max_ratio)" in line for line in warnings)
    assert sentence(result).startswith("warnings ")


def test_another_prompt_stops_it(prepare, policy):
    """Before anything is measured, with file, row, both prompts and what to do."""
    context = prepare(rows(prompt=TEMPLATE.format(question="What?")))
    with pytest.raises(UserError) as raised:
        measure(context, None)
    message = str(raised.value)
    assert "source0.jsonl: `prompt` of 4 of 4 rows is not what evaluation asks: row 'source0-1'" in message
    assert r"'Problem: What?\nSolution:', evaluation '" in message and "mismatch: warn" in message
    assert "\n" not in message
    # and before the run, which may begin with hours of a teacher
    with pytest.raises(UserError, match=r"stage 'fit': .*source0.jsonl: `prompt`"):
        context.stage.ready(context.recipe)


def test_what_differs_is_shown(prepare):
    """Also where it is the last letter of a long prompt."""
    plain = prepare(rows())
    context = prepare(rows(prompt=lambda question: asked(plain, question) + " "))
    with pytest.raises(UserError) as raised:
        context.stage.ready(context.recipe)
    has, asks = str(raised.value).partition("row 'source0-1' has ")[2].split("; ")[0].split(", evaluation ")
    assert has.endswith("<|assistant|> '") and asks.endswith("<|assistant|>'") and has.startswith("...")


@pytest.mark.parametrize("form", ["text", "messages", "none", "another column"])
def test_the_same_prompt_passes(prepare, form):
    plain = prepare(rows())
    prompts = {
        "text": lambda question: asked(plain, question),
        "messages": plain.resources.format.messages,
        "none": None,
        "another column": 3,
    }
    context = prepare(rows(prompt=prompts[form]))
    context.stage.ready(context.recipe)


def test_messages_are_compared_as_they_are_rendered(prepare):
    context = prepare(rows(prompt=[{"role": "user", "content": "Problem: what?"}]))
    with pytest.raises(UserError, match="Problem: what"):
        context.stage.ready(context.recipe)


def test_with_warn_the_rows_own_prompt_is_the_second(prepare, policy, tokenizer):
    context = prepare(rows(prompt=lambda question: f"{question} Well:"), mismatch="warn")
    context.stage.ready(context.recipe)
    (one,) = measure(context, policy).sources
    expected = []
    for row in rows():
        (second,) = tiny.tokens(tokenizer, [f"{row['question']} Well:"])
        completion = f"<think>\n{row['solution']}\n</think>\n\\boxed{{7}}"
        expected += nats(policy, second, [*tiny.tokens(tokenizer, [completion])[0], tokenizer.eos_token_id])
    assert one.otherwise.nll == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    assert one.second == "the rows' own prompts" and "is not what evaluation asks" in one.warnings[0]


def test_what_it_is_measured_on(prepare, policy):
    """One text a problem, the same problems of two sources, and nothing that is not trained on."""
    again = [{**row, "id": f"again-{at}"} for at, row in enumerate(rows())]
    long = {"question": "Why?", "answer": "7", "solution": "1 + " * 200}
    held_out = {"question": tiny.QUESTIONS[5], "answer": "19", "solution": "30 - 11 = 19"}
    context = prepare([*rows(), *again, long, held_out], rows()[::-1], problems=3)
    first, second = measure(context, policy).sources
    assert (first.left_out, second.left_out) == (1, 0)
    assert len(first.problem_ids) == 3 and not [id for id in first.problem_ids if id.startswith("again")]
    # the second file has the same problems the other way round
    place = {f"source0-{at}": f"source1-{5 - at}" for at in range(1, 5)}
    assert [place[id] for id in first.problem_ids] == list(second.problem_ids)[::-1]
    # answered once, whoever asks
    assert first.own.nats_by_text == pytest.approx(second.own.nats_by_text[::-1])


def test_nothing_fits(prepare):
    context = prepare([{"question": "Why?", "answer": "7", "solution": "1 + " * 200}])
    with pytest.raises(UserError, match=r"source0.jsonl: none of its 1 texts fits.*leave it out of `data`"):
        measure(context, None)


def test_rates(prepare, policy):
    """Of four texts one has an empty box, and another an end token in its midst."""
    made = rows(solution="so")
    made[1]["answer"], made[3]["solution"] = "}", "so <|end|> and so on"
    context = prepare(made)
    tokenizer = context.resources.tokenizer()
    assert tokenizer.eos_token == "<|end|>"
    (one,) = measure(context, policy).sources
    # the tiny model declares further ends, none of which is in these texts
    texts = [f"<think>\n{row['solution']}\n</think>\n\\boxed{{{row['answer']}}}" for row in made]
    assert not {*tiny.MORE_ENDS} & {id for ids in tiny.tokens(tokenizer, texts) for id in ids}
    assert one.rates == Rates(answers=0.75, format=0.75, ended=0.75)


def test_bounds():
    """What is at a bound is within it."""
    settings = PreflightSettings(data="traces", max_ratio=2.0, min_answer_rate=0.9, min_end_rate=0.8)

    def warned(ratio, answers, ended):
        found = _warnings(settings, Rates(answers, 1.0, ended), PerplexityRatio(ratio, None, None, 0.95, 1))
        return [warning.partition("(")[2].partition(")")[0] for warning in found]

    assert warned(2.0, 0.9, 0.8) == []
    assert warned(2.01, 0.9, 0.8) == ["max_ratio"]
    assert warned(1.0, 0.89, 0.79) == ["min_answer_rate", "min_end_rate"]


def test_a_template_has_room_for_the_question():
    for template in ("Problem:", "{question} {question}"):
        with pytest.raises(ValueError, match="must stand in it once"):
            PreflightSettings(data="traces", template=template)
    # braces of other kinds are text
    assert PreflightSettings(data="traces", template="{x} {question} {}").template == "{x} {question} {}"
