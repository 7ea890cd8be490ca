"""`orchestra run`: the runner, then the table, planned against measured, and the report."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from models.processes import Processes, here, rank
from orchestra.config import loading
from orchestra.config.experiment import Experiment
from orchestra.config.faults import UserError, is_user_error
from orchestra.config.loading import Scale
from orchestra.config.recipe import Recipe
from orchestra.plan import estimate as planning
from orchestra.plan.machine import Machine, this_machine, why_unusable
from orchestra.plan.table import beside
from orchestra.run import experiment as experiments
from orchestra.run import gates, processes
from orchestra.run.disk import StageError, disk_errors
from orchestra.run.folder import locked
from orchestra.run.live import LiveReport
from orchestra.run.progress import Progress, chatter_to
from orchestra.run.runner import Outcome, Run
from orchestra.run.show import table
from orchestra.run.siblings import finder

GATE_EXIT = 3
"""Exit code of a run that a gate stopped."""


def run_command(
    experiment: Experiment,
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
        experiment: of the recipe file; each arm under each seed is a run.
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
    settled = experiment.each(lambda recipe: experiments.settled(recipe, bool(machine.gpus)))
    plans = {
        arm: _fitting(recipe, scale, source, sets, machine, progress, force=force)
        for arm, recipe in settled.named.items()
    }
    folder = runs / f"{settled.recipe.name}-{scale.name}"
    asked = Asked(scale.name, source, sets, progress, Processes.join())
    if settled.single:
        experiments.must_be_for(folder, single=True)
        (plan,) = plans.values()
        outcome = asked.start(asked.run(settled.recipe, folder, plan), restart_from)
        if asked.processes.first:
            _finish(plan, outcome, progress)
        no_go = outcome.verdict != gates.GO
    else:
        with contextlib.ExitStack() as stack:
            if asked.processes.first:
                with disk_errors(folder):
                    experiments.must_be_for(folder, single=False)
                    # of the whole folder: another command would write over what is asked, which the tables are made by
                    stack.enter_context(locked(folder))
            no_go = _run_arms(settled, folder, asked, plans, restart_from)
    # at a process that ends with a gate's code the launcher ends the others
    asked.processes.wait()
    return GATE_EXIT if no_go else 0


@dataclass(frozen=True)
class Asked:
    """What all runs of one command have in common."""

    scale: str
    source: str
    sets: tuple[str, ...]
    progress: Progress
    processes: Processes

    def run(self, recipe: Recipe, folder: Path, plan: planning.Plan, **more: object) -> Run:
        """One of them."""
        return Run(
            recipe,
            folder,
            scale=self.scale,
            source=self.source,
            sets=self.sets,
            plan=plan.to_json(),
            progress=self.progress,
            processes=self.processes,
            **more,
        )

    def start(self, run: Run, restart_from: str | None) -> Outcome:
        """Run it, with a page that is kept up to date; where it stops early the last page says so."""
        if not self.processes.first:
            return run.start(restart_from)
        live = LiveReport(run.run_dir, self.progress)
        try:
            with live:
                run.on_begin = live.begin
                return run.start(restart_from)
        except BaseException:
            if live.began:
                _report(run.run_dir, self.progress)
            raise


def _run_arms(
    experiment: Experiment, folder: Path, asked: Asked, plans: Mapping[str, planning.Plan], restart_from: str | None
) -> bool:
    """Every arm under every seed; returns whether a gate stopped one. The others go on."""
    from orchestra.report.arms import compare_runs, show
    from orchestra.work.engines import Engines

    every = experiments.runs_of(experiment, folder)
    restarted, first, say = experiments.restarts(restart_from, every), asked.processes.first, asked.progress.say
    engines, stopped = Engines(kept=True), []
    if first:
        about = {"name": experiment.recipe.name, "scale": asked.scale, "source": asked.source, "set": asked.sets}
        with disk_errors(folder):
            experiments.prepare(experiment, folder, about)
    asked.processes.wait()
    try:
        for number, one in enumerate(every, 1):
            say(f"({number}/{len(every)}) {one}")
            if first:
                with disk_errors(one.run_dir):
                    experiments.share_commits(folder, one.run_dir)
            shared = finder([other.run_dir for other in every], one.run_dir)
            run = asked.run(one.recipe, one.run_dir, plans[one.arm], engines=engines, shared=shared, arm=one.arm)
            try:
                outcome = asked.start(run, restarted.get(one))
            except UserError as error:
                raise StageError(f"{one}: {error}", getattr(error, "exit_code", 1)) from error
            if first:
                with disk_errors(folder):
                    experiments.keep_commits(folder, one.run_dir)
                _report(one.run_dir, asked.progress)
                _report(folder, asked.progress)
            if outcome.verdict != gates.GO:
                stopped.append(str(one))
    finally:
        if asked.processes.count == 1:
            with chatter_to(folder / "log.txt"):
                engines.close()
    if first:
        show(compare_runs([folder]), asked.progress.console)
        if stopped:
            say(f"stopped by a gate: {'; '.join(stopped)}")
    return bool(stopped)


def _fitting(
    recipe: Recipe, scale: Scale, source: str, sets: tuple[str, ...], machine: Machine, progress: Progress, *,
    force: bool,
) -> planning.Plan:  # fmt: skip
    """The plan of a recipe that fits the machine, or is run all the same. Raises UserError."""
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
    return plan


def _scales_that_fit(source: str, refused: Scale, sets: tuple[str, ...], machine: Machine) -> str:
    """`; at scale embedded it fits`, or nothing."""
    fitting = []
    for name in loading.available("scales"):
        with contextlib.suppress(UserError):  # an override may be of another scale's world
            if name != refused.name and planning.estimate(loading.load_recipe(source, name, sets), machine, name).fits:
                fitting.append(name)
    return f"; at scale {' or '.join(fitting)} it fits" if fitting else ""


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
    """Write the report for good, when no process works on the run any more; a run is not lost because its report is."""
    log = run_dir / "log.txt"
    try:
        with chatter_to(log):
            from orchestra.report.comparison import write_any

            path = write_any(run_dir)
    except Exception as error:  # noqa: BLE001  (said to the user, and the traceback is kept)
        with contextlib.suppress(OSError), open(log, "a", encoding="utf-8") as file:  # the disk may be full
            traceback.print_exc(file=file)
        reason = error if is_user_error(error) else f"{type(error).__name__}: {error}"
        progress.say(f"the report could not be written ({reason}; see {log}); try: orchestra report {run_dir}")
        return
    progress.say(f"report: {path}")
