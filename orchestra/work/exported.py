"""What an export is: a folder that is published as it is, and export.json in it, which says what all this is.

README.md             the card
export.json
adapters/<name>/      each policy that it is of, a PEFT folder
*                     the merged model with tokenizer and configuration, if one is wanted
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from evals.evaluate import Evaluation
from evals.fidelity import Fidelity
from models.settings import MergeBase
from orchestra.config.faults import UserError
from orchestra.run.ledger import write_json
from orchestra.work.context import ADAPTER
from settings.files import sha256_of

if TYPE_CHECKING:
    from orchestra.run.ledger import StageResult

RECORD, CARD, ADAPTERS = "export.json", "README.md", "adapters"


@dataclass(frozen=True)
class TrainedPolicy:
    """A finished stage's policy.

    Fields:
        name: of the stage; folder: the stage's; base_sha256: hash of the base when it was trained, None where the stage
            did not record it; no_go: what a gate said against it, empty where none did.
    """

    name: str
    folder: Path
    base_sha256: str | None = None
    no_go: str = ""

    @classmethod
    def of(cls, name: str, folder: Path, result: StageResult, no_go: str = "") -> TrainedPolicy:
        """Of a stage's folder and what it had to say."""
        return cls(name, folder, str(result.extra["base_sha256"]) if "base_sha256" in result.extra else None, no_go)

    @property
    def adapter(self) -> Path:
        """Its PEFT folder."""
        return self.folder / ADAPTER

    def evaluation(self) -> Evaluation:
        """Its own."""
        return Evaluation.read(self.folder / "evaluation.json")


@dataclass(frozen=True)
class ExportRecord:
    """What export.json says.

    Fields:
        key: hash of all that decides the files; the same export again has the same.
        policies: name -> hash of its adapter, each in adapters/<name>/.
        merged: of the policies, what is merged: None where the adapters are all.
        base, base_sha256: that was trained on, and its hash.
        merge_base, dtype: of the merged model.
        fidelity: how it compares with the policy; not_reloaded: engines that could not be asked, and why.
        no_go: what a gate said against it, where it was exported all the same.
        files: path -> sha256 of everything but this file and the card.
    """

    key: str
    policies: Mapping[str, str]
    merged: tuple[str, ...] | None
    base: str
    base_sha256: str
    merge_base: MergeBase
    dtype: str
    fidelity: Fidelity
    not_reloaded: Mapping[str, str]
    no_go: str
    files: Mapping[str, str]

    @classmethod
    def read(cls, folder: Path) -> ExportRecord | None:
        """Of an export; None where the folder is none. Raises UserError where it cannot be read."""
        file = folder / RECORD
        if not file.is_file():
            return None
        try:
            return TypeAdapter(cls).validate_json(file.read_bytes())
        except ValueError as error:
            raise UserError(f"{file} is damaged ({str(error).splitlines()[0]}); export into another folder") from error

    def write(self, folder: Path) -> None:
        """Beside the files that it is about."""
        write_json(folder / RECORD, asdict(self))

    def intact(self, folder: Path) -> bool:
        """Whether all its files are as they were written."""
        return all((folder / name).is_file() and sha256_of(folder / name) == sha for name, sha in self.files.items())

    def strangers(self, folder: Path) -> list[str]:
        """Files in the folder that are not of the export."""
        there = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if not path.is_dir())
        return [name for name in there if name not in self.files and name not in (RECORD, CARD)]

    def lines(self) -> list[str]:
        """What is to be told of how it compares."""
        found = self.fidelity
        lines = [f"KL to the trained policy {found.kl:.1e} nats a token, top-1 {found.agreement:.1%}"]
        for one in found.reloaded:
            lines.append(
                f"reloaded by {one.engine}, {one.of}: accuracy {one.accuracy.estimate:.3f}, "
                f"{100 * one.difference.difference:+.1f} points to the policy's on the same {one.difference.n} "
                f"problems, {one.changed or 'none'} answered otherwise"
            )
        return [*lines, *(f"not reloaded by {engine}: {why}" for engine, why in self.not_reloaded.items())]


def files_of(folder: Path) -> dict[str, Path]:
    """Path in the folder -> file, of everything below it."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
