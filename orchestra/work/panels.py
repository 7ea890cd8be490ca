"""What stages do with a panel: an expert that was trained takes its place, and the panel is evaluated."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from evals.evaluate import Evaluation, compare
from models.base import base_sha256, free_memory, load_base
from models.engines.routed import RoutedEngine, panel_model
from models.experts import (
    BASE,
    Expert,
    Lineage,
    Panel,
    PanelError,
    Record,
    expert_folder,
    expert_of,
    must_be_untouched,
    read_panel,
    write_panel,
)
from models.structure import structure_in
from orchestra.config.experts import EACH
from orchestra.config.stage import ROUTES
from orchestra.run.ledger import StageResult, write_json
from orchestra.work.context import ADAPTER, PANEL_FOLDER, StageContext
from orchestra.work.domains import domain_table, expert_name
from orchestra.work.policies import EVALUATION, answered, measured
from orchestra.work.settings import EXPERTS, PERPLEXITY

if TYPE_CHECKING:
    from pathlib import Path

    from peft import PeftModel
    from transformers import PreTrainedModel

    from evals.statistics import PairedDifference

RESULT = "result.json"


def in_panel(
    context: StageContext, result: StageResult, data: tuple[str, ...], domains: tuple[str, ...] = ()
) -> StageResult:
    """The expert that this stage has trained takes its place in the panel, in which nothing else changes.

    Args:
        data: what it was trained on; domains: of its problems, none where it is for all.
    """
    adapter = context.folder / ADAPTER
    trained = {context.expert: (adapter, expert_after(context, result, data, domains, adapter))}
    panel = context.once(lambda: _written(context, trained, result))
    return replace(result, extra=result.extra | built(context, panel))


def built(context: StageContext, panel: Panel) -> dict[str, float | str]:
    """What a stage's result says of the panel that it has written: the number of its experts, its base, what it is
    built of (models/structure.py), and the first of the panels it came from that was built of the same; "" where none
    was."""
    structure = structure_in(context.folder / PANEL_FOLDER)
    since, earlier = "", context.panel
    while earlier is not None:
        if structure_in(context.earlier[earlier] / PANEL_FOLDER) == structure:
            since = earlier
        earlier = context.recipe.panel_of(earlier)
    return {
        "experts": len(panel.experts),
        "panel_base": panel.base,
        "structure": structure,
        "structure_since": since,
    }


def one_each(
    context: StageContext,
    domains: Sequence[str],
    data: tuple[str, ...],
    train: Callable[[StageContext, str], StageResult],
) -> StageResult:
    """An expert for each domain, one after the other, each in a folder of its own; what a killed run has finished of
    them is not done again. Then the panel is evaluated, each problem answered by its domain's expert.

    Args:
        train: trains one and measures it, given its part of the stage and its domain.
    """
    if len(domains) == 1 and context.stage.domains is None:
        context.progress.say(f"    all of the data is of one domain, {domains[0]!r}: one expert")
    experts = {domain: expert_name(domain) for domain in domains}
    parts = {domain: context.of_expert(name, context.folder / EACH / name) for domain, name in experts.items()}
    for own in parts.values():
        _ = own.start  # what it cannot start from is told before the first one is trained
    trained: dict[str, tuple[Path, Expert]] = {}
    results: dict[str, StageResult] = {}
    for domain, own in parts.items():
        name = own.expert
        results[name] = trained_once(own, lambda own=own, domain=domain: train(own, domain))
        adapter = own.folder / ADAPTER
        trained[name] = (adapter, expert_after(own, results[name], data, (domain,), adapter))
    any_result = next(iter(results.values()))
    panel = context.once(lambda: _written(context, trained, any_result))
    context.once(lambda: _join_metrics(context.folder, list(results)))
    context.once(lambda: write_json(context.folder / EXPERTS, _told(context.folder, results)))
    asked = context.resources.test(context.stage)
    table = (domain_table(panel, {problem.domain for problem in asked.problems}) or {}) | experts
    routes = [table.get(problem.domain, BASE) for problem in asked.problems]
    evaluation = evaluated_routed(context, panel, context.folder / PANEL_FOLDER, routes)
    told = {f"accuracy_{name}": result.accuracy for name, result in results.items()}
    result = context.result(base_sha256=any_result.extra["base_sha256"], **built(context, panel), **told)
    result = replace(
        result,
        steps=sum(one.steps for one in results.values()),
        tokens=sum(one.tokens for one in results.values()),
        beta=any_result.beta,
    )
    return measured(context, evaluation, result)


def evaluated_routed(context: StageContext, panel: Panel, folder: Path, routes: Sequence[str]) -> Evaluation:
    """Evaluate a panel on the stage's held-out problems, each answered by the expert that it is routed to, and write
    evaluation.json and routes.json."""
    asked = context.resources.test(context.stage)
    places = places_of(panel, folder)
    engine = routed_engine(context, on_base(context, panel, places), places, routes)
    evaluation = answered(context, asked, "evaluate the panel", engine=engine)
    context.once(lambda: (context.folder / EVALUATION).write_text(evaluation.to_json()))
    context.once(lambda: write_json(context.folder / ROUTES, list(routes)))
    return evaluation


def places_of(panel: Panel, folder: Path) -> dict[str, Path]:
    """Where each expert of a panel lies, in the panel's order."""
    return {name: expert_folder(folder, name) for name in panel.names}


@dataclass(frozen=True)
class RoutedPanel:
    """A panel as the stage that gave it evaluated it: what it did, and who answered each problem."""

    evaluation: Evaluation
    routes: tuple[str, ...]

    @classmethod
    def before(cls, context: StageContext) -> RoutedPanel:
        """Of the panel that a stage takes up.

        Raises:
            PanelError: the panel was not evaluated, or not routed.
        """
        folder = context.earlier[context.panel]
        for file in (EVALUATION, ROUTES):
            if not (folder / file).is_file():
                raise PanelError(
                    f"stage {context.panel!r} has not evaluated its panel routed ({folder / file} is missing); put a "
                    "stage behind it that does"
                )
        evaluation = Evaluation.read(folder / EVALUATION)
        return cls(evaluation, tuple(json.loads((folder / ROUTES).read_text(encoding="utf-8"))))

    @property
    def load(self) -> Mapping[str, float]:
        """Share of the problems by who answered, the base included."""
        return {name: count / len(self.routes) for name, count in sorted(Counter(self.routes).items())}

    def compared(self, other: Evaluation, context: StageContext) -> PairedDifference:
        """The routed panel's accuracy less another's on the same problems, paired.

        Raises:
            PanelError: they were not the same.
        """
        try:
            return compare(self.evaluation, other, seed=context.recipe.seed)
        except ValueError as error:
            raise PanelError(f"stage {context.panel!r} was evaluated on other problems than this one") from error


def panel_base(context: StageContext, panel: Panel) -> tuple[PreTrainedModel, str]:
    """The base of a panel, freshly loaded, and its hash, which is the one that the experts were trained on.

    Raises:
        PanelError: it is another.
    """
    own = context.recipe.model
    free_memory()
    base = load_base(own.base, own.quantize, own.dtype)
    sha256 = base_sha256(base)
    _must_be_on(context, panel, sha256)
    return base, sha256


def _must_be_on(context: StageContext, panel: Panel, sha256: str) -> None:
    if panel.base_sha256 not in ("", sha256):
        before, own = f"the panel before stage {context.stage.name!r}", context.recipe.model.base
        raise PanelError(f"{before} is of another base than {own!r} as it is now")


def on_base(context: StageContext, panel: Panel, places: Mapping[str, Path]) -> PeftModel:
    """The base with the experts of a panel on it, by name the folder of each.

    Raises:
        PanelError: the panel is of another base.
    """
    return panel_model(panel_base(context, panel)[0], places)


def routed_engine(
    context: StageContext, model: PeftModel, places: Mapping[str, Path], routes: Sequence[str]
) -> RoutedEngine:
    """The run's engine, each prompt of a list answered by its expert."""
    return RoutedEngine(context.resources.engine(), context.resources.served(), model, routes, places)


def trained_once(own: StageContext, train: Callable[[], StageResult]) -> StageResult:
    """One expert's training, or what a run that was killed later had to say of it."""
    done = own.folder / RESULT
    if own.once(done.is_file):
        result = StageResult.from_json(json.loads(done.read_text(encoding="utf-8")))
    else:
        own.progress.say(f"    {own.part}:")
        own.once(lambda: own.folder.mkdir(parents=True, exist_ok=True))
        result = train()
        own.once(lambda: write_json(done, result.to_json()))
    own.once(lambda: shutil.rmtree(own.folder / "checkpoints", ignore_errors=True))
    return result


def expert_after(
    context: StageContext, result: StageResult, data: tuple[str, ...], domains: tuple[str, ...], adapter: Path
) -> Expert:
    """What the panel says of an expert that was just trained. One that goes on stays that of its domains, where it is
    given no other, and the child of what it was first made from."""
    before, _ = context.before
    old = before.expert(context.expert) if context.expert in before else None
    parent = old.lineage.parent if old is not None else context.start_name.rpartition("/")[2]
    record = None
    if result.accuracy is not None:
        source, _ = context.stage.held_out(context.recipe)
        problems = len(context.resources.test(context.stage).problems)
        record = Record(result.accuracy, result.low, result.high, problems, source)
    domains = domains or (old.domains if old is not None else ())
    return expert_of(adapter, context.expert, domains, Lineage(context.called, data, parent), record)


def _written(context: StageContext, trained: Mapping[str, tuple[Path, Expert]], result: StageResult) -> Panel:
    """The panel before this stage with what it has trained, written into the stage's folder; every other expert is what
    it was, byte for byte, which is checked."""
    before, folder = context.before
    sha256 = str(result.extra["base_sha256"])
    _must_be_on(context, before, sha256)
    if before.router is not None:
        context.progress.say("    the panel's router does not know what is trained here; a route stage decides anew")
    panel = replace(before.without_costs(), base_sha256=sha256, router=None, change="", before=None)
    sources = places_of(before, folder)
    for name, (adapter, expert) in trained.items():
        panel, sources[name] = panel.with_expert(expert), adapter
    own = context.folder / PANEL_FOLDER
    shutil.rmtree(own, ignore_errors=True)  # of a run that was killed
    write_panel(own, panel, sources)
    must_be_untouched(before, read_panel(own), but=tuple(trained))
    return panel


def _told(folder: Path, results: Mapping[str, StageResult]) -> dict[str, dict[str, object]]:
    """What each expert did on all held-out problems, and how likely it finds texts, as far as that was measured."""
    told: dict[str, dict[str, object]] = {}
    for name, one in results.items():
        path = folder / EACH / name / PERPLEXITY
        modelled = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        told[name] = {
            "accuracy": one.accuracy,
            "low": one.low,
            "high": one.high,
            "base_difference": one.base_difference,
            "base_p_value": one.base_p_value,
            "modelled": modelled,
        }
    return told


def _join_metrics(folder: Path, names: Sequence[str]) -> None:
    """The experts' metrics behind one another, steps counted on, each line with its expert's name."""
    lines, offset = [], 0
    for name in names:
        own = [json.loads(line) for line in (folder / EACH / name / "metrics.jsonl").read_text().splitlines()]
        lines += [line | {"step": line["step"] + offset, "expert": name} for line in own]
        offset += max((line["step"] for line in own), default=0)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
