"""Runs beside one another, of the arms and seeds of one experiment: a stage that several have in common is run once.

Two runs have a stage in common where they are the same up to it: the same stages with the same fingerprints, in the
same order. A stage's own fingerprint would do for what it computes, but what it says of itself (differences to the
evaluated stage before) depends on all of them. The files are linked, not copied: each run has them whole, on the disk
they are once, and no run misses them when another is set aside or deleted.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestra.run.ledger import Ledger, LedgerEntry
from settings.files import linked, sha256_of


@dataclass(frozen=True)
class Found:
    """A finished stage of another run."""

    run_dir: Path
    entry: LedgerEntry

    @property
    def whole(self) -> bool:
        """Whether its files are what the stage wrote: its own run, which may come later, is not asked."""
        place = self.run_dir / self.entry.folder
        outputs = self.entry.outputs.items()
        return place.is_dir() and all(
            (place / name).is_file() and sha256_of(place / name) == digest for name, digest in outputs
        )

    def linked(self, place: Path) -> LedgerEntry:
        """Put its files into a folder of one's own; gives that run's entry for it. Whole, or not at all."""
        partial = place.with_name(f".{place.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(self.run_dir / self.entry.folder, partial, copy_function=linked)
        partial.rename(place)
        return replace(self.entry, folder=place.name)


Finder = Callable[[Sequence[str]], Found | None]


def finder(runs: Sequence[Path], own: Path) -> Finder:
    """Looks for a stage in all runs but one's own.

    The finder takes the digests of the fingerprints of a run's stages up to, and with, the one that is looked for.
    """

    def find(digests: Sequence[str]) -> Found | None:
        for run_dir in runs:
            if run_dir == own or not run_dir.is_dir():
                continue
            entries = sorted(Ledger(run_dir).entries.values(), key=lambda entry: entry.folder)
            if [entry.fingerprint.digest for entry in entries[: len(digests)]] == list(digests):
                found = Found(run_dir, entries[len(digests) - 1])
                if found.whole:
                    return found
        return None

    return find
