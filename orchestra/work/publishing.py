"""Publishing an export: its card, and a repository of the Hub that holds exactly that folder.

What another put into a repository is not overwritten unasked: a run remembers, in published.json, the commits that it
made.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from models.hub import Change, Publisher, Remote, Target
from orchestra.config.faults import UserError
from orchestra.run.folder import read_json
from orchestra.run.ledger import write_json
from orchestra.text import size
from orchestra.work.exporting import RECORD, ExportRecord
from orchestra.work.settings import ExportSettings
from settings.hub import MAIN

CARD = "README.md"
PUBLISHED = "published.json"

Ask = Callable[[str], bool]


def target_of(settings: ExportSettings) -> Target:
    """Where an export's settings say that it goes."""
    repo, _, branch = str(settings.hub).partition("@")
    return Target(repo, settings.private, branch or MAIN, settings.tag)


def publisher_of(settings: ExportSettings, folder: Path = Path()) -> Publisher:
    """Raises HubError where there is no token, or it may not write there."""
    return Publisher(folder, target_of(settings))


def write_card(folder: Path, run_dir: Path, settings: ExportSettings, repo: str | None = None) -> None:
    """Write README.md, the model card, of an export.

    Args:
        repo: under which it will be loaded; None: its folder's.
    """
    from orchestra.config.recipe import Recipe
    from orchestra.report.card import card
    from orchestra.report.data import read_run

    record = ExportRecord.read(folder)
    if record is None:
        raise UserError(f"{folder} is no export ({RECORD} is missing)")
    recipe = Recipe.model_validate(read_json(run_dir / "run.json")["recipe"])
    (folder / CARD).write_text(card(read_run(run_dir), recipe, record, repo or folder.name), encoding="utf-8")


def publish(
    folder: Path, run_dir: Path, settings: ExportSettings, *, ask: Ask | None = None, dry_run: bool = False
) -> str:
    """Make the repository's branch hold the export; returns what to tell the user.

    Args:
        ask: whether to replace what this run did not put there; None: nobody can be asked.
        dry_run: only tell what would be done.

    Raises:
        HubError: the Hub says no, or is gone; nothing is published then.
        UserError: there is something else, and it is not to be replaced.
    """
    publisher = publisher_of(settings, folder)
    target = publisher.target
    write_card(folder, run_dir, settings, target.repo)
    remote = publisher.look()
    changes = publisher.changes(remote)
    if dry_run:
        return _would(target, remote, changes)
    if any(change.what != "same" for change in changes):
        known = read_json(run_dir / PUBLISHED).get(str(target), {}).get("commit")
        why = why_ask(remote, known)
        if why is not None and (ask is None or not ask(f"hub:{target} {why}. Replace it?")):
            raise UserError(f"hub:{target} {why}; nothing was published (--replace does it, in one commit)")
    record = ExportRecord.read(folder)
    done = publisher.publish(remote, f"{', '.join(record.policies)} of {run_dir.name}")
    write_json(run_dir / PUBLISHED, read_json(run_dir / PUBLISHED) | {str(target): {"commit": done.commit}})
    return f"{done.url}: {'published' if done.changed else 'is there already'}, commit {done.commit[:12]}"


def why_ask(remote: Remote, known: str | None) -> str | None:
    """What speaks against replacing a branch's files; None where nothing does.

    Args:
        known: the commit that this run made last there.
    """
    if not remote.files or remote.commit == known:
        return None
    if known is not None:
        return f"has moved on since this run published to it (commit {str(remote.commit)[:12]})"
    what = "the export of another run" if RECORD in remote.files else "other files"
    return f"holds {what} ({len(remote.files)} files, commit {str(remote.commit)[:12]})"


def _would(target: Target, remote: Remote, changes: list[Change]) -> str:
    """Every file with its size, and what would become of it."""
    width = max(len(change.path) for change in changes)
    lines = [f"  {change.path:{width}}  {size(change.size):>10}  {change.what}" for change in changes]
    sent = sum(change.size for change in changes if change.what in ("new", "changed"))
    made = "" if remote.exists else f" (a new {'private' if target.private else 'public'} repository)"
    return "\n".join([f"hub:{target}{made}, not published:", *lines, f"  {size(sent)} to send"])
