"""Runs a recipe: one folder per stage, finished stages skipped, everything else one clear message.

What a stage does is in `orchestra/stages/`; here is when it runs, what is recorded, and how it may end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.processes import Processes, first_to_tell
from orchestra.config.faults import UserError, is_user_error
from orchestra.config.recipe import Recipe
from orchestra.config.stage import Stage
from orchestra.plan.machine import PeakMemory
from orchestra.run import commits, gates
from orchestra.run import folder as run_folder
from orchestra.run.disk import StageError, disk_errors, disk_full, no_space
from orchestra.run.fingerprint import fingerprint, hashed_outputs
from orchestra.run.ledger import Fingerprint, Ledger, LedgerEntry, StageResult, write_json
from orchestra.run.progress import Progress, chatter_to
from orchestra.work.context import StageContext
from orchestra.work.held_out import must_be_readable
from settings import near
from settings.files import sha256_of

if TYPE_CHECKING:
    from orchestra.run.siblings import Finder
    from orchestra.work.engines import Engines
    from orchestra.work.resources import Resources


LEFT_ALONE = ("Connection closed by peer", "Connection reset by peer")
"""What gloo says where the process at the other end is gone."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Fields:
        results: of the finished stages in order, the base first; verdict: NO-GO where a gate stopped the recipe.
    """

    run_dir: Path
    results: tuple[StageResult, ...]
    verdict: str = "GO"


@dataclass
class Run:
    """One run of a recipe in one folder.

    Fields:
        plan: what was planned, kept in run.json for the report.
        processes: that run it together. The first one decides and writes; the others are told.
        engines: of the process, where other runs ask them too; they are left running then.
        shared: finds a stage that another run has finished just so; see orchestra/run/siblings.py.
        arm: of the experiment that it is a run of, by which its stages are called on the command line.
        on_begin: called with each stage that is run, when its folder is there and all before it are recorded.
    """

    recipe: Recipe
    run_dir: Path
    scale: str = "none"
    source: str = ""
    sets: tuple[str, ...] = ()
    plan: Mapping[str, Any] | None = None
    progress: Progress = field(default_factory=Progress)
    processes: Processes = field(default_factory=Processes)
    engines: Engines | None = None
    shared: Finder | None = None
    arm: str = ""
    on_begin: Callable[[Stage], None] | None = None
    _resources: Resources | None = None
    _digests: tuple[str, ...] = ()

    def start(self, restart_from: str | None = None) -> Outcome:
        """Run what is not finished. Raises UserError (and StageError) with a message for the user."""
        first = self.processes.first
        with contextlib.ExitStack() as stack:
            with disk_errors(self.run_dir):
                if first:
                    stack.enter_context(run_folder.locked(self.run_dir))
                    self._prepare(Ledger(self.run_dir), restart_from)
                    for name, commit in commits.resolve(self.recipe, self.run_dir).items():
                        self.progress.say(f"{name} is commit {commit}")
                self.processes.wait()
                self.recipe = commits.pinned(self.recipe, self.run_dir)
                ledger = Ledger(self.run_dir)
                # before anything is written that says what this run is
                self._judge_changes(ledger)
                if first:
                    with chatter_to(self._log(self.run_dir)):
                        to_come = [stage for stage in self.recipe.stages if stage.name not in ledger.entries]
                        must_be_readable(self.recipe, to_come)
                        for stage in to_come:
                            stage.ready(self.recipe)
                    self._note_versions()
            stack.push(self._close)
            stack.enter_context(_sigterm_as_interrupt(alone=self.processes.count == 1))
            verdict, self._digests = "GO", ()
            for index, stage in enumerate(self.recipe.all_stages):
                try:
                    result = self._stage(index, stage, ledger)
                except KeyboardInterrupt:
                    message = f"stopped in stage {stage.name!r}; the same command goes on from its last checkpoint"
                    raise StageError(message, 130) from None
                if result.gate == gates.NO_GO:
                    verdict = gates.NO_GO
                    break
            return Outcome(self.run_dir, self._results(ledger), verdict)

    # before the stages

    def _prepare(self, ledger: Ledger, restart_from: str | None) -> None:
        names = [stage.name for stage in self.recipe.all_stages]
        if restart_from is not None:
            if restart_from not in names:
                hint = f"(stages: {', '.join(names)}){near(restart_from, names)}"
                raise UserError(f"--restart-from {restart_from}: no such stage {hint}")
            target = run_folder.set_aside(self.run_dir, ledger, names.index(restart_from))
            if target is not None:
                self.progress.say(f"stages from {restart_from!r} on are set aside in {target}")
            if restart_from == names[0]:
                commits.forget(self.run_dir)
        gone = frozenset(name for name in ledger.entries if name not in names)
        if gone:
            target = run_folder.set_aside(self.run_dir, ledger, 100, gone)
            self.progress.say(f"no longer in the recipe: {', '.join(sorted(gone))}; set aside in {target}")

    def _note_versions(self) -> None:
        about = run_folder.about(self.recipe, self.scale, self.source, self.sets, self.arm) | {"plan": self.plan}
        old = run_folder.read_json(self.run_dir / "run.json").get("versions", {})
        changed = [
            f"{name} {old[name]} -> {new}" for name, new in about["versions"].items() if old.get(name, new) != new
        ]
        if changed:
            self.progress.say(f"other versions than this run began with: {', '.join(changed)}")
        write_json(self.run_dir / "run.json", about)

    def _judge_changes(self, ledger: Ledger) -> None:
        """Whatever is finished or begun, from the first stage on, was so with these settings, inputs and code."""
        for index, stage in enumerate(self.recipe.all_stages):
            place = run_folder.stage_folder(self.run_dir, index, stage.name)
            now = fingerprint(self.recipe, stage, ledger.entries)
            if stage.name not in ledger.entries:
                self._begun_must_be_same(stage, place, now)
                break
            self._must_be_same(stage, place, ledger.entries[stage.name], now)

    def _called(self, stage: Stage) -> str:
        return f"{self.arm}/{stage.name}" if self.arm else stage.name

    # one stage

    def _stage(self, index: int, stage: Stage, ledger: Ledger) -> StageResult:
        with disk_errors(self.run_dir):
            place = run_folder.stage_folder(self.run_dir, index, stage.name)
            label = f"[{index}/{len(self.recipe.stages)}] {stage.name}"
            now = fingerprint(self.recipe, stage, ledger.entries)
            self._digests += (now.digest,)
            entry = ledger.entries.get(stage.name)
            if entry is not None:
                self._must_be_same(stage, place, entry, now)
                self.progress.say(f"{label}: finished before")
            else:
                entry = self.processes.once(lambda: self._adopted(stage, place, now))
                if entry is None:
                    entry = self.processes.once(lambda: self._taken_over(place, label))
                if entry is None:
                    self._begin(stage, place, now)
                    if self.on_begin is not None:
                        self.on_begin(stage)
                    self.progress.say(f"{label}: {stage.summary(self.recipe)}")
                    entry = self._execute(stage, place, ledger, now)
                    self.progress.say(f"    {gates.sentence(entry.result)}")
                self._keep(entry, place, ledger)
            if self.processes.first:
                shutil.rmtree(place / "checkpoints", ignore_errors=True)
            return self._judged(stage, place, ledger)

    def _keep(self, entry: LedgerEntry, place: Path, ledger: Ledger) -> None:
        """Record a finished stage, on disk before any process goes on."""
        if self.processes.first:
            write_json(place / "result.json", entry.result.to_json())
            ledger.record(entry)
        else:
            ledger.entries[entry.result.name] = entry
        self.processes.wait()

    def _must_be_same(self, stage: Stage, place: Path, entry: LedgerEntry, now: Fingerprint) -> None:
        """A finished stage is as its ledger entry says, or the user is told what changed."""
        remedy = f"run again with --restart-from {self._called(stage)} (the old stages are set aside, not deleted)"
        changes = now.changes_since(entry.fingerprint)
        if entry.folder != place.name:
            changes.insert(0, f"its place in the recipe {entry.folder[:2]} -> {place.name[:2]}")
        if changes:
            raise UserError(f"stage {stage.name!r} is finished, but since then changed: {_listed(changes)}; {remedy}")
        for name, digest in entry.outputs.items():
            path = place / name
            if not path.is_file() or sha256_of(path) != digest:
                what = "is not what the stage wrote" if path.is_file() else "is missing"
                raise UserError(f"stage {stage.name!r} is finished, but {path} {what}; put it back, or {remedy}")

    def _adopted(self, stage: Stage, place: Path, now: Fingerprint) -> LedgerEntry | None:
        """A stage that was finished but not yet recorded when the process was killed."""
        config = run_folder.read_json(place / "config.json")
        result = run_folder.read_json(place / "result.json")
        if not result or config.get("digest") != now.digest:
            return None
        return LedgerEntry(place.name, now, hashed_outputs(stage, place), StageResult.from_json(result))

    def _taken_over(self, place: Path, label: str) -> LedgerEntry | None:
        """A stage that another run has finished, up to which both are the same; what this run began itself goes on."""
        found = self.shared(self._digests) if self.shared is not None and not place.exists() else None
        if found is None:
            return None
        self.progress.say(f"{label}: the same as in {found.run_dir.parent.name}/{found.run_dir.name}, taken over")
        return found.linked(place)

    def _begin(self, stage: Stage, place: Path, now: Fingerprint) -> None:
        """Make the folder; what a killed run left in it stays only if it was begun with the same settings."""
        if self.processes.first:
            place.mkdir(exist_ok=True)
            self._begun_must_be_same(stage, place, now)
            config = {"stage": stage.model_dump(mode="json"), "digest": now.digest, **dataclasses.asdict(now)}
            write_json(place / "config.json", config)
        self.processes.wait()

    def _begun_must_be_same(self, stage: Stage, place: Path, now: Fingerprint) -> None:
        """An unfinished stage was begun as it would be now, or the user is told what changed."""
        old = run_folder.read_json(place / "config.json")
        if old and old.get("digest") != now.digest:
            changes = now.changes_since(Fingerprint(old["config"], old["inputs"], old["code"]))
            raise UserError(
                f"stage {stage.name!r} was begun, but since then changed: {_listed(changes)}; "
                f"run again with --restart-from {self._called(stage)} (what it has so far is set aside, not deleted)"
            )

    def _execute(self, stage: Stage, place: Path, ledger: Ledger, now: Fingerprint) -> LedgerEntry:
        log = self._log(place)
        start = time.monotonic()
        try:
            with chatter_to(log), PeakMemory() as peak:
                if self._resources is None:
                    from orchestra.work.engines import Engines
                    from orchestra.work.resources import Resources

                    # none of its own to keep where others' are used
                    self._resources = Resources(self.recipe, self.processes, self.engines or Engines())
                context = StageContext(
                    recipe=self.recipe,
                    stage=stage,
                    folder=place,
                    run_dir=self.run_dir,
                    earlier={name: self.run_dir / entry.folder for name, entry in ledger.entries.items()},
                    parents=self.recipe.parents_of(stage.name),
                    panel=self.recipe.panel_of(stage.name),
                    resources=self._resources,
                    progress=self.progress,
                    processes=self.processes,
                    expert=stage.trains,
                )
                result = stage.run(context)
            # a file may be another process's, so none is hashed before all are done
            most = max(self.processes.gather(peak.bytes))
        except Exception as error:  # the one place where anything that a stage may raise becomes a message
            # before engines are closed, at which the other processes end with errors of their own
            first_to_tell()
            _append_traceback(log, error)
            raise _explained(error, stage, log) from error
        extra = result.extra | {"peak_memory_bytes": float(most)}
        result = dataclasses.replace(result, seconds=result.seconds or time.monotonic() - start, extra=extra)
        return self.processes.once(lambda: LedgerEntry(place.name, now, hashed_outputs(stage, place), result))

    # after a stage

    def _judged(self, stage: Stage, place: Path, ledger: Ledger) -> StageResult:
        """The stage's result with its gate's verdict, which is judged anew in every run: a gate may be changed."""
        entry = ledger.entries[stage.name]
        results = {name: other.result for name, other in ledger.entries.items()}
        verdict = gates.judge(self.recipe, stage, results)
        gate = verdict.word if verdict is not None else None
        if gate != entry.result.gate:
            entry = dataclasses.replace(entry, result=dataclasses.replace(entry.result, gate=gate))
            self._keep(entry, place, ledger)
        if verdict is not None:
            self.progress.say(f"    gate: {verdict.sentence}")
            if verdict.word == gates.NO_GO:
                self.progress.say(f"    {gates.best_so_far(self.run_dir, ledger.entries)}")
        return entry.result

    def _results(self, ledger: Ledger) -> tuple[StageResult, ...]:
        return tuple(
            ledger.entries[stage.name].result for stage in self.recipe.all_stages if stage.name in ledger.entries
        )

    def _close(self, failed: type[BaseException] | None, *_: object) -> None:
        # where other processes are gone there is no taking down of what was joined with them; see __main__.py
        ours = self._resources is not None and self.engines is None
        if ours and (failed is None or self.processes.count == 1):
            with chatter_to(self._log(self.run_dir)):
                self._resources.close()

    def _log(self, place: Path) -> Path:
        """A process's own."""
        return place / ("log.txt" if self.processes.first else f"log-{self.processes.rank}.txt")


def _listed(changes: list[str], limit: int = 8) -> str:
    rest = f" and {len(changes) - limit} more" if len(changes) > limit else ""
    return ", ".join(changes[:limit]) + rest


def _explained(error: Exception, stage: Stage, log: Path) -> StageError:
    if disk_full(error):
        return StageError(no_space(log.parent))
    if is_user_error(error):
        return StageError(f"stage {stage.name!r}: {error}")
    text = " ".join(str(error).split())
    if any(words in text for words in LEFT_ALONE):
        return StageError(
            f"stage {stage.name!r}: another process of this run ended before this one, without a word (killed? out of "
            f"memory?); the same command goes on from the last checkpoint ({log} has {type(error).__name__})"
        )
    text = text if len(text) <= 300 else text[:297] + "..."
    return StageError(f"stage {stage.name!r} failed: {type(error).__name__}: {text}\nthe whole story is in {log}")


def _append_traceback(log: Path, error: Exception) -> None:
    with contextlib.suppress(OSError), open(log, "a", encoding="utf-8") as file:  # the disk may be what is full
        file.write("\n" + "".join(traceback.format_exception(error)))


@contextlib.contextmanager
def _sigterm_as_interrupt(*, alone: bool) -> Iterator[None]:
    """A polite kill ends a run like Ctrl-C does.

    `alone`: without other processes. With them, one that ends with an error has yet to say so when the launcher, which
    saw another one end, kills it politely.
    """

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    try:
        old = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread: the signal is not ours
        yield
        return
    try:
        yield
    except BaseException:
        if not alone:
            old = signal.SIG_IGN
        raise
    finally:
        signal.signal(signal.SIGTERM, old)
