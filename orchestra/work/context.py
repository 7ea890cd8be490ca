"""What a stage is handed when it is run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from models.experts import BASE, Panel, PanelError, expert_folder, read_panel
from models.processes import Processes
from orchestra.config.experts import called_in
from orchestra.config.faults import UserError

if TYPE_CHECKING:
    from orchestra.config.recipe import Recipe
    from orchestra.config.stage import Stage
    from orchestra.run.ledger import StageResult
    from orchestra.run.progress import Progress
    from orchestra.work.resources import Resources

ADAPTER = "adapter"
PANEL_FOLDER = "panel"
T = TypeVar("T")


@dataclass(frozen=True)
class Start:
    """What a stage starts from: the adapter in a folder, and what it is called."""

    name: str
    folder: Path


@dataclass(frozen=True)
class StageContext:
    """One stage of one run, as its `run` sees it. Where a run has several processes, each runs the stage.

    Fields:
        recipe: validated, scale and overrides applied.
        stage: the stage itself.
        folder: the stage's folder; it exists, and may hold what a killed run left (checkpoints/, traces.jsonl).
        run_dir: the run's folder.
        earlier: folders of the finished stages before this one by name, `base` included.
        parents: the earlier stages whose policies this one takes up; none is the base with a fresh adapter.
        resources: made once per run and shared by its stages.
        progress: bars and lines for the user; everything printed otherwise goes to the stage's log.txt.
        processes: that run the stage together; what the first one returns is the stage's result.
        panel: the earlier stage whose panel of experts it takes up, if it does.
        expert: which expert is trained, of a stage that trains one; `part`: where it trains several, its name again.
    """

    recipe: Recipe
    stage: Stage
    folder: Path
    run_dir: Path
    earlier: Mapping[str, Path]
    parents: tuple[str, ...]
    resources: Resources
    progress: Progress
    processes: Processes = field(default_factory=Processes)
    panel: str | None = None
    expert: str | None = None
    part: str = ""

    def once(self, work: Callable[[], T]) -> T:
        """Do what only one process may, writing a file above all; all of them wait for it and get what it gives."""
        return self.processes.once(work)

    @property
    def parent(self) -> str | None:
        """The one stage whose policy is taken up; None is the base.

        Raises:
            ValueError: there are several, and the kind must say which it means.
        """
        if len(self.parents) > 1:
            raise ValueError(f"stage {self.stage.name!r} has several parents: {', '.join(self.parents)}")
        return self.parents[0] if self.parents else None

    @property
    def called(self) -> str:
        """The stage's name, and which of its experts this is where it trains several."""
        return f"{self.stage.name}/{self.part}" if self.part else self.stage.name

    def of_expert(self, name: str, folder: Path) -> StageContext:
        """The part of this stage that trains one of its experts, in a folder of its own."""
        return replace(self, expert=name, part=name, folder=folder)

    @property
    def seed(self) -> int:
        """The stage's own, whatever stands before it in the recipe."""
        from orchestra.work.resources import stage_seed

        return stage_seed(self.recipe, self.called)

    def adapter_of(self, stage: str) -> Path:
        """The folder of an earlier stage's policy; of one that trained several experts, that of the expert that is
        trained here. Raises PanelError where that is none of them."""
        folder = self.earlier[stage] / ADAPTER
        if folder.is_dir() or self.expert is None:
            return folder
        panel = read_panel(self.earlier[stage] / PANEL_FOLDER)
        name = next((name for name in self.called_in(stage, self.expert) if name in panel), None)
        if name is None:
            raise PanelError(
                f"{stage!r} has no policy of expert {self.expert!r}, which was not there yet (experts: "
                f"{', '.join(panel.names)})"
            )
        return expert_folder(self.earlier[stage] / PANEL_FOLDER, name)

    def called_in(self, stage: str, expert: str) -> tuple[str, ...]:
        """What an expert of the panel before this stage was called after an earlier one (orchestra/config/experts.py);
        of the untrained base's evaluation, before there was any, nothing."""
        return called_in(self.recipe.before(self.stage.name), expert, stage)

    @property
    def start(self) -> Start | None:
        """The adapter that this stage starts from; None is a new one on the base.

        Raises:
            PanelError: the expert that a new one starts from is not in the panel.
            UserError: what a new one starts from, or is like, is said of one that is there.
        """
        if self.expert is None:
            return None if self.parent is None else Start(self.parent, self.adapter_of(self.parent))
        panel, folder = self.before
        for key in ("from", "lora") if self.expert in panel else ():
            if getattr(self.stage, key) is not None:
                raise UserError(f"{key}: only of a new expert; {self.expert!r} is there already, from {self.panel!r}")
        start = self.expert if self.expert in panel else self.stage.starts_from
        if start == BASE:
            return None
        panel.expert(start)
        return Start(f"{self.panel}/{start}", expert_folder(folder, start))

    @property
    def start_name(self) -> str:
        """What the policy is called that this stage starts from."""
        start = self.start
        return BASE if start is None else start.name

    @property
    def before(self) -> tuple[Panel, Path]:
        """The panel that this stage takes up, checked against its files, and its folder; an empty one where there is
        none before it. Raises PanelError, also where the panel is of another base."""
        if self.panel is None:
            return Panel(self.recipe.model.base, ""), self.folder
        folder, own = self.earlier[self.panel] / PANEL_FOLDER, self.recipe.model.base
        panel = read_panel(folder)
        if panel.base != own:
            raise PanelError(
                f"the panel in {folder} is one on {panel.base!r}, and model.base is {own!r}: experts work on their own "
                "base only"
            )
        return panel, folder

    def result_of(self, stage: str) -> StageResult:
        """What an earlier stage had to say."""
        from orchestra.run.ledger import StageResult

        return StageResult.from_json(json.loads((self.earlier[stage] / "result.json").read_text(encoding="utf-8")))

    def result(self, **extra: float | str) -> StageResult:
        """A result of this stage that has nothing but `extra` yet."""
        from orchestra.run.ledger import StageResult

        return StageResult(name=self.stage.name, kind=self.stage.kind, extra=extra)
