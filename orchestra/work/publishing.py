"""Publishing an export: its card, and a repository of the Hub that holds exactly that export.

What another put into a repository is not overwritten unasked: a run remembers, in published.json, the commits that it
made.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from models.hub import Change, Publisher, Remote, Target
from orchestra.config.faults import UserError
from orchestra.config.recipe import Recipe
from orchestra.run.folder import read_json
from orchestra.run.ledger import write_json
from orchestra.text import size
from orchestra.work.exported import CARD, RECORD, ExportRecord, files_of
from orchestra.work.settings import ExportSettings
from settings.hub import MAIN

PUBLISHED, LICENCES = "published.json", "licences.json"

Ask = Callable[[str], bool]


def target_of(settings: ExportSettings) -> Target:
    """Where an export's settings say that it goes."""
    repo, _, branch = str(settings.hub).partition("@")
    return Target(repo, settings.private, branch or MAIN, settings.tag)


def may_publish(settings: ExportSettings) -> None:
    """Raises HubError where there is no token, or it may not write there."""
    Publisher(target_of(settings), {}, {})


def write_card(folder: Path, run_dir: Path, recipe: Recipe, target: Target | None = None) -> ExportRecord:
    """Write README.md, the model card, of an export; gives what the export says of itself.

    Args:
        recipe: of the run, with the base as it was trained.
        target: from where it will be loaded; None: from the folder.
    """
    from orchestra.report.card import Licences, card
    from orchestra.report.data import read_run

    record = ExportRecord.read(folder)
    if record is None:
        raise UserError(f"{folder} is no export ({RECORD} is missing)")
    place, branch = (folder.name, MAIN) if target is None else (target.repo, target.revision)
    licences = Licences(read_json(run_dir / LICENCES))
    text = card(read_run(run_dir), recipe, record, place, branch, licences)
    write_json(run_dir / LICENCES, licences.known)
    # a new file: the old one may be shared with the runs of other arms
    partial = folder.with_name(f".{folder.name}.card")
    partial.write_text(text, encoding="utf-8")
    partial.replace(folder / CARD)
    return record


def publish(
    folder: Path,
    run_dir: Path,
    recipe: Recipe,
    settings: ExportSettings,
    *,
    say: Callable[[str], None],
    ask: Ask | None = None,
    dry_run: bool = False,
) -> str:
    """Make the repository's branch hold the export; returns what to tell the user.

    Args:
        recipe: of the run, with the base as it was trained.
        ask: whether to replace what this run did not put there; None: nobody can be asked.
        dry_run: only tell what would be done.

    Raises:
        HubError: the Hub says no, or is gone.
        UserError: there is something else, and it is not to be replaced.
    """
    record = write_card(folder, run_dir, recipe)
    publisher = Publisher(target_of(settings), files_of(folder), record.files)
    target = publisher.target
    write_card(folder, run_dir, recipe, target)  # with the owner's name, which the token says
    remote = publisher.look()
    changes = publisher.changes(remote)
    known = read_json(run_dir / PUBLISHED).get(str(target), {}).get("commit")
    why = why_ask(remote, known) if any(change.what != "same" for change in changes) else None
    if dry_run:
        return _would(target, remote, changes, why)
    if remote.public and settings.private:
        raise UserError(f"hub:{target} is a public repository; --public (or `private: false`) publishes there")
    if why is not None and (ask is None or not ask(f"hub:{target} {why}. Replace it?")):
        raise UserError(f"hub:{target} {why}; nothing was published (--replace does it, in one commit)")
    done = publisher.publish(remote, f"{', '.join(record.policies)} of {run_dir.name}", say)
    write_json(run_dir / PUBLISHED, read_json(run_dir / PUBLISHED) | {str(target): {"commit": done.commit}})
    publisher.finish(done)
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


def _would(target: Target, remote: Remote, changes: list[Change], why: str | None) -> str:
    """Every file with its size, what would become of it, and what speaks against that."""
    width = max(len(change.path) for change in changes)
    lines = [f"  {change.path:{width}}  {size(change.size):>10}  {change.what}" for change in changes]
    sent = sum(change.size for change in changes if change.what in ("new", "changed"))
    kind = "public" if (remote.public if remote.exists else not target.private) else "private"
    head = f"hub:{target} ({'a' if remote.exists else 'a new'} {kind} repository), not published:"
    against = [f"  it {why}: replaced only if that is asked for (--replace)"] if why is not None else []
    return "\n".join([head, *lines, f"  {size(sent)} to send", *against])
