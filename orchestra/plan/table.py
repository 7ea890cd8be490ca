"""A plan as a table, and beside what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from orchestra.plan.devices import GIB
from orchestra.plan.estimate import Plan, StagePlan
from orchestra.plan.experiment import ArmPlan, ExperimentPlan
from orchestra.run.ledger import StageResult
from orchestra.text import clock, compact

PARTS = ("parameters", "adapter and gradient", "optimizer", "activations", "logits", "experts",
         "engine weights", "engine adapters", "KV", "other engines", "merged model", "libraries")  # fmt: skip
SHORT = {"parameters": "params", "adapter and gradient": "adapter", "optimizer": "optim", "activations": "activ",
         "engine weights": "engine", "engine adapters": "slots", "other engines": "others", "merged model": "merged",
         "libraries": "libs"}  # fmt: skip


def show(plan: Plan, console: Console) -> None:
    """Print what is done and what it takes, then the memory, then the verdict."""
    say = partial(console.print, highlight=False, soft_wrap=True)
    _show_title(plan, console)
    if plan.stages:
        _show_stages(plan.stages, console, memory=True)
        say(f"time about {clock(plan.seconds)}, memory about {plan.peak / GIB:.1f} GiB")
    say(_verdict(plan))


def show_experiment(plan: ExperimentPlan, console: Console) -> None:
    """Print, arm by arm, what it changes and the stages that it runs itself, then all arms, then the verdict."""
    say = partial(console.print, highlight=False, soft_wrap=True, markup=False)
    _show_title(plan.arms[0].plan, console)
    for arm in plan.arms:
        if len(plan.arms) > 1:
            say(f"arm {arm.arm}" + "".join(f"\n  {change}" for change in arm.changes))
        if arm.own:
            # another arm's memory is looked at where it is too much
            _show_stages(arm.own, console, memory=arm is plan.arms[0] or not arm.plan.fits)
    if len(plan.arms) > 1:
        console.print(_arms(plan.arms))
    seeds, runs = len(plan.seeds), f"{plan.runs} run{'s' if plan.runs > 1 else ''}"
    say(f"{len(plan.arms)} arm{'s' if len(plan.arms) > 1 else ''} x {seeds} seed{'s' if seeds > 1 else ''}: {runs}; "
        + (f"seeds {', '.join(map(str, plan.seeds[:8]))}{', ...' if seeds > 8 else ''} have nothing in common"
           if seeds > 1 else f"seed {plan.seeds[0]}"))  # fmt: skip
    if plan.extra_sets:
        say("stages that train are in common as planned if none of their problems is lost to the evaluation that only "
            "some arms have")  # fmt: skip
    if all(arm.plan.stages for arm in plan.arms):
        shared = plan.seconds_apart - plan.seconds
        say(f"time about {clock(plan.seconds)}"
            + (f" ({clock(plan.seconds_apart)} if every run ran all of its stages)" if shared else "")
            + f", memory about {plan.peak / GIB:.1f} GiB")  # fmt: skip
    say(_verdict(plan))


def _show_title(plan: Plan, console: Console) -> None:
    title = f"{plan.recipe} at scale {plan.scale}, planned for {plan.device}; this machine: {plan.machine}"
    console.print(title, highlight=False, soft_wrap=True)


def _show_stages(stages: tuple[StagePlan, ...], console: Console, *, memory: bool) -> None:
    console.print(_work(stages))
    if memory:
        console.print("memory in GiB", highlight=False)
        console.print(_memory(stages))


def _verdict(plan: Plan | ExperimentPlan) -> str:
    return f"{'fits this machine' if plan.fits else 'does not fit this machine'}: {plan.reason}"


def _arms(arms: Sequence[ArmPlan]) -> Table:
    """A row per arm: what it runs, and whose stages it takes over."""
    columns = ("arm", "runs itself", "taken over", "time", "on its own", "memory", "fits")
    rows = []
    for arm in arms:
        owners = {owner: [name for name, one in arm.taken_over.items() if one == owner]
                  for owner in arm.taken_over.values()}  # fmt: skip
        rows.append((
            arm.arm,
            _from_to([stage.name for stage in arm.own]),
            "; ".join(f"{_from_to(names)} ({owner})" for owner, names in owners.items()),
            clock(arm.seconds), clock(arm.plan.seconds), f"{arm.plan.peak / GIB:.1f} GiB",
            "yes" if arm.plan.fits else "no",
        ))  # fmt: skip
    return _table(columns, rows, left=("arm", "runs itself", "taken over", "fits"))


def _from_to(names: Sequence[str]) -> str:
    """Stages in a row, by the first and the last."""
    return ", ".join(names) if len(names) < 3 else f"{names[0]} to {names[-1]}"


def _work(stages: tuple[StagePlan, ...]) -> Table:
    rows = [
        (
            stage.name,
            stage.kind,
            "" if stage.beta is None else f"{stage.beta:g}",
            stage.reference,
            "" if stage.steps is None else f"{stage.steps:,}",
            compact(stage.tokens) if stage.tokens else "",
            clock(stage.seconds),
            stage.parent.rsplit("/", 1)[-1],
            stage.data.rsplit("/", 1)[-1],
        )
        for stage in stages
    ]
    columns = ("stage", "kind", "beta", "reference", "steps", "tokens", "time", "parent", "data")
    return _table(columns, rows, left=("stage", "kind", "parent", "data", "reference"), shrinks=("parent", "data"))


def _memory(stages: tuple[StagePlan, ...]) -> Table:
    parts = [part for part in PARTS if any(stage.memory.get(part) for stage in stages)]
    columns = ("stage", "in all", "most", *(SHORT.get(part, part) for part in parts))
    rows = [
        (
            stage.name,
            f"{stage.peak / GIB:.1f}",
            SHORT.get(stage.dominant, stage.dominant),
            *(_gib(stage.memory.get(part)) for part in parts),
        )
        for stage in stages
    ]
    return _table(columns, rows, left=("stage", "most"))


def _table(
    columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], left: tuple[str, ...], shrinks: tuple[str, ...] = ()
) -> Table:
    """A table that a narrow terminal cuts in the columns of `shrinks` only."""
    made = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for at, column in enumerate(columns):
        width = None if column in shrinks else max(len(column), *(len(row[at]) for row in rows))
        made.add_column(column, justify="left" if column in left else "right", no_wrap=True, min_width=width)
    for row in rows:
        made.add_row(*row)
    return made


def _gib(size: int | None) -> str:
    if size is None:
        return ""
    return f"{size / GIB:.1f}" if size >= GIB / 20 or size == 0 else "<0.1"


def beside(planned: Mapping[str, float], results: tuple[StageResult, ...], planned_peak: int, peak: int | None) -> str:
    """One line: what the stages took against their plan."""
    done = [result for result in results if result.name in planned]
    if not done:
        return "no stage was planned"
    expected, took = sum(planned[result.name] for result in done), sum(result.seconds for result in done)
    line = f"time: planned {clock(expected)}, measured {clock(took)} ({took / max(expected, 1e-9) - 1:+.0%})"
    if peak is not None:
        line += f"; memory: planned {planned_peak / GIB:.1f} GiB, measured {peak / GIB:.1f} GiB"
    return line
