"""What must hold between the stages of a recipe: names, references, rising beta.

Works on the raw mapping, before and whether or not the single keys are valid, so that all faults are found at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from recipes.errors import Fault, near
from rewards.formats import FORMATS

TRAINS = ("sft", "grpo")
EVALUATED = ("sft", "grpo", "evaluate")
SHIPPED = ("embedded/student", "embedded/teacher")
RESERVED = ("base", "start", "previous", "self", "discarded")

Raw = Mapping[str, Any]


def is_file(data: str) -> bool:
    """Whether `data:` of an sft stage is a file rather than the name of a stage."""
    return "/" in data or data.endswith((".jsonl", ".json"))


def is_problem_file(source: str) -> bool:
    """Whether a source of problems is a local file rather than `embedded` or a Hub dataset."""
    return source.endswith((".jsonl", ".json")) or source.startswith((".", "/", "~"))


def faults_between_stages(recipe: Raw) -> list[Fault]:
    """Every fault that concerns more than one key, in the order of the stages."""
    stages = recipe.get("stages")
    if not isinstance(stages, list | tuple):
        return []
    known = [(i, stage) for i, stage in enumerate(stages) if isinstance(stage, Mapping)]
    faults: list[Fault] = []
    for at, (i, stage) in enumerate(known):
        earlier = [other for _, other in known[:at] if isinstance(other.get("name"), str)]
        name = stage.get("name")
        label = name if isinstance(name, str) else f"number {i + 1}"
        for key, message in _faults_of(stage, earlier, recipe):
            faults.append(Fault(("stages", i, *key.split(".")), message, stage=label))
    return faults


def _faults_of(stage: Raw, earlier: list[Raw], recipe: Raw) -> Iterator[tuple[str, str]]:
    """(key, message) for one stage, given the stages before it."""
    kind, name = stage.get("kind"), stage.get("name")
    if isinstance(name, str):
        if name in RESERVED:
            yield "name", f"{name!r} has a meaning of its own in recipes; choose another name"
        if any(other["name"] == name for other in earlier):
            yield "name", f"{name!r} is already the name of an earlier stage; names must be unique"
    parent = stage.get("parent")
    if isinstance(parent, str) and parent != "base":
        yield from _must_be("parent", parent, earlier, TRAINS, also=("base",))
    if kind == "distill":
        yield from _teacher(stage, recipe)
    if kind == "sft":
        yield from _data(stage, earlier)
    if kind == "grpo":
        reference = stage.get("reference", "start")
        if isinstance(reference, str) and reference not in ("base", "start"):
            yield from _must_be("reference", reference, earlier, TRAINS, also=("base", "start"))
        yield from _rising_beta(stage, earlier)
    if kind in TRAINS:
        yield from _micro_batch(stage, recipe)
    if kind == "evaluate":
        yield from _pass_at_k(stage, recipe)
    if kind == "export" and _parent(stage, earlier) is None:
        yield "kind", "there is nothing to export; put an sft or grpo stage before it"
    gate = stage.get("gate")
    if isinstance(gate, Mapping):
        if kind in ("distill", "export"):
            yield "gate", f"a {kind} stage is not evaluated; put the gate on an sft, grpo or evaluate stage"
        against = gate.get("against", "previous")
        if isinstance(against, str) and against not in ("base", "previous"):
            yield from _must_be("gate.against", against, earlier, EVALUATED, also=("base", "previous"))


def _must_be(
    key: str, value: str, earlier: list[Raw], kinds: tuple[str, ...], also: tuple[str, ...]
) -> Iterator[tuple[str, str]]:
    """The value names an earlier stage of one of these kinds."""
    names = [str(other["name"]) for other in earlier]
    fitting = [str(other["name"]) for other in earlier if other.get("kind") in kinds]
    if value in fitting:
        return
    if value in names:
        kind = next(other.get("kind") for other in earlier if other["name"] == value)
        yield key, f"{value!r} is a stage of kind {kind} (possible: {', '.join([*also, *fitting])})"
    else:
        listed = ", ".join(names) or "none"
        yield key, f"{value!r} is not an earlier stage (earlier: {listed}){near(value, [*fitting, *also])}"


def _teacher(stage: Raw, recipe: Raw) -> Iterator[tuple[str, str]]:
    """The base has one engine, and that serves whatever policy was trained last."""
    teacher, model = stage.get("teacher"), recipe.get("model")
    if isinstance(teacher, str) and isinstance(model, Mapping) and teacher == model.get("base"):
        yield "teacher", f"{teacher!r} is the base itself; write `teacher: self` and `parent: base` to sample from it"


def _data(stage: Raw, earlier: list[Raw]) -> Iterator[tuple[str, str]]:
    data = stage.get("data")
    names = [str(other["name"]) for other in earlier]
    sources = [str(other["name"]) for other in earlier if other.get("kind") == "distill"]
    for source in data if isinstance(data, list | tuple) else [data]:
        if not isinstance(source, str) or is_file(source) or source in sources:
            continue
        if source in names:
            yield "data", f"{source!r} is not a distill stage (distill stages: {', '.join(sources) or 'none'})"
        else:
            listed = ", ".join(names) or "none"
            yield (
                "data",
                (
                    f"{source!r} is neither an earlier distill stage (earlier: {listed}) nor a .jsonl file"
                    f"{near(source, sources)}"
                ),
            )


def _parent(stage: Raw, earlier: list[Raw]) -> Raw | None:
    """The stage whose policy this one takes up."""
    wanted = stage.get("parent")
    fitting = [other for other in earlier if other.get("kind") in TRAINS]
    if wanted is not None:
        fitting = [other for other in fitting if other["name"] == wanted]
    return fitting[-1] if fitting else None


def _rising_beta(stage: Raw, earlier: list[Raw]) -> Iterator[tuple[str, str]]:
    """Beta is at least that of the nearest grpo stage among the stage's ancestors."""
    ancestor, seen = _parent(stage, earlier), 0
    while ancestor is not None and ancestor.get("kind") != "grpo" and seen <= len(earlier):
        before = [other for other in earlier[: earlier.index(ancestor)]]
        ancestor, seen = _parent(ancestor, before), seen + 1
    beta, previous = stage.get("beta", 0.0), (ancestor or {}).get("beta", 0.0)
    if ancestor is not None and isinstance(beta, int | float) and isinstance(previous, int | float) and beta < previous:
        yield "beta", f"{beta:g} is less than {previous:g} in stage {ancestor['name']!r}; beta must not fall"


def _micro_batch(stage: Raw, recipe: Raw) -> Iterator[tuple[str, str]]:
    micro = stage.get("micro_batch_size")
    if stage.get("kind") == "sft":
        batch, said = stage.get("batch_size", 32), "batch_size"
    else:
        rollouts = recipe.get("rollouts") if isinstance(recipe.get("rollouts"), Mapping) else {}
        group = stage.get("group_size") or rollouts.get("group_size", 16)
        prompts = stage.get("prompts_per_step") or rollouts.get("prompts_per_step", 32)
        if not isinstance(group, int) or not isinstance(prompts, int):
            return
        batch, said = group * prompts, "group_size x prompts_per_step"
    if isinstance(micro, int) and isinstance(batch, int) and micro > 0 and batch % micro:
        divisors = [n for n in range(1, min(batch, 4096) + 1) if batch % n == 0]
        nearest = min(divisors, key=lambda n: abs(n - micro))
        yield "micro_batch_size", f"{micro} does not divide {said} ({batch}); {nearest} does"


def _pass_at_k(stage: Raw, recipe: Raw) -> Iterator[tuple[str, str]]:
    settings = recipe.get("evaluate") if isinstance(recipe.get("evaluate"), Mapping) else {}
    samples = stage.get("samples") or settings.get("samples", 1)
    wanted = stage.get("pass_at_k")
    wanted = settings.get("pass_at_k", ()) if wanted is None else wanted
    if isinstance(wanted, list | tuple) and isinstance(samples, int):
        too_many = [k for k in wanted if isinstance(k, int) and k > samples]
        if too_many:
            yield "pass_at_k", f"k = {max(too_many)} needs at least {max(too_many)} samples (samples: {samples})"


def unknown_words(recipe: Raw) -> list[Fault]:
    """Formats, shipped models and sources of problems that do not exist; what is on the Hub is not asked."""
    faults: list[Fault] = []

    def word(at: tuple[str | int, ...], mapping: object, judge: Callable[[str], str], label: str | None = None) -> None:
        value = mapping.get(at[-1]) if isinstance(mapping, Mapping) else None
        if isinstance(value, str) and value and (message := judge(value)):
            faults.append(Fault(at, f"{value!r} {message}", stage=label))

    problems = recipe.get("problems")
    word(("problems", "format"), problems, _format)
    word(("problems", "train"), problems, _source)
    word(("problems", "test"), problems, _source)
    word(("model", "base"), recipe.get("model"), _model)
    stages = recipe.get("stages")
    for i, stage in enumerate(stages if isinstance(stages, list | tuple) else []):
        if isinstance(stage, Mapping):
            label = stage.get("name") if isinstance(stage.get("name"), str) else f"number {i + 1}"
            word(("stages", i, "teacher"), stage, _model, label)
            if stage.get("kind") == "evaluate":
                word(("stages", i, "problems"), stage, _source, label)
    return faults


def _format(name: str) -> str:
    return "" if name in FORMATS else f"is not a format (there are: {', '.join(FORMATS)}){near(name, FORMATS)}"


def _source(source: str) -> str:
    if source == "embedded" or is_problem_file(source) or source.count("/") == 1:
        return ""
    return f"is neither `embedded` nor a .jsonl file nor a Hub data set (name/set){near(source, ['embedded'])}"


def _model(name: str) -> str:
    """A model is shipped, a local folder, or on the Hub."""
    if name.startswith("embedded/") and name not in SHIPPED:
        return f"is not shipped (there are: {', '.join(SHIPPED)}){near(name, SHIPPED)}"
    if name.startswith((".", "/", "~")) and not (Path(name).expanduser() / "config.json").is_file():
        return "is not a folder with a model (no config.json there)"
    return ""
