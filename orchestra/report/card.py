"""The model card of an export: what the run measured, and how to load the files. Nothing else is claimed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, StrictUndefined

from evals.evaluate import Evaluation, Pass
from evals.statistics import PairedDifference
from models.hub import readme_of
from models.paths import hub_model
from orchestra.config.faults import RecipeError
from orchestra.config.recipe import Recipe
from orchestra.config.words import is_local
from orchestra.config.yamlfile import parse
from orchestra.report.data import RunRecord, StageRecord, compared
from orchestra.run.folder import LIBRARIES
from orchestra.text import FILTERS, p_value, points
from orchestra.work.exported import ADAPTERS, ExportRecord
from rewards.domain import get_domain
from settings import Refers
from settings.hub import MAIN, HubName, Kind

TEMPLATE = Path(__file__).parent / "templates" / "card.md.j2"
EXAMPLE = "What is 12 - 5?"


@dataclass(frozen=True)
class Licence:
    """As a card says it; all None where that is not known here."""

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None

    def __str__(self) -> str:
        name = self.license_name or self.license or ""
        return f"[{name}]({self.license_link})" if self.license_link and name else name


@dataclass(frozen=True)
class Source:
    """Data or a model that the run drew on."""

    name: str
    use: str
    licence: Licence
    on_hub: bool


@dataclass
class Licences:
    """Of what a run drew on, looked up once.

    Fields:
        known: name -> what was found; what was not is looked for again.
    """

    known: dict[str, dict[str, str]] = field(default_factory=dict)

    def of(self, kind: Kind, name: str) -> Licence:
        """What the card of a model or data set says of its licence."""
        key = f"{kind} {name}"
        if key not in self.known:
            found = _front_matter(readme_of(kind, name) or "", name)
            said = {one.name: found[one.name] for one in fields(Licence) if found.get(one.name)}
            if said:
                self.known[key] = {
                    word: ", ".join(map(str, value)) if isinstance(value, list) else str(value)
                    for word, value in said.items()
                }
        return Licence(**self.known.get(key, {}))


def _front_matter(text: str, name: str) -> Mapping[str, object]:
    found = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    try:
        value = parse(found[1], name) if found else None
    except RecipeError:  # not YAML
        value = None
    return value if isinstance(value, Mapping) else {}


def card(run: RunRecord, recipe: Recipe, export: ExportRecord, repo: str, branch: str, licences: Licences) -> str:
    """README.md of an export.

    Args:
        recipe: of the run, with the base as it was trained.
        repo, branch: from where the files will be loaded.
    """
    (policy,) = export.policies
    upto = run.stages[: 1 + next(i for i, stage in enumerate(run.stages) if stage.name == policy)]
    own = upto[-1]
    base = hub_model(export.base)
    licence = licences.of("model", export.base)
    sources = list(_sources(recipe, upto, licences))
    trained = dict.fromkeys(stage.kind for stage in upto if stage.gives("policy"))
    data = ModelCardData(
        model_name=repo.rpartition("/")[2],
        base_model=base.repo if base is not None else None,
        datasets=sorted({one.name for one in sources if one.on_hub}) or None,
        library_name="transformers" if export.merged is not None else "peft",
        **asdict(licence),
        pipeline_tag="text-generation",
        tags=["lora", *trained, recipe.problems.domain, "orchestra-rl"],
        eval_results=list(_results(recipe, own)),
    )
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= FILTERS
    domain = get_domain(recipe.problems.domain)
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        run=run,
        recipe=recipe,
        export=export,
        repo=repo,
        branch="" if branch == MAIN else branch,
        base=base,
        policy=policy,
        rank=_rank(recipe, own),
        licence=licence,
        adapters=ADAPTERS,
        rows=list(_rows(upto)),
        own=own,
        interval=interval,
        change=change,
        sources=sources,
        messages=[dict(one) for one in domain.format(recipe.problems.format).messages(EXAMPLE)],
        versions={name: run.ran_on[name] for name in ("python", *LIBRARIES) if name in run.ran_on},
        longest=recipe.evaluate.max_completion_tokens or recipe.rollouts.max_completion_tokens,
    )
    return f"---\n{data.to_yaml()}\n---\n\n{text}"


def _rank(recipe: Recipe, stage: StageRecord) -> int:
    """Of a stage's adapter: what a merge says, or what it was made with."""
    said = stage.result.extra.get("rank") if stage.result is not None else None
    return int(said) if said is not None else recipe.stage(stage.name).adapter(recipe).rank


@dataclass(frozen=True)
class Row:
    """A stage of the card's table; the differences are paired by problem, to the evaluated stage before, and `left_out`
    counts what it was not to train on."""

    stage: StageRecord
    sampled: Pass | None
    greedy: Pass | None
    difference: PairedDifference | None
    greedy_difference: PairedDifference | None
    reference: str
    left_out: int


def _rows(stages: Sequence[StageRecord]) -> Iterator[Row]:
    before: StageRecord | None = None
    for stage in stages:
        evaluation = stage.evaluation
        sampled, greedy = _difference(stage, before, "sampled"), _difference(stage, before, "greedy")
        trains = stage.result is not None and (stage.gives("traces") or stage.gives("policy"))
        left_out = stage.result.extra.get("left_out", 0) if trains else 0
        reference = str(stage.config.get("reference", "")) if stage.beta is not None else ""
        passes = (None, None) if evaluation is None else (evaluation.sampled, evaluation.greedy)
        yield Row(stage, *passes, sampled, greedy, reference, int(left_out))
        before = stage if evaluation is not None else before


def _difference(
    after: StageRecord, before: StageRecord | None, of: Literal["sampled", "greedy"]
) -> PairedDifference | None:
    return None if before is None or after.evaluation is None else compared(after, before, of)


def interval(one: Pass | None) -> str:
    """`52.0 [48.8, 55.3]`, in per cent."""
    if one is None:
        return ""
    found = one.accuracy
    return f"{100 * found.estimate:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def change(one: PairedDifference | None) -> str:
    """`+7.1 [+5.2, +9.0], p < 0.001`, in points."""
    if one is None:
        return ""
    return f"{points(one.difference)} [{points(one.low)}, {points(one.high)}], {p_value(one.p_value)}"


def _results(recipe: Recipe, stage: StageRecord) -> Iterator[EvalResult]:
    """What the Hub shows beside the card."""
    evaluation: Evaluation | None = stage.evaluation
    if evaluation is None:
        return
    test = _hub_data(recipe, recipe.problems.test)
    for name, one in (("sampled", evaluation.sampled), ("greedy", evaluation.greedy)):
        if one is None:
            continue
        args: Mapping[str, object] = {
            "temperature": one.temperature, "samples": len(one.correct[0]), "problems": len(one.correct),
            "low": round(one.accuracy.low, 4), "high": round(one.accuracy.high, 4),
            "confidence": one.accuracy.confidence,
        }  # fmt: skip
        yield EvalResult(
            task_type="text-generation",
            dataset_type=test.repo if test is not None else "local",
            dataset_name=test.repo if test is not None else Path(recipe.problems.test).name,
            dataset_config=test.config if test is not None else None,
            dataset_revision=test.revision if test is not None else None,
            dataset_split="test",
            metric_type="accuracy",
            metric_name=f"accuracy ({name})",
            metric_value=round(one.accuracy.estimate, 4),
            metric_args=dict(args),
        )


def _sources(recipe: Recipe, stages: Sequence[StageRecord], licences: Licences) -> Iterator[Source]:
    for name, use in ((recipe.problems.train, "training"), (recipe.problems.test, "held out")):
        hub = _hub_data(recipe, name)
        licence = licences.of("dataset", name) if hub is not None else Licence()
        yield Source(hub.repo if hub is not None else Path(name).name, f"problems, {use}", licence, hub is not None)
    names = {stage.name for stage in stages}
    for stage in recipe.stages:
        if stage.name in names:
            for model in stage.other_models():
                hub_name = hub_model(model)
                name = hub_name.repo if hub_name is not None else model
                yield Source(name, f"teacher of stage {stage.name}", licences.of("model", model), False)


def _hub_data(recipe: Recipe, source: str) -> HubName | None:
    if source in get_domain(recipe.problems.domain).sources or is_local(source, Refers("problems")):
        return None
    return HubName.parse(source)
