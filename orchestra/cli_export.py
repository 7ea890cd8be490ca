"""`orchestra export`: a run's policy into a folder, or onto the Hub."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer
from pydantic import ValidationError

from orchestra.config.faults import UserError
from orchestra.config.recipe import Recipe
from orchestra.config.stage import Stage
from orchestra.run import gates, processes
from orchestra.run.disk import disk_errors
from orchestra.run.folder import read_json
from orchestra.run.ledger import Ledger, LedgerEntry
from orchestra.run.progress import Progress, chatter_to
from orchestra.work.settings import EXPORT, ExportSettings
from settings import near

if TYPE_CHECKING:
    from orchestra.work.exported import TrainedPolicy
    from orchestra.work.publishing import Ask

HUB = "hub:"
PANEL = "panel"


def export_run(
    run_dir: Path, to: str | None = None, stage: str | None = None, options: Mapping[str, object] | None = None,
    *, force: bool = False, replace: bool = False, dry_run: bool = False,
) -> str:  # fmt: skip
    """Export a policy of a run; returns what to tell the user.

    Args:
        to: a folder, `hub:name/model[@branch]`, or None for a folder below the run.
        stage: whose policy; None: that of the recipe's last export, or the last trained one.
        options: keys of an export stage, which count more than those of the recipe's.
        force: also where a gate said NO-GO, which the card then says.
        replace: also what this run did not put there.
        dry_run: do not publish, but tell what would be.

    Raises:
        UserError: with a message for the user.
    """
    if not (run_dir / "run.json").is_file():
        raise UserError(f"{run_dir} has no run.json yet; run its recipe first")
    recipe = Recipe.model_validate(read_json(run_dir / "run.json")["recipe"])
    entries = Ledger(run_dir).entries
    if dry_run and not (to or "").startswith(HUB):
        raise UserError("--dry-run shows what would be published: it needs --to hub:name/model")
    asked = {key: value for key, value in (options or {}).items() if value is not None}
    if to is not None and to.startswith(HUB):
        asked["hub"] = to.removeprefix(HUB)
    else:
        asked["hub"] = None  # what a recipe publishes by itself is published in its run
    of_panel = asked.get("what") == PANEL
    exports = [one for one in recipe.stages if isinstance(one, ExportSettings) and (one.what == PANEL) == of_panel]
    own = exports[-1] if exports else None
    stated = {key: value for key, value in own or () if key in ExportSettings.model_fields}
    try:
        settings = ExportSettings.model_validate(stated | asked)
    except ValidationError as error:
        (first, *_) = error.errors()
        (key, *_) = first["loc"]
        if key == "hub":
            raise UserError(
                f"--to {to}: a repository is named as in hub:name/model, or hub:name/model@branch"
            ) from error
        raise UserError(f"--{key} {first['input']}: {first['msg']}") from error
    name = _source_of(run_dir, recipe, entries, stage, own, PANEL if of_panel else "policy")
    entry, no_go = entries[name], _no_go(recipe, entries, name)
    if no_go and not force:
        raise UserError(f"{no_go}; --force exports it all the same, and its card says so")
    folder = _folder(run_dir, entries, to, own, settings, stage)
    recipe, progress = _as_trained(recipe, entry), Progress()
    if of_panel:
        source = run_dir / entry.folder / "panel"
        return _exported_panel(run_dir, recipe, source, folder, settings, no_go, replace=replace)
    processes.yield_cores()
    with chatter_to(run_dir / "log.txt"), disk_errors(folder.parent):
        from orchestra.work.exported import TrainedPolicy

        policy = TrainedPolicy.of(name, run_dir / entry.folder, entry.result, no_go)
        said = _exported(run_dir, recipe, policy, folder, settings, progress, replace)
    if settings.hub is None:
        return f"{said}\n  as GGUF, for llama.cpp: {gguf_command(folder)}" if settings.what == "merged" else said
    from orchestra.work.publishing import publish

    told = publish(folder, run_dir, recipe, settings, say=progress.say, ask=_asking(replace), dry_run=dry_run)
    return f"{said}\n{told}"


def _exported(
    run_dir: Path, recipe: Recipe, policy: TrainedPolicy, folder: Path, settings: ExportSettings, progress: Progress,
    replace: bool,
) -> str:  # fmt: skip
    """Written and found to be the policy; what to tell of that."""
    from orchestra.work.exporting import export_policy
    from orchestra.work.publishing import may_publish, write_card
    from orchestra.work.resources import Resources

    if settings.hub is not None:
        may_publish(settings)  # a token that is missing is told before the merge, which takes a while
    record = export_policy(Resources(recipe), policy, folder, settings, progress, replace=replace)
    write_card(folder, run_dir, recipe)
    expert = recipe.stage(policy.name).trains
    which = f", its expert {expert!r}" if expert is not None else ""
    return "\n".join([f"{folder}: policy of stage {policy.name!r}{which}", *(f"  {line}" for line in record.lines())])


def _exported_panel(
    run_dir: Path, recipe: Recipe, source: Path, folder: Path, settings: ExportSettings, no_go: str, *, replace: bool
) -> str:
    """Written and read again; what to tell of that."""
    from models.experts import read_panel
    from orchestra.work.exporting_panel import export_panel

    if settings.hub is not None:
        raise UserError(f"--to hub:{settings.hub}: a panel goes into a folder only; upload that yourself")
    with disk_errors(folder.parent):
        panel = export_panel(read_panel(source), source, folder, run_dir, recipe, no_go=no_go, replace=replace)
    return f"{folder}: {', '.join(panel.names)}; README.md there says how to serve them"


def gguf_command(folder: Path) -> str:
    """The one command: the `gguf` package writes such files, but what reads a checkpoint into them is llama.cpp's own
    script."""
    return f"python llama.cpp/convert_hf_to_gguf.py {folder} --outfile {folder}.gguf"


def _asking(replace: bool) -> Ask | None:
    """How to find out whether something is to be replaced: a terminal is asked."""
    if replace:
        return lambda question: True
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    return lambda question: typer.confirm(question, err=True)


def _source_of(
    run_dir: Path,
    recipe: Recipe,
    entries: Mapping[str, LedgerEntry],
    stage: str | None,
    own: ExportSettings | None,
    what: Literal["policy", "panel"],
) -> str:
    """The stage whose policy, or whose panel, is meant, which must be finished."""
    trained = [one.name for one in recipe.stages if what in one.given]
    if not trained:
        raise UserError(f"{run_dir}: its recipe trains no {what}")
    if stage is not None and stage not in trained:
        raise UserError(f"--stage {stage}: trains no {what} (these do: {', '.join(trained)}){near(stage, trained)}")
    meant = trained[-1]
    if own is not None:
        meant = recipe.panel_of(own.name) if what == PANEL else recipe.parents_of(own.name)[0]
    name = stage or meant
    if name not in entries:
        done = [one for one in trained if one in entries]
        other = f", or export an earlier one with --stage {done[-1]}" if done else ""
        raise UserError(f"{run_dir}: stage {name!r} is not finished; run its recipe to the end{other}")
    return name


def _folder(
    run_dir: Path,
    entries: Mapping[str, LedgerEntry],
    to: str | None,
    own: ExportSettings | None,
    settings: ExportSettings,
    stage: str | None,
) -> Path:
    """Where it goes: what the recipe's own export has made already is not made again."""
    if to is not None and not to.startswith(HUB):
        return Path(to).expanduser().resolve()
    if own is not None and own.name in entries and stage is None:
        same = ("what", "base", "dtype", "check")
        if all(getattr(own, key) == getattr(settings, key) for key in same):
            return run_dir / entries[own.name].folder / EXPORT
    return run_dir / ("export-panel" if settings.what == PANEL else "export")


def _no_go(recipe: Recipe, entries: Mapping[str, LedgerEntry], name: str) -> str:
    """What the first gate that was missed up to this stage said; empty where none was."""
    results = {key: entry.result for key, entry in entries.items()}
    upto: list[Stage] = [*recipe.before(name), recipe.stage(name)]
    for stage in upto:
        verdict = gates.judge(recipe, stage, results) if stage.name in results else None
        if verdict is not None and verdict.word == gates.NO_GO:
            return f"the gate of stage {stage.name!r} said {verdict.sentence}"
    return ""


def _as_trained(recipe: Recipe, entry: LedgerEntry) -> Recipe:
    """The recipe with the base that the stage itself says it was trained on: run.json may be of a later attempt."""
    own = {key: entry.fingerprint.config.get(f"model.{key}") for key in ("base", "quantize", "dtype", "prompt")}
    known = {key: value for key, value in own.items() if value is not None}
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=known)})
