"""The command line: `orchestra check | plan | run | show | report | export | diff | panel | schema | verify`.

Only this module and the ones it calls late know the terminal; `check` and `plan` import nothing heavy.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from models.processes import first_to_tell
from orchestra import RECIPES
from orchestra.cli_diff import diff
from orchestra.cli_panel import panel
from orchestra.cli_verify import verify
from orchestra.config import loading
from orchestra.config.arms import MAX_SEEDS
from orchestra.config.faults import RecipeError, UserError, is_user_error
from orchestra.config.schema import json_schema
from orchestra.run.progress import PLAIN_WIDTH

app = typer.Typer(
    help="RL post-training from one YAML recipe: distill, imitate, improve under a rising KL penalty, export.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RecipeName = Annotated[str, typer.Argument(help="A recipe's name, or the path of a YAML file.", show_default=False)]
ScaleName = Annotated[str, typer.Option("--scale", help="auto, embedded, gpu, none, or the path of a YAML file.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a key: --set stages.polish.beta=0.02. Repeatable.", show_default=False),
]
SeedCount = Annotated[
    int | None, typer.Option("--seeds", min=1, max=MAX_SEEDS, help="Training seeds 1 to this, each a run of its own.")
]
RunName = Annotated[str, typer.Argument(help="A run's folder, or its name below runs/.", show_default=False)]


def _console() -> Console:
    """Standard output; wide enough for a table where it is not a terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=PLAIN_WIDTH)


def _seeds(count: int | None) -> tuple[int, ...]:
    """Those of the command line; none where the recipe file has its own."""
    return tuple(range(1, count + 1)) if count is not None else ()


@app.command()
def check(
    recipes: Annotated[list[str] | None, typer.Argument(help="Default: all, at every scale.")] = None,
    scale: Annotated[str | None, typer.Option("--scale", help="Default: every scale.")] = None,
    sets: Sets = None,
) -> None:
    """Validate recipes: every mistake at once, with the remedy."""
    from orchestra.config.experiment import load_experiment

    names = recipes or list(loading.available())
    scales = [scale] if scale is not None else ["none", *loading.available("scales")]
    messages: dict[str, None] = {}
    for name in names:
        for one in scales:
            try:
                experiment = load_experiment(name, one, sets or ())
            except RecipeError as error:
                messages.update(dict.fromkeys(map(str, error.faults)))
            except UserError as error:
                messages[str(error)] = None
            else:
                arms = f", {len(experiment.arms)} arms" if experiment.arms else ""
                typer.echo(f"{name} at scale {one}: {len(experiment.recipe.stages)} stages{arms}, valid")
    if not recipes:
        messages.update(dict.fromkeys(loading.unknown_in_scales()))
    if messages:
        raise UserError("\n".join(messages))


@app.command()
def plan(recipe: RecipeName, scale: ScaleName = "auto", sets: Sets = None,
         as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
         seeds: SeedCount = None) -> None:  # fmt: skip
    """Show what a run, or all runs of an experiment, would do, take and need, without running them."""
    from orchestra.config.changes import of_the_scale
    from orchestra.config.experiment import load_experiment
    from orchestra.plan import table
    from orchestra.plan.estimate import estimate
    from orchestra.plan.experiment import plan_experiment
    from orchestra.plan.machine import this_machine
    from orchestra.run.experiment import settled

    chosen, machine = loading.choose_scale(scale), this_machine()
    name = chosen.name if chosen.path is None else str(chosen.path)
    experiment = load_experiment(recipe, name, sets or (), _seeds(seeds))
    if experiment.single:
        made, show_plan = estimate(experiment.recipe, machine, chosen.name), table.show
    else:
        # as a run would have it: arms that differ in `auto` and what it means here are the same
        here = experiment.each(lambda one: settled(one, bool(machine.gpus)))
        made, show_plan = plan_experiment(here, machine, chosen.name), table.show_experiment
    if as_json:
        typer.echo(json.dumps(made.to_json(), indent=1))
        return
    console = _console()
    if chosen.why:
        console.print(chosen.why, highlight=False)
    if told := of_the_scale(recipe, experiment, sets or ()):
        console.print(f"the scale sets {told}", highlight=False, soft_wrap=True, markup=False)
    show_plan(made, console)


@app.command()
def run(
    recipe: RecipeName,
    scale: ScaleName = "auto",
    sets: Sets = None,
    restart_from: Annotated[
        str | None, typer.Option("--restart-from", help="Set this stage and all later ones aside and run them again.")
    ] = None,
    runs: Annotated[Path, typer.Option("--runs", help="Folder of the runs.")] = Path("runs"),
    force: Annotated[bool, typer.Option("--force", help="Also where the plan says that it does not fit.")] = False,
    seeds: SeedCount = None,
) -> None:
    """Run a recipe, with all its arms and seeds; finished stages are skipped."""
    from orchestra.cli_run import run_command
    from orchestra.config.experiment import load_experiment

    chosen = loading.choose_scale(scale)
    name = chosen.name if chosen.path is None else str(chosen.path)
    loaded = load_experiment(recipe, name, sets or (), _seeds(seeds))
    code = run_command(loaded, chosen, str(loading.find(recipe)), tuple(sets or ()), restart_from, runs, force=force)
    if code:
        raise typer.Exit(code)


@app.command()
def show(run: RunName, as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False) -> None:
    """Print the stage table of a run, finished or in progress; of an experiment, where each of its runs is."""
    from orchestra.run import overview
    from orchestra.run import show as showing
    from orchestra.run.experiment import find_experiment
    from orchestra.run.folder import find_run
    from orchestra.run.state import stages_of

    console = _console()
    if (experiment := find_experiment(run)) is not None:
        found = overview.overview_of(experiment)
        if as_json:
            typer.echo(overview.as_json(found))
            return
        console.print(overview.table(found))
        for line in overview.sentences(found):
            console.print(line, markup=False, highlight=False)
        return
    run_dir = find_run(run)
    results = showing.results_of(run_dir)
    current = showing.current_of(run_dir, results)
    if as_json:
        typer.echo(showing.as_json(results, current))
        return
    console.print(showing.table(results, console.width))
    for line in showing.sentences(current, stages_of(run_dir)) if current is not None else ():
        console.print(line, markup=False, highlight=False)
    best = max(
        (result for result in results if result.accuracy is not None), key=lambda one: one.accuracy, default=None
    )
    if best is not None:
        console.print(f"best: {best.name} ({best.accuracy:.3f}); folder: {run_dir}", highlight=False)


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(help="Experiments, or runs on the same problems.", show_default=False)],
    stage: Annotated[
        str | None, typer.Option("--stage", help="Whose evaluation; default: the last one of the last trained policy.")
    ] = None,
    on: Annotated[
        str | None, typer.Option("--set", help="One of several sets of problems that a stage has asked.")
    ] = None,
    decoded: Annotated[bool, typer.Option("--greedy", help="Greedy answers instead of sampled ones.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Set arms, or separate runs, side by side: paired differences to the first, over problems and training seeds."""
    from orchestra.report import arms
    from orchestra.run.experiment import find_experiment
    from orchestra.run.folder import find_run

    folders = [find_experiment(run) or find_run(run) for run in runs]
    compared = arms.compare_runs(folders, stage, "greedy" if decoded else "sampled", on)
    if as_json:
        typer.echo(arms.as_json(compared))
        return
    arms.show(compared, _console())


@app.command()
def report(run: RunName) -> None:
    """Write report.html of a run, or of an experiment, again."""
    from orchestra.report.comparison import write_any
    from orchestra.run.experiment import find_experiment
    from orchestra.run.folder import find_run

    typer.echo(write_any(find_experiment(run) or find_run(run)))


@app.command()
def export(
    run: RunName,
    to: Annotated[
        str | None, typer.Option("--to", help="A folder, or hub:name/model[@branch]; default: a folder below the run.")
    ] = None,
    stage: Annotated[str | None, typer.Option("--stage", help="Whose policy or panel; default: the last one.")] = None,
    what: Annotated[str | None, typer.Option("--what", help="merged, adapter or panel.")] = None,
    base: Annotated[str | None, typer.Option("--base", help="dequantized (as trained) or original.")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="bfloat16, float16 or float32.")] = None,
    private: Annotated[bool | None, typer.Option("--private/--public", help="Of a repository that is made.")] = None,
    tag: Annotated[str | None, typer.Option("--tag", help="Put on the commit.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Publish nothing; show every file and size.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Also what this run did not put there.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also where a gate said NO-GO; the card says so.")] = False,
) -> None:
    """Merge a run's policy, load it again, compare it with what was trained, then write or publish it."""
    from orchestra.cli_export import export_run
    from orchestra.run.folder import find_run

    options = {"what": what, "base": base, "dtype": dtype, "private": private, "tag": tag}
    typer.echo(export_run(find_run(run), to, stage, options, force=force, replace=replace, dry_run=dry_run))


@app.command()
def schema(
    to: Annotated[Path, typer.Option("--to", help="Where.")] = RECIPES / "recipe.schema.json",
) -> None:
    """Write the JSON Schema by which editors complete and check recipes."""
    to.write_text(json_schema(), encoding="utf-8")
    typer.echo(to)


app.command()(diff)
app.command()(verify)
app.add_typer(panel, name="panel")


def main() -> int:
    """The console script. A mistake outside the program is one message on standard error and a code other than 0.

    Of a run's several processes the first that ends so tells why; the launcher ends the others.
    """
    try:
        app()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        if first_to_tell():
            print("stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if first_to_tell():
            if not is_user_error(error):
                raise
            print(f"orchestra: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
