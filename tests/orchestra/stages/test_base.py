"""Stage 00 on a base that could be asked by its template or plainly: both are told, and the better is what counts."""

import json
from dataclasses import replace

import pytest
import tiny
from rich.console import Console

from evals.evaluate import Evaluation
from orchestra.config.recipe import Recipe
from orchestra.run.progress import Progress
from orchestra.work import policies
from orchestra.work.context import StageContext
from orchestra.work.resources import Resources


@pytest.fixture
def context(tmp_path):
    base = tiny.write_chatml(
        tmp_path / "m", eos=tiny.END_OF_TURN, declared=[tiny.END_OF_TEXT], untrained=[tiny.START, tiny.END_OF_TURN]
    )
    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(json.dumps({"question": q, "answer": "7"}) + "\n" for q in tiny.QUESTIONS[:3]))
    recipe = Recipe.model_validate(
        {
            "name": "small",
            "model": {"base": str(base), "lora": {"rank": 4, "alpha": 8}},
            "problems": {"train": str(problems), "test": str(problems)},
            "rollouts": {"engine": "transformers", "max_completion_tokens": 8, "max_prompt_tokens": 200},
            "stages": [{"name": "explore", "kind": "grpo", "steps": 1, "learning_rate": 1e-3}],
        }
    )
    folder = tmp_path / "00-base"
    folder.mkdir()
    progress = Progress(Console(record=True, width=200))
    return StageContext(recipe, recipe.all_stages[0], folder, tmp_path, {}, (), Resources(recipe), progress)


def read(context, name="evaluation"):
    return Evaluation.from_json((context.folder / f"{name}.json").read_text())


def test_both_formats_are_asked(context, monkeypatch):
    """By the template the end of a turn is an end as well, though nothing will ever be trained to say it."""
    asked = []
    generate = policies.evaluate

    def watched(engine, problems, *others, stop_token_ids, **named):
        asked.append((problems.prompts[0], stop_token_ids))
        return generate(engine, problems, *others, stop_token_ids=stop_token_ids, **named)

    monkeypatch.setattr(policies, "evaluate", watched)
    result = context.stage.run(context)
    tokenizer = context.resources.tokenizer()
    turn, text = tokenizer.convert_tokens_to_ids([tiny.END_OF_TURN, tiny.END_OF_TEXT])
    (plain, plain_stops), (chat, chat_stops) = asked
    assert plain.endswith("Answer:\n") and tiny.START not in plain and plain_stops == (text,)
    assert chat.endswith("<|im_start|>assistant\n") and set(chat_stops) == {text, turn}
    assert {"accuracy_plain", "accuracy_chat", "greedy_accuracy_plain", "greedy_accuracy_chat"} <= set(result.extra)
    assert read(context, "evaluation-plain").problem_ids == read(context, "evaluation-chat").problem_ids
    said = context.progress.console.export_text()
    assert "plain prompts, completions end with '<|endoftext|>': its chat template's '<|im_start|>'" in said


def test_the_better_counts(context, monkeypatch):
    """Sampled and greedy each by itself, or a gain in one of them would hold what the format gives."""
    context.stage.run(context)
    made = read(context)
    right = {}

    def rated(one, grade):
        accuracy = replace(one.accuracy, estimate=float(grade), low=float(grade), high=float(grade))
        return replace(one, correct=tuple((grade,) for _ in one.correct), accuracy=accuracy)

    def evaluated(context, prompt, file):
        sampled, greedy = right[prompt]
        return replace(made, sampled=rated(made.sampled, sampled), greedy=rated(made.greedy, greedy)), None

    monkeypatch.setattr(policies, "evaluated", evaluated)
    for plain, chat in (((0, 1), (1, 0)), ((1, 0), (0, 1)), ((1, 1), (0, 0)), ((0, 0), (1, 1))):
        right |= {"plain": plain, "chat": chat}
        better, _, told = policies.evaluated_in_both_formats(context, "chat")
        best = (max(plain[0], chat[0]), max(plain[1], chat[1]))
        assert (better.sampled.accuracy.estimate, better.greedy.accuracy.estimate) == best
        assert read(context) == better
        assert told == {
            "accuracy_plain": plain[0], "greedy_accuracy_plain": plain[1],
            "accuracy_chat": chat[0], "greedy_accuracy_chat": chat[1],
            # both formats are asked alike here, so the other one took as many as the one that counts
            "other_format_tokens": made.tokens,
        }  # fmt: skip


def test_what_fits_in_one_format_alone_is_asked_in_neither(context):
    """Later stages are compared on the same problems."""
    resources, stage = context.resources, context.stage
    lengths = {prompt: max(map(len, resources.test(stage, prompt).tokens)) for prompt in (None, "chat")}
    assert lengths["chat"] > lengths[None]
    context.resources._completion_budget = lambda: 256 - lengths["chat"] + 1
    counts = {(len(asked.problems), asked.left_out) for asked in (resources.test(stage), resources.test(stage, "chat"))}
    assert len(counts) == 1 and counts.pop()[1] >= 1
