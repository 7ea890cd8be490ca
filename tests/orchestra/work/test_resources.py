"""What a run's stages share: prompts that fit, no training problem among the held-out ones, one engine per base."""

import json
from dataclasses import replace

import pytest
import tiny
import torch
from rich.console import Console

from models.base import arithmetic_of
from orchestra.config.faults import UserError
from orchestra.config.recipe import Recipe
from orchestra.run.progress import Progress
from orchestra.work import resources as module
from orchestra.work.context import StageContext
from orchestra.work.policies import start_policy
from orchestra.work.resources import Resources, stage_seed
from orchestra.work.traces import traces_of


def write(path, questions):
    rows = [{"question": question, "answer": str(i)} for i, question in enumerate(questions)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def held_out(resources):
    """The test problems as the base's evaluation asks them."""
    return resources.test(resources.recipe.all_stages[0])


LONG = "Count the birds that sit on the old fence near the river bank every single morning. "


@pytest.fixture
def recipe(tiny_path, tmp_path):
    def make(train=tiny.QUESTIONS[:4], test=tiny.QUESTIONS[4:], stages=None, **rollouts):
        return Recipe.model_validate(
            {
                "name": "small",
                "model": {"base": str(tiny_path), "lora": {"rank": 4, "alpha": 8}},
                "problems": {
                    "train": write(tmp_path / "train.jsonl", train), "test": write(tmp_path / "test.jsonl", test)
                },
                "rollouts": {
                    "group_size": 2, "prompts_per_step": 2, "max_completion_tokens": 16, "max_prompt_tokens": 40,
                    "engine": "transformers",
                } | rollouts,
                "stages": stages or [{"name": "explore", "kind": "grpo", "steps": 1, "learning_rate": 1e-3}],
            }
        )  # fmt: skip

    return make


@pytest.fixture
def started(monkeypatch):
    """Stands in for engines; [(model, capacity, engine)] as they are asked for."""

    class Idle:
        ended = ()

        def rest(self):
            self.ended += ("rest",)

        def close(self):
            self.ended += ("close",)

    asked = []

    def start(model, serving, capacity):
        assert serving.engine in ("transformers", "vllm")
        engine = Idle()
        asked.append((model, capacity, engine))
        return engine

    monkeypatch.setattr(module, "start_engine", start)
    return asked


def test_prompts_are_rendered_once_for_text_and_tokens(recipe):
    resources = Resources(recipe())
    asked = resources.train()
    tokenizer = resources.tokenizer()
    assert [problem.question for problem in asked.problems] == list(tiny.QUESTIONS[:4])
    for problem, prompt, ids in zip(asked.problems, asked.prompts, asked.tokens, strict=True):
        assert prompt == f"<|user|>{problem.question}<|assistant|>"
        assert list(ids) == tokenizer(prompt, add_special_tokens=False).input_ids
    assert asked.left_out == 0


def test_held_out_problems_are_not_trained_on(recipe):
    leaked = LONG + "How many birds are there in all of the days of one week?"
    nearly = LONG + "What is their number?"
    resources = Resources(
        recipe(train=[*tiny.QUESTIONS[:2], nearly], test=[leaked, tiny.QUESTIONS[4]], max_prompt_tokens=90)
    )
    asked = resources.train()
    assert [problem.question for problem in asked.problems] == list(tiny.QUESTIONS[:2])
    assert asked.left_out == 1


def test_problems_of_an_evaluate_stage_are_held_out_too(recipe, tmp_path):
    leaked = LONG + "How many birds are there in all of the days of one week?"
    nearly = LONG + "What is their number?"
    other = {"name": "look", "kind": "evaluate", "problems": write(tmp_path / "other.jsonl", [leaked])}
    stages = [{"name": "explore", "kind": "grpo", "steps": 1, "learning_rate": 1e-3}]
    train = [*tiny.QUESTIONS[:2], nearly]
    kept = Resources(recipe(train=train, stages=stages, max_prompt_tokens=90)).train()
    assert len(kept.problems) == 3
    asked = Resources(recipe(train=train, stages=[*stages, other], max_prompt_tokens=90)).train()
    assert [problem.question for problem in asked.problems] == list(tiny.QUESTIONS[:2])
    assert asked.left_out == 1


def test_a_file_to_imitate_is_held_apart_too(recipe, tmp_path):
    leaked = LONG + "How many birds are there in all of the days of one week?"
    rows = [
        {"question": question, "answer": "4", "solution": "2 + 2 = 4"}
        for question in (tiny.QUESTIONS[0], LONG + "What is their number?", tiny.QUESTIONS[1], tiny.QUESTIONS[4])
    ]
    (tmp_path / "solved.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = str(tmp_path / "solved.jsonl")
    stage = {"name": "imitate", "kind": "sft", "data": data, "steps": 1, "learning_rate": 1e-3}
    look = {"name": "look", "kind": "evaluate", "problems": write(tmp_path / "other.jsonl", [leaked])}
    made = recipe(stages=[stage, look], test=tiny.QUESTIONS[4:])
    said = Console(record=True, width=200)
    context = StageContext(
        made, made.stages[0], tmp_path, tmp_path, {}, (), Resources(made), Progress(said)
    )  # fmt: skip
    traces, left_out = traces_of(context, data)
    assert [trace.question for trace in traces] == list(tiny.QUESTIONS[:2]) and left_out == 2
    assert "2 of 4 problems overlap with held-out ones: left out" in said.export_text()
    write(tmp_path / "other.jsonl", [row["question"] for row in rows])
    with pytest.raises(ValueError, match="all of its problems overlap"):
        traces_of(replace(context, resources=Resources(made)), data)


def test_what_is_too_long_is_left_out_and_counted(recipe):
    resources = Resources(recipe(train=[*tiny.QUESTIONS[:2], LONG * 2], test=[LONG * 8, *tiny.QUESTIONS[4:]]))
    assert (len(resources.train().problems), resources.train().left_out) == (2, 1)
    # test problems only have to fit the model: 256 positions less 16 for the completion
    assert (len(held_out(resources).problems), held_out(resources).left_out) == (2, 1)


def test_nothing_fits(recipe):
    resources = Resources(recipe(max_prompt_tokens=3))
    with pytest.raises(UserError, match=r"none of the 4 training problems .* the limit is 3; raise"):
        resources.train()


def test_one_engine_per_base_for_the_whole_run(recipe, started):
    resources = Resources(recipe())
    assert resources.engine() is resources.engine() is resources.engine(resources.recipe.model.base)
    ((model, capacity, engine),) = started
    assert model == resources.recipe.model.base
    assert capacity.lora_rank == 0, "folded weights need no room for an adapter"
    teacher = resources.engine("embedded/teacher")
    assert teacher is not engine and len(started) == 2
    resources.release("embedded/teacher")
    resources.release(resources.recipe.model.base)
    assert teacher.ended == ("rest",) and engine.ended == ()
    resources.close()
    assert engine.ended == ("close",) and teacher.ended == ("rest", "close")


def test_only_one_engine_of_a_process_can_give_its_memory_back(recipe, started):
    """vLLM's sleep mode is for one engine: the first teacher's, whether it sleeps already or is still awake."""
    resources = Resources(recipe())
    for model in (resources.recipe.model.base, "embedded/teacher", "embedded/student"):
        resources.engine(model)
    resources.release("embedded/teacher")
    assert [capacity.temporary for _, capacity, _ in started] == [False, True, False]


def test_room_for_the_longest_prompt_and_completion_of_any_stage(recipe, started, tmp_path):
    """Every prompt of every evaluation must fit, those of an evaluate stage's own problems too."""
    other = write(tmp_path / "other.jsonl", [LONG * 4])
    stages = [
        {"name": "traces", "kind": "distill", "teacher": "self", "max_tokens": 70},
        {"name": "imitate", "kind": "sft", "data": "traces", "steps": 1, "learning_rate": 1e-3},
        {"name": "again", "kind": "evaluate", "problems": other, "max_completion_tokens": 30},
    ]
    resources = Resources(recipe(stages=stages))
    longest = max(len(ids) for ids in resources.test(resources.recipe.stages[2]).tokens)
    assert longest > 60
    resources.engine()
    assert started[0][1].max_model_len == longest + 70
    assert Resources(recipe(test=[*tiny.QUESTIONS[4:], LONG * 3])).engine()
    assert started[1][1].max_model_len > 16 + 60


def test_an_adapter_engine_reserves_its_rank(recipe, started):
    resources = Resources(recipe(sync="adapter", engine="vllm"))
    resources.engine()
    resources.engine("embedded/teacher")
    assert [capacity.lora_rank for _, capacity, _ in started] == [4, 0]
    assert Resources(recipe(sync="auto", engine="vllm")).engine() and started[-1][1].lora_rank == 0, "folded"


def test_every_stage_has_a_seed_of_its_own(recipe):
    one = recipe()
    seeds = {name: stage_seed(one, name) for name in ("traces", "imitate", "explore", "consolidate", "polish")}
    assert len(set(seeds.values())) == 5
    assert seeds["polish"] == stage_seed(one, "polish"), "of its name, not of its place"
    other = one.model_copy(update={"seed": one.seed + 1})
    assert stage_seed(other, "polish") != seeds["polish"]
    assert all(0 <= seed < 2**31 for seed in seeds.values())


def test_the_held_out_problems_are_the_same_for_every_seed(recipe):
    def questions(seed):
        base = recipe().model_copy(update={"seed": seed})
        problems = base.problems.model_copy(
            update={"train": "embedded", "test": "embedded", "train_limit": 30, "test_limit": 20}
        )
        rollouts = base.rollouts.model_copy(update={"max_prompt_tokens": 120})
        resources = Resources(base.model_copy(update={"problems": problems, "rollouts": rollouts}))
        return [problem.question for problem in held_out(resources).problems], [
            problem.question for problem in resources.train().problems
        ]

    (test, train), (same, other) = questions(1), questions(2)
    assert test == same and train != other


# the trainer's arithmetic


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_recipe_says_the_trainers_arithmetic(recipe, tmp_path, dtype):
    made = recipe()
    made = made.model_copy(update={"model": made.model.model_copy(update={"dtype": dtype})})
    context = StageContext(
        made, made.stages[0], tmp_path, tmp_path, {}, (), Resources(made), Progress(Console(quiet=True))
    )
    assert arithmetic_of(start_policy(context)) == getattr(torch, dtype)
