"""Every kind of stage through every verb but its work, which the end-to-end tests do."""

import inspect
import json

import numpy as np
import pytest

from orchestra.config.loading import load_recipe
from orchestra.config.stage import OUTPUTS, Stage
from orchestra.plan.devices import device_of
from orchestra.plan.estimate import Estimator
from orchestra.plan.machine import Machine
from orchestra.report.data import StageRecord
from orchestra.run.fingerprint import fingerprint, reads
from orchestra.run.ledger import Fingerprint, LedgerEntry, StageResult
from orchestra.stages import all_kinds, kinds
from settings import FREE, marked, node_in

STAGES = {
    "distill": {"teacher": "embedded/teacher"},
    "preflight": {"data": "traces"},
    "sft": {"data": "traces", "steps": 3, "learning_rate": 1e-3},
    "grpo": {"steps": 3, "learning_rate": 1e-4, "beta": 0.01},
    "evaluate": {"samples": 2},
    "export": {},
    "route": {},
    "grow": {"data": "traces", "steps": 3, "learning_rate": 1e-3},
    "merge": {"merge": "linear"},
    "mixture": {},
    "panel": {"change": "clone", "expert": "algebra", "to": "twin"},
    "probe": {},
    "solutions": {"same_problems_as": "traces"},
}
NAMES = {
    "distill": "traces",
    "preflight": "fit",
    "sft": "imitate",
    "grpo": "explore",
    "evaluate": "look",
    "export": "release",
    "route": "routed",
    "grow": "grown",
    "merge": "one",
    "mixture": "inside",
    "panel": "twice",
    "probe": "moved",
    "solutions": "written",
}
KINDS = sorted(all_kinds())
# what those take that make something of a panel
EXPERTS = {"name": "experts", "kind": "sft", "data": "traces", "steps": 3, "learning_rate": 1e-3, "expert": "each"}
OF_PANEL = ("route", "grow", "merge", "mixture", "panel")


@pytest.fixture
def recipe(tmp_path):
    """A recipe with a stage of each kind."""
    stages = [{"name": NAMES[kind], "kind": kind, **keys} for kind, keys in STAGES.items()]
    first = [stage for stage in stages if stage["kind"] not in OF_PANEL]
    lines = [
        "name: each", "model: {base: embedded/student}", "problems: {train: embedded, test: embedded}", "stages:",
        *(f"  - {json.dumps(stage)}" for stage in (*first, EXPERTS, *(one for one in stages if one not in first))),
    ]  # fmt: skip
    (tmp_path / "each.yaml").write_text("\n".join(lines))
    return load_recipe(str(tmp_path / "each.yaml"), None)


@pytest.fixture
def entries(recipe):
    """As if every stage was finished."""
    made = {}
    for stage in recipe.all_stages:
        outputs = {name: f"{name} of {stage.name}" for given in stage.gives for name in OUTPUTS.get(given, ())}
        result = StageResult(stage.name, stage.kind)
        made[stage.name] = LedgerEntry(stage.name, Fingerprint({}, {}, {}), outputs, result)
    return made


def of(recipe, kind) -> Stage:
    return next(stage for stage in recipe.all_stages if stage.kind == kind)


def test_each_kind_is_here():
    assert set(STAGES) == set(kinds()) and set(KINDS) - set(kinds()) == {"base"}


@pytest.mark.parametrize("kind", KINDS)
def test_says_what_it_is(kind):
    """A file of its own, a docstring, a `run`, and a class attribute only where the base class has one."""
    own = all_kinds()[kind]
    assert own.__module__ == f"orchestra.stages.{kind}" and own.__doc__ and "run" in vars(own)
    assert set(own.gives) <= {"policy", "imitation", "traces", "evaluation", "panel"}
    for name, method in inspect.getmembers(own, inspect.isfunction):
        overridden = getattr(Stage, name, None)
        if name in vars(own) and overridden is not None:
            assert list(inspect.signature(method).parameters) == list(inspect.signature(overridden).parameters), name


@pytest.mark.parametrize("kind", KINDS)
def test_plan(recipe, kind):
    estimator = Estimator(recipe, device_of(Machine(2, 24 * 2**30, ()), "embedded"))
    row = of(recipe, kind).plan(estimator)
    assert (row.name, row.kind) == (of(recipe, kind).name, kind)
    assert row.seconds >= 5 and row.peak > 2**30 and row.memory["engine weights"] > 0
    assert (row.tokens > 0) == (kind not in ("solutions", "panel"))


@pytest.mark.parametrize("kind", KINDS)
def test_summary(recipe, kind):
    said = of(recipe, kind).summary(recipe)
    assert 5 < len(said) < 100 and "\n" not in said


@pytest.mark.parametrize("kind", KINDS)
def test_fingerprint(recipe, entries, kind):
    """Its own keys, the parts that it reads, its parents' policies, its own file; never another kind's."""
    stage = of(recipe, kind)
    made = fingerprint(recipe, stage, entries)
    assert {f"stage.{name}" for name in type(stage).model_fields 
            if name not in marked(type(stage), FREE) and node_in(type(stage).model_fields[name].annotation) is None
    } <= set(made.config)  # fmt: skip
    assert all(any(key.startswith(part) for key in made.config) for part in reads(stage))
    assert [f"adapter of stage {name}" in made.inputs for name in recipe.parents_of(stage.name)] == [True] * len(
        recipe.parents_of(stage.name)
    )
    panel = recipe.panel_of(stage.name)
    assert [name for name in made.inputs if name.startswith("panel of")] == [f"panel of stage {panel}"] * (
        panel is not None
    )
    assert [name for name in made.code if name.startswith("orchestra.stages.")] == [f"orchestra.stages.{kind}"]
    assert not any(name.startswith(("orchestra.report", "orchestra.plan", "orchestra.run")) for name in made.code)


@pytest.mark.parametrize("kind", KINDS)
def test_report(recipe, kind):
    """From a full record as from an empty one."""
    metrics = ({"step": 1.0, "loss": 0.5, "reward": 0.1}, {"step": 2.0, "loss": 0.4, "reward": 0.2})
    for record in (StageRecord("x", kind), StageRecord("x", kind, metrics=metrics, statistics={"kept": 3})):
        parts = record.parts
        assert all(type(part).__name__ in ("Course", "Counts", "Chart") for part in parts)
    assert list(all_kinds()[kind].headline([])) == []


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_asks_of_engines(recipe, kind):
    stage = of(recipe, kind)
    assert stage.longest_completion(recipe) >= 0 and np.iterable(stage.other_models())
    assert stage.evaluation(recipe).max_completion_tokens == recipe.rollouts.max_completion_tokens
