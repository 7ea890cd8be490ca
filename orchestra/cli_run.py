"""`orchestra run`: the runner, then the table, planned against measured, and the report."""

from __future__ import annotations

import contextlib
import traceback
from pathlib import Path

from models.processes import Processes, here, rank
from models.sizes import arithmetic_name
from orchestra.config import loading
from orchestra.config.faults import UserError, is_user_error
from orchestra.config.loading import Scale
from orchestra.config.recipe import Recipe
from orchestra.plan import estimate as planning
from orchestra.plan.machine import Machine, this_machine, why_unusable
from orchestra.plan.table import beside
from orchestra.run import gates, processes
from orchestra.run.progress import Progress, chatter_to
from orchestra.run.runner import Outcome, Run
from orchestra.run.show import table

GATE_EXIT = 3
"""Exit code of a run that a gate stopped."""


def run_command(
    recipe: Recipe,
    scale: Scale,
    source: str,
    sets: tuple[str, ...],
    restart_from: str | None,
    runs: Path,
    *,
    force: bool,
) -> int:
    """Run, then show what came out. Returns the exit code; raises UserError.

    Args:
        force: also where the plan says that it does not fit this machine.
    """
    processes.yield_cores()
    progress = Progress(quiet=rank() != 0)
    if scale.why:
        progress.say(scale.why)
    machine = this_machine()
    if (told := processes.take_one_gpu(len(machine.gpus))) is not None:
        progress.say(told)
    if machine.gpus and (unusable := why_unusable()) is not None:
        raise UserError(f"{unusable} ({machine})")
    if machine.gpus and here() > len(machine.gpus):
        raise UserError(f"{here()} processes for {len(machine.gpus)} GPUs; each needs one of its own")
    recipe = _settled(recipe, bool(machine.gpus))
    plan = planning.estimate(recipe, machine, scale.name)
    if not plan.fits:
        # where nothing is known of a model (a plan without stages) there is nothing to refuse
        if plan.stages and not force:
            raise UserError(
                f"{recipe.name} at scale {scale.name} does not fit this machine: {plan.reason}"
                f"{_scales_that_fit(source, scale, sets, machine)} "
                "(`orchestra plan` has the whole table; --force runs it all the same)"
            )
        progress.say(f"not known to fit this machine: {plan.reason}")
    together = Processes.join()
    outcome = Run(
        recipe,
        runs / f"{recipe.name}-{scale.name}",
        scale=scale.name,
        source=source,
        sets=sets,
        plan=plan.to_json(),
        progress=progress,
        processes=together,
    ).start(restart_from)
    if together.first:
        _finish(plan, outcome, progress)
    # at a process that ends with a gate's code the launcher ends the others
    together.wait()
    return 0 if outcome.verdict == gates.GO else GATE_EXIT


def _scales_that_fit(source: str, refused: Scale, sets: tuple[str, ...], machine: Machine) -> str:
    """`; at scale embedded it fits`, or nothing."""
    fitting = []
    for name in loading.available("scales"):
        with contextlib.suppress(UserError):  # an override may be of another scale's world
            if name != refused.name and planning.estimate(loading.load_recipe(source, name, sets), machine, name).fits:
                fitting.append(name)
    return f"; at scale {' or '.join(fitting)} it fits" if fitting else ""


def _settled(recipe: Recipe, cuda: bool) -> Recipe:
    """With `dtype: auto` replaced by what it means here. A base cast to another arithmetic quantises to other codes, so
    a run that goes on, or is exported, on another machine must know what it was trained in."""
    settled = {
        name: node.model_copy(update={"dtype": arithmetic_name(node.dtype, cuda=cuda)})
        for name, node in (("model", recipe.model), ("rollouts", recipe.rollouts))
    }
    return recipe.model_copy(update=settled)


def _finish(plan: planning.Plan, outcome: Outcome, progress: Progress) -> None:
    """Table, planned against measured, report."""
    console = progress.console
    console.print(table(outcome.results, console.width))
    seconds = {stage.name: stage.seconds for stage in plan.stages}
    progress.say(beside(seconds, outcome.results, plan.peak, _peak_memory(outcome)))
    _report(outcome.run_dir, progress)


def _peak_memory(outcome: Outcome) -> int | None:
    """The most bytes that a stage took; None where none ran."""
    told = [result.extra.get("peak_memory_bytes") for result in outcome.results]
    told = [value for value in told if isinstance(value, int | float)]
    return int(max(told)) if told else None


def _report(run_dir: Path, progress: Progress) -> None:
    """Write the report; a run is not lost because its report is."""
    log = run_dir / "log.txt"
    try:
        with chatter_to(log):
            from orchestra.report.page import write_report

            path = write_report(run_dir)
    except Exception as error:  # noqa: BLE001  (said to the user, and the traceback is kept)
        with open(log, "a", encoding="utf-8") as file:
            traceback.print_exc(file=file)
        reason = error if is_user_error(error) else f"{type(error).__name__}: {error}"
        progress.say(f"the report could not be written ({reason}; see {log}); try: orchestra report {run_dir}")
        return
    progress.say(f"report: {path}")
