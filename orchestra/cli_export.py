"""`orchestra export`: the model of a run's last policy."""

from __future__ import annotations

from pathlib import Path

from orchestra.config.faults import UserError
from orchestra.config.recipe import Recipe
from orchestra.run.folder import read_json
from orchestra.run.ledger import Ledger, LedgerEntry
from orchestra.run.progress import chatter_to
from orchestra.stages import all_kinds


def export_run(run_dir: Path, to: Path | None) -> str:
    """Export the newest trained policy of a run into a folder; returns what to tell the user."""
    from orchestra.work.context import ADAPTER
    from orchestra.work.exporting import export_policy
    from orchestra.work.resources import Resources

    trained = [
        entry
        for entry in Ledger(run_dir).entries.values()
        if (kind := all_kinds().get(entry.result.kind)) is not None and "policy" in kind.gives
    ]
    if not trained:
        raise UserError(f"{run_dir} has no trained policy yet; run its recipe first")
    recipe = _as_trained(Recipe.model_validate(read_json(run_dir / "run.json")["recipe"]), trained[-1])
    folder = to or run_dir / "export"
    folder.mkdir(parents=True, exist_ok=True)
    adapter, trained_on = run_dir / trained[-1].folder / ADAPTER, trained[-1].result.extra.get("base_sha256")
    with chatter_to(run_dir / "log.txt"):
        report = export_policy(Resources(recipe), adapter, folder, "bfloat16", trained_on)
    return f"{folder / 'merged'}: policy of stage {trained[-1].result.name!r}, KL to it {report.kl:.1e}"


def _as_trained(recipe: Recipe, entry: LedgerEntry) -> Recipe:
    """The recipe with the base that the stage itself says it was trained on: run.json may be of a later attempt."""
    own = {key: entry.fingerprint.config.get(f"model.{key}") for key in ("base", "quantize", "dtype", "prompt")}
    known = {key: value for key, value in own.items() if value is not None}
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=known)})
