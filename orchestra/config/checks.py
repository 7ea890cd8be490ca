"""What must hold between the stages of a recipe: names, what they refer to, and whatever a kind asks for itself.

Works on the stages that could be read, whether or not others have faults of their own, so that all faults are found at
once; a stage that could not be read still has its name and its kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel

from orchestra.config.faults import Fault
from orchestra.config.stage import Draft, Stage, last_panel
from orchestra.config.words import is_file
from settings import Node, Refers, near, node_in, reference_of, uncounted

if TYPE_CHECKING:
    from models.settings import TrainingSettings

RESERVED = ("base", "start", "previous", "self", "discarded")


def faults_between_stages(
    sections: Mapping[str, Node], stages: Sequence[Stage | Unread], processes: int = 1
) -> list[Fault]:
    """Every fault that concerns more than one key, in the order of the stages.

    Args:
        sections: the recipe's parts that could be read.
        stages: in the recipe's order.
        processes: that share a step's batch.
    """
    faults: list[Fault] = []
    kinds: dict[str, type[Stage] | None] = {}
    read: list[Stage] = []
    unread: list[type[Stage] | None] = []
    for i, stage in enumerate(stages):
        draft = Draft(sections, tuple(read), dict(kinds), tuple(unread), processes)
        for key, message in _faults_of(stage, draft):
            faults.append(Fault(("stages", i, *key.split(".")), message, stage=stage.name or f"number {i + 1}"))
        if stage.name:
            kinds[stage.name] = type(stage) if isinstance(stage, Stage) else stage.kind
        if isinstance(stage, Stage):
            read.append(stage)
        else:
            unread.append(stage.kind)
    return faults


@dataclass(frozen=True)
class Unread:
    """A stage that could not be read: its name and its kind, where it has them, and what stands in it."""

    name: str | None
    kind: type[Stage] | None
    raw: Mapping[str, object]


def _faults_of(stage: Stage | Unread, draft: Draft) -> Iterator[tuple[str, str]]:
    """(key, message) for one stage, given those before it."""
    if stage.name in RESERVED:
        yield "name", f"{stage.name!r} has a meaning of its own in recipes; choose another name"
    if stage.name in draft.kinds:
        yield "name", f"{stage.name!r} is already the name of an earlier stage; names must be unique"
    read = isinstance(stage, Stage)
    for key, value, refers in references(stage) if read else raw_references(stage.raw, stage.kind):
        yield from _referred(key, value, refers, draft)
        several = any(value == other.name and other.trains and "policy" not in other.given for other in draft.stages)
        if read and several and refers.to == "policy" and stage.trains is None:
            yield key, f"{value!r} trains several experts and no single policy; name a stage that trains one"
    if not read:
        return
    if stage.gate is not None and "evaluation" not in stage.gives:
        yield "gate", f"a {stage.kind} stage is not evaluated; put the gate on a stage that is"
    yield from stage.faults(draft)


def references(node: Node, prefix: str = "", *, free: bool = True) -> Iterator[tuple[str, str, Refers]]:
    """(dotted key, value, what it refers to) of every field that names something, one for each item of a list.

    `free`: also those that are not in a fingerprint as they are written.
    """
    left_out = frozenset() if free else uncounted(type(node))
    for name, value in node:
        refers = reference_of(type(node), name)
        if name in left_out:
            continue
        if isinstance(value, Node):
            yield from references(value, f"{prefix}{name}.", free=free)
        elif refers is not None and value is not None:
            for further, item in refers.names_in(value):
                yield ".".join((f"{prefix}{name}", *further)), item, refers


def raw_references(
    raw: Mapping[str, object], model: type[BaseModel] | None, prefix: str = ""
) -> Iterator[tuple[str, str, Refers]]:
    """The same of a mapping that could not be read as `model`."""
    for name, field in model.model_fields.items() if model is not None else ():
        value, refers, inner = raw.get(name), reference_of(model, name), node_in(field.annotation)
        if inner is not None and isinstance(value, Mapping):
            yield from raw_references(value, inner, f"{prefix}{name}.")
        elif refers is not None:
            for further, item in refers.names_in(value):
                if isinstance(item, str) and item:
                    yield ".".join((f"{prefix}{name}", *further)), item, refers


def _referred(key: str, value: str, refers: Refers, draft: Draft) -> Iterator[tuple[str, str]]:
    """The value names an earlier stage that gives what is asked for, or is one of the words that need none."""
    if not refers.to_stage or value in refers.also or (refers.file and is_file(value)):
        return
    # a kind that is unknown is a fault already
    fitting = [name for name, kind in draft.kinds.items() if kind is None or refers.to in kind.gives]
    if value in fitting:
        return
    if value in draft.kinds:
        possible = ", ".join([*refers.also, *fitting, *((".jsonl file",) if refers.file else ())]) or "none"
        kind = draft.kinds[value].model_fields["kind"].annotation.__args__[0]
        yield key, f"{value!r} is a stage of kind {kind}, which gives no {refers.to} (possible: {possible})"
        return
    listed = ", ".join(draft.kinds) or "none"
    what = f"neither an earlier stage (earlier: {listed}) nor a .jsonl file" if refers.file else (
        f"not an earlier stage (earlier: {listed})"
    )  # fmt: skip
    yield key, f"{value!r} is {what}{near(value, [*fitting, *refers.also])}"


def single_policy_faults(stage: Stage, draft: Draft) -> Iterator[tuple[str, str]]:
    """For a stage that takes up one policy: where it does not say which, it shall not be one from before a panel."""
    before = draft.before(stage)
    panel, nearest = last_panel(before), (*stage.parents(before), "base")[0]
    names = ["base", *(one.name for one in before)]
    # a stage that could not be read may be the parent
    if stage.parent is not None or panel is None or draft.unread:
        return
    if names.index(nearest) < names.index(panel):
        yield (
            "parent",
            f"not said, it would be {nearest!r}, and nothing of the panel of {panel!r}, which a `route` stage "
            f"evaluates; write `parent: {nearest}` if that is meant",
        )


def share_faults(batch: int, key: str, draft: Draft) -> Iterator[tuple[str, str]]:
    """For a stage that trains: the processes take equal parts of a step's batch, which the stage's `key` says."""
    processes = draft.processes
    if batch % processes:
        fitting = [n for n in (batch - batch % processes, batch + processes - batch % processes) if n]
        nearest = " and ".join(str(n) for n in fitting)
        yield key, f"{batch} cannot be shared out evenly over {processes} processes; {nearest} can"


def sweep_faults(training: TrainingSettings, draft: Draft) -> Iterator[tuple[str, str]]:
    """For a stage that trains: what `evaluate_every` and `keep` need."""
    every, problems = training.evaluate_every, draft.sections.get("problems")
    if every is None and training.keep == "best":
        yield "keep", "'best' is chosen among evaluations on the way; say how often with `evaluate_every: n`"
    if every is not None and every > training.steps:
        yield "evaluate_every", f"{every} is more than the stage's {training.steps} steps; at most that many"
    if every is not None and problems is not None and problems.validation is None:
        yield (
            "evaluate_every",
            f"{every} needs problems that are neither trained on nor tested; write `validation: 100` under `problems` "
            "(so many of the training problems, which then no stage trains on), or name a source there",
        )


def micro_batch_faults(micro: int | None, batch: int) -> Iterator[tuple[str, str]]:
    """For a stage that trains: its `micro_batch_size` must divide its `batch_size`."""
    if micro is not None and batch % micro:
        divisors = [n for n in range(1, min(batch, 4096) + 1) if batch % n == 0]
        nearest = min(divisors, key=lambda n: abs(n - micro))
        yield "micro_batch_size", f"{micro} does not divide batch_size ({batch}); {nearest} does"
