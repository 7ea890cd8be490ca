"""Where an expert's training starts: at what the panel's record says of it, or not at all; and with which optimizer.

An adapter that was put on another base, or is not the one that was measured, trains as smoothly as any other, and shows
it only in what comes out (experiment 7b-2 started at an accuracy of 8.95 % instead of 70 %). So it is asked first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from evals.evaluate import Evaluation, compare
from evals.removal import start_record_fault
from models.expert_files import MOMENTS
from models.experts import PanelError
from orchestra.config.experts import EACH
from orchestra.work.policies import EVALUATION, answered, serve
from orchestra.work.settings import ANSWERS, SCORED
from settings.files import write_whole

if TYPE_CHECKING:
    from pathlib import Path

    from peft import PeftModel

    from models.experts import Record
    from models.settings import TrainsExpert
    from orchestra.work.context import StageContext

START = "start.json"


def must_start_as_recorded(context: StageContext, policy: PeftModel) -> int:
    """Ask the expert that training goes on with, as the stage is evaluated, and compare it with the panel's record of
    it, problem by problem where the answers behind the record are there. What a killed run has asked is not asked
    again.

    Args:
        policy: that training starts from.

    Returns:
        tokens generated; 0 where there is no record of the same problems to compare with.

    Raises:
        PanelError: it does worse than it did.
    """
    record = _record(context)
    if record is None:
        return 0
    found = _asked(context, policy)
    before = next((one for one in _evaluations(context) if _is_of(one, record, found)), None)
    paired = None if before is None else compare(found, before, seed=context.recipe.seed)
    accuracy = found.sampled.accuracy
    recorded = replace(accuracy, estimate=record.accuracy, low=record.low, high=record.high)
    fault = start_record_fault(accuracy, recorded, context.start_name, paired=paired)
    if fault is not None:
        raise PanelError(f"stage {context.called!r} has not begun: {fault}")
    return found.tokens


def kept_moments(context: StageContext, stage: TrainsExpert) -> Path | None:
    """Folder of the expert whose optimizer the stage goes on with; None where it begins anew.

    Raises:
        PanelError: there is nothing to go on with.
    """
    if stage.optimizer == "fresh":
        return None
    if (start := context.start) is None:
        raise PanelError(f"optimizer: kept: expert {context.expert!r} is new; write `optimizer: fresh`")
    if not (start.folder / MOMENTS).is_file():
        raise PanelError(
            f"optimizer: kept: {start.name!r} has no moments to go on with ({start.folder / MOMENTS} is missing: the "
            "expert was added from elsewhere, or `keep: best` chose a step before the last); write `optimizer: fresh`"
        )
    return start.folder


def _record(context: StageContext) -> Record | None:
    """What the panel says of the expert, on problems that this stage is evaluated on."""
    if context.expert is None or context.start is None:
        return None
    record = context.before[0].expert(_expert(context)).record
    source, _ = context.stage.held_out(context.recipe)
    same = record is not None and record.source == source
    return record if same and record.problems == len(context.resources.test(context.stage).problems) else None


def _expert(context: StageContext) -> str:
    return context.start_name.rpartition("/")[2]


def _asked(context: StageContext, policy: PeftModel) -> Evaluation:
    path = context.folder / START
    if context.once(path.is_file):
        return Evaluation.read(path)
    serve(context, policy)
    settings = context.stage.evaluation(context.recipe).model_copy(update={"greedy": False, "pass_at_k": ()})
    asked = context.resources.test(context.stage)
    found = answered(context, asked, "check the start", settings=settings)
    context.once(lambda: write_whole(path, found.to_json().encode()))
    return found


def _evaluations(context: StageContext) -> Iterator[Evaluation]:
    """Everything that earlier stages have on this expert, under whatever name, the last one first."""
    trains = {stage.name: stage.trains for stage in context.recipe.stages}
    for stage, folder in reversed(context.earlier.items()):
        for name in context.called_in(stage, _expert(context)):
            places = [folder / ANSWERS / f"{SCORED}-{name}.json", folder / EACH / name / EVALUATION]
            if trains.get(stage) == name:
                places.append(folder / EVALUATION)
            yield from (Evaluation.read(path) for path in places if path.is_file())


def _is_of(one: Evaluation, record: Record, found: Evaluation) -> bool:
    """Whether a record is of this evaluation, and that of the problems asked now."""
    accuracy = one.sampled.accuracy
    same = (accuracy.estimate, accuracy.low, accuracy.high) == (record.accuracy, record.low, record.high)
    return same and set(one.problem_ids) == set(found.problem_ids)
