"""What a route stage does: it learns which arm of a panel solves which problem, and measures what that wins."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from evals.evaluate import Evaluation
from evals.panel import Draws, PanelEvaluation, evaluate_panel
from evals.removal import RemovalCost, removal_cost
from models.experts import Panel, Record, RemovalRecord, read_panel, write_panel
from models.features import layer_of, prompt_features
from models.router import CONFIG, TENSORS, Router, Routes
from orchestra.config.faults import UserError
from orchestra.run.ledger import StageResult
from orchestra.text import removal_line
from orchestra.work.arms import Arms, correct_APS, solved_AP
from orchestra.work.context import PANEL_FOLDER, StageContext
from orchestra.work.domains import domain_table
from orchestra.work.panels import built, evaluated_routed, places_of
from orchestra.work.policies import EVALUATION, measured
from orchestra.work.resources import stage_seed
from orchestra.work.settings import LOAD, PANEL_EVALUATION, SCORED, RouteSettings
from rewards.problems import Asked
from settings.files import sha256_of
from sft.distill import TRACES, read_traces

if TYPE_CHECKING:
    from peft import PeftModel

ROUTER = "router"


@dataclass(frozen=True)
class Routed:
    """Problems with their routes.

    Fields:
        features_PH: of the prompts; seconds: that reading them and routing took.
    """

    asked: Asked
    features_PH: np.ndarray
    routes: Routes
    seconds: float

    def experts(self, names: Sequence[str]) -> list[str]:
        """The name of each problem's arm."""
        return [names[arm] for arm in self.routes.arm_P]


def route(context: StageContext, settings: RouteSettings) -> StageResult:
    """Train the panel's router, evaluate the panel, and hand both on."""
    panel, folder = context.before
    if not panel.experts:
        raise UserError("there is no panel to route in: an earlier sft or grpo stage must train an `expert`")
    arms = Arms.of(context, panel, places_of(panel, folder))
    asked = context.resources.train()
    asked = asked.part(sorted(fresh_first(context, asked)[: settings.problems]))
    if len(asked.problems) < settings.problems:
        context.progress.say(f"    learns from {len(asked.problems):,} problems: there are no {settings.problems:,}")
    answers = arms.ask(asked, "learn", settings.samples, stage_seed(context.recipe, f"{context.called}/learn"))
    features_PH = features(context, arms.model, asked, settings.layer)
    layer = layer_of(arms.model, settings.layer)
    solved = solved_AP(answers, arms.names)
    router = context.once(lambda: Router.fit(features_PH, solved, arms.names, settings, context.seed, layer=layer))
    generalist = _generalist(context, settings.generalist)
    return finished(context, panel, arms, router, settings.oracle_samples, generalist)[0]


def finished(
    context: StageContext, panel: Panel, arms: Arms, router: Router, oracle_samples: int,
    generalist: Evaluation | None = None,
) -> tuple[StageResult, Evaluation, Held]:  # fmt: skip
    """Measure a panel with its router on held-out problems, and hand both on.

    Args:
        oracle_samples: completions of each arm by which oracles choose.
        generalist: a rival's evaluation on the same problems.
    """
    held = ask_held_out(arms, context.resources.test(context.stage), oracle_samples)
    routed = routes_of(context, arms.model, router, held.asked)
    found, costs = _measured(panel, arms, router, held, routed, generalist)
    panel = context.once(lambda: _written(context, panel, arms, router, held, costs))
    evaluation = evaluated_routed(context, panel, context.folder / PANEL_FOLDER, routed.experts(arms.names))
    context.once(lambda: (context.folder / PANEL_EVALUATION).write_text(found.to_json()))
    for line in (*_said(found, routed, evaluation), *(removal_line(one.name, one.cost) for one in panel.experts)):
        context.progress.say(f"    {line}")
    result = context.result(**_numbers(found, routed, evaluation), **built(context, panel))
    result = replace(result, tokens=arms.tokens)
    return measured(context, evaluation, result), evaluation, held


@dataclass(frozen=True)
class Held:
    """Held-out problems, and what every arm answered them in two independent draws."""

    asked: Asked
    first: Mapping[str, Evaluation]
    second: Mapping[str, Evaluation]


def ask_held_out(arms: Arms, asked: Asked, oracle_samples: int) -> Held:
    """Ask every arm twice: once to choose by, and once as every evaluation asks, to score."""
    context, recipe = arms.context, arms.context.recipe
    first = arms.ask(asked, "first", oracle_samples, stage_seed(recipe, f"{context.called}/first"))
    return Held(asked, first, arms.ask(asked, SCORED, context.stage.evaluation(recipe).samples, recipe.seed))


def _measured(
    panel: Panel, arms: Arms, router: Router, held: Held, routed: Routed, generalist: Evaluation | None
) -> tuple[PanelEvaluation, list[RemovalCost]]:
    """What the router wins, and what the loss of each expert would cost."""
    recipe = arms.context.recipe
    confidence = recipe.evaluate.confidence
    domains = tuple(problem.domain for problem in held.asked.problems)
    first_APS, second_APS = (correct_APS(draw, arms.names) for draw in (held.first, held.second))
    rival_PS = None if generalist is None else _rows(generalist, held.asked)
    arm_P = routed.routes.arm_P
    found = evaluate_panel(
        Draws(arms.names, domains, first_APS, second_APS, rival_PS), arm_P, routed.routes.shares_PA, confidence,
        table=domain_table(panel, domains), seed=recipe.seed,
    )  # fmt: skip
    chance_PA = router.probabilities(routed.features_PH)
    costs = [
        removal_cost(
            name, arms.names, second_APS, chance_PA, arm_P, threshold=router.threshold, confidence=confidence,
            seed=recipe.seed,
        )
        for name in panel.names
    ]  # fmt: skip
    return found, costs


def fresh_first(context: StageContext, asked: Asked) -> list[int]:
    """Training problems by chance, those first of which the fewest stages before have traces: of its own traces'
    problems an expert may know the answers by heart."""
    files = [folder / TRACES for folder in context.earlier.values() if (folder / TRACES).is_file()]
    imitated = Counter(id for file in files for id in {trace.problem_id for trace in read_traces(file)})
    order = np.random.default_rng(context.seed).permutation(len(asked.problems)).tolist()
    return sorted(order, key=lambda at: imitated[asked.problems[at].id])


def features(context: StageContext, model: PeftModel, asked: Asked, layer: int | None) -> np.ndarray:
    """Problems x hidden: the frozen base's view of the prompts (models/features.py). Of one process, so that no two
    of them, whose arithmetic may round differently, go different ways by it."""
    pad = context.resources.tokenizer().pad_token_id
    return context.once(lambda: prompt_features(model, asked.tokens, layer, pad_token_id=0 if pad is None else pad))


def routes_of(context: StageContext, model: PeftModel, router: Router, asked: Asked) -> Routed:
    """Who answers which of these problems."""
    start = time.perf_counter()
    features_PH = features(context, model, asked, router.layer)
    return Routed(asked, features_PH, router.route(features_PH), time.perf_counter() - start)


def _generalist(context: StageContext, name: str | None) -> Evaluation | None:
    if name is None:
        return None
    return Evaluation.read(context.earlier[name] / EVALUATION)


def _rows(found: Evaluation, asked: Asked) -> np.ndarray:
    """A rival's answers in the order of these problems. Raises UserError where it was asked others."""
    at = {id: row for row, id in enumerate(found.problem_ids)}
    ids = [problem.id for problem in asked.problems]
    if set(ids) != at.keys():
        raise UserError("generalist: its stage was evaluated on other problems than this one is")
    return found.sampled.correct_PS[[at[id] for id in ids]]


def _written(
    context: StageContext, panel: Panel, arms: Arms, router: Router, held: Held, costs: Sequence[RemovalCost]
) -> Panel:
    """The panel with its router, and with what each expert was just measured at and its removal would cost."""
    place = context.folder / ROUTER
    place.mkdir(exist_ok=True)
    router.write(place)
    source, _ = context.stage.held_out(context.recipe)
    experts = tuple(
        replace(one, record=_record(held.second[one.name], source), cost=_removal(cost))
        for one, cost in zip(panel.experts, costs, strict=True)
    )
    files = {name: sha256_of(place / name) for name in (CONFIG, TENSORS)}
    panel = replace(panel, experts=experts, router=files, change="", before=None)
    target = context.folder / PANEL_FOLDER
    shutil.rmtree(target, ignore_errors=True)  # of a run that was killed
    write_panel(target, panel, arms.places, place)
    return read_panel(target)


def _record(evaluation: Evaluation, source: str) -> Record:
    one = evaluation.sampled.accuracy
    return Record(one.estimate, one.low, one.high, len(evaluation.problem_ids), source)


def _removal(cost: RemovalCost) -> RemovalRecord:
    one = cost.difference
    return RemovalRecord(cost.load, one.difference, one.low, one.high)


def _said(found: PanelEvaluation, routed: Routed, evaluation: Evaluation) -> Iterator[str]:
    from orchestra.report.panel import said

    yield said(found)
    yield (
        f"routing took {routed.seconds:.2f} s, {_share(routed, evaluation):.1%} of the evaluation; effective arms "
        f"{found.effective_experts:.2f} of {len(found.arms)}, load "
        + ", ".join(f"{arm.name} {arm.load:.0%}" for arm in found.arms)
    )


def _share(routed: Routed, evaluation: Evaluation) -> float:
    """Of the time that the panel's evaluation took."""
    passes = [one for one in (evaluation.sampled, evaluation.greedy) if one is not None]
    return routed.seconds / (routed.seconds + sum(one.seconds for one in passes))


def _numbers(found: PanelEvaluation, routed: Routed, evaluation: Evaluation) -> dict[str, float]:
    told: dict[str, float] = {
        way.choice.replace(" ", "_"): way.accuracy.estimate for way in found.ways if way.choice != "routed"
    }
    told |= {f"{LOAD}{arm.name}": arm.load for arm in found.arms}
    single = found.way("best single").routed_minus
    told |= {
        "over_best_single": single.difference,
        "over_best_single_low": single.low,
        "over_best_single_high": single.high,
        "oracle_gap": found.gap.difference,
        "oracle_gap_low": found.gap.low,
        "oracle_gap_high": found.gap.high,
        "routing_entropy": found.entropy,
        "effective_experts": found.effective_experts,
        "routing_seconds": routed.seconds,
        "routing_time_share": _share(routed, evaluation),
        # on a CPU 0: a completion is that of its expert asked alone
        "answered_otherwise": _otherwise(found, evaluation),
    }
    if found.recovered.share is not None:
        told["oracle_recovered"] = found.recovered.share
    return told


def _otherwise(found: PanelEvaluation, evaluation: Evaluation) -> float:
    """How far the panel as it was served is from its experts asked one by one, in accuracy."""
    return abs(evaluation.sampled.accuracy.estimate - found.way("routed").accuracy.estimate)
