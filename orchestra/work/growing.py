"""What a grow stage does: windows of problems are looked at, and by them experts come and go.

An expert that comes is trained on its domain's traces while nothing else changes: the old experts' files, the router's
old rows and what the old experts answer are the same before and after, which is checked. It stays where the routed
panel gains on problems that nobody has trained on. What a killed run has asked and trained is not done again, so a
run that goes on decides as the first one did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from evals.audit import LabelAudit
from evals.evaluate import Evaluation
from evals.panel import answers_of
from evals.removal import removal_cost
from evals.statistics import PairedDifference, paired_difference
from models.expert_files import must_be_files
from models.experts import BASE, Panel, PanelError, must_be_untouched
from models.features import layer_of
from models.population import Decision, Window, decide
from models.router import Router
from models.settings import RESERVED_EXPERTS
from models.structure import structure_of
from orchestra.config.faults import UserError
from orchestra.run.ledger import StageResult, write_json
from orchestra.text import points
from orchestra.work.arms import Arms, correct_APS, solved_AP
from orchestra.work.context import ADAPTER, StageContext
from orchestra.work.controller import Learned, Signals, audited, head_of, labels_of
from orchestra.work.domains import domain_by_problem, expert_name, traces_in
from orchestra.work.imitating import imitated
from orchestra.work.panels import expert_after, places_of, trained_once
from orchestra.work.resources import stage_seed
from orchestra.work.routing import Held, features, finished, fresh_first, routes_of
from orchestra.work.settings import GROWTH, SCORED
from orchestra.work.traces import traces_of
from settings import FrozenDict

if TYPE_CHECKING:
    from orchestra.config.imitating import GrowingStage
    from rewards.problems import Asked
    from sft.distill import Trace

GROWN = "grown"


@dataclass(frozen=True)
class Change:
    """One thing that was tried.

    Fields:
        window: how many windows had been seen.
        domain: that the expert is for, in words.
        kept: whether it was done; a new expert that gains nothing is not.
        difference: routed accuracy after minus before on the problems set aside; of a removal, as predicted.
    """

    window: int
    action: str
    expert: str
    domain: str
    reason: str
    kept: bool
    difference: PairedDifference


@dataclass
class Growth:
    """A panel as it grows, and what was seen and done.

    Fields:
        barren: domains without traces.
        trained: what each new expert's training had to say, whether it was kept or not.
    """

    panel: Panel
    router: Router
    arms: Arms
    seen: list[Window] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    trained: list[StageResult] = field(default_factory=list)
    barren: frozenset[str] = frozenset()

    @property
    def given_up(self) -> frozenset[str]:
        """Domains that get no further expert: one has gained nothing, or there are no traces."""
        return self.barren | {one.domain for one in self.changes if one.action == "grow" and not one.kept}

    @property
    def needed(self) -> frozenset[str]:
        """Experts whose removal would have cost this panel too much; of an earlier one it says nothing."""
        since = [one for one in self.changes if one.window > max((c.window for c in self.changes if c.kept), default=0)]
        return frozenset(one.expert for one in since if one.action == "prune")

    @property
    def structure(self) -> str:
        """What it is built of."""
        return structure_of(self.panel, self.arms.places, self.router.names)


@dataclass(frozen=True)
class Problems:
    """Training problems, none of them twice: to learn from, to prove changes on, and those of each window.

    Fields:
        learn_PH: features of those to learn from.
    """

    learn: Asked
    learn_PH: np.ndarray
    gain: Asked
    windows: tuple[Asked, ...]


def grow(context: StageContext, stage: GrowingStage) -> StageResult:
    """Let the panel grow, and measure what became of it."""
    panel, folder = context.before
    if not panel.experts:
        raise UserError("there is no panel to grow: an earlier sft or grpo stage must train an `expert`")
    arms = Arms.of(context, panel, places_of(panel, folder))
    problems = _problems(context, stage, arms)
    solved = _learned(arms, problems, stage)
    layer = layer_of(arms.model, stage.router.layer)
    found, controller = None, Signals(context, stage.samples)
    if stage.controller == "learned":
        labels = labels_of(solved, stage, context.seed)
        found = context.once(lambda: audited(problems.learn_PH, labels, stage, context.seed))
        context.progress.say(f"    label audit: {found.reason}")
        if found.verdict != "GO":
            return _stopped(context, found, arms.tokens)
        head = context.once(lambda: head_of(problems.learn_PH, labels, stage, context.seed, layer))
        controller = Learned(context, head)
    router = context.once(
        lambda: Router.fit(problems.learn_PH, solved, arms.names, stage.router, context.seed, layer=layer)
    )
    barren = _barren(context, stage, problems.windows)
    growth, before = Growth(panel, router, arms, barren=barren), Growth(panel, router, arms)
    for number, asked in enumerate(problems.windows):
        growth.seen.append(controller.look(growth.arms, growth.router, asked, number))
        decision = decide(
            growth.seen, [one.window for one in growth.changes], growth.panel.names, stage.growth, growth.given_up,
            growth.needed,
        )  # fmt: skip
        context.progress.say(f"    window {number + 1} of {stage.rounds}: {decision.action}: {decision.reason}")
        if decision.action == "grow":
            _grown(context, stage, growth, decision, problems)
        elif decision.action == "prune":
            _pruned(context, stage, growth, decision, problems.gain)
    return _finished(context, stage, growth, before, found)


def _problems(context: StageContext, stage: GrowingStage, arms: Arms) -> Problems:
    asked = context.resources.train()
    order = fresh_first(context, asked)
    needed = stage.learn + stage.gain + stage.rounds * stage.window
    if needed > len(order):
        raise UserError(
            f"learn {stage.learn} + gain {stage.gain} + rounds {stage.rounds} x window {stage.window} are {needed} "
            f"training problems, each once, and there are {len(order)}; ask for fewer, or raise problems.train_limit"
        )
    # where fresh ones are too few, every part has its share of the others, which are easier
    chosen = np.random.default_rng(context.seed).permutation(order[:needed])
    edges = np.cumsum([stage.learn, stage.gain, *[stage.window] * (stage.rounds - 1)])
    learn, gain, *windows = (asked.part(np.sort(part).tolist()) for part in np.split(chosen, edges))
    return Problems(learn, features(context, arms.model, learn, stage.router.layer), gain, tuple(windows))


def _barren(context: StageContext, stage: GrowingStage, windows: Sequence[Asked]) -> frozenset[str]:
    """Domains of the windows' problems of which the data has no traces, which is said."""
    domain_of = domain_by_problem(context.resources, stage)
    there = {domain_of.get(trace.problem_id) for source in stage.data for trace in traces_of(context, source)[0]}
    found = sorted({problem.domain for asked in windows for problem in asked.problems} - there)
    if found:
        context.progress.say(
            f"    no traces in {', '.join(found)}: there no expert can be made; `data` takes more sources"
        )
    return frozenset(found)


def _learned(arms: Arms, problems: Problems, stage: GrowingStage) -> np.ndarray:
    """Arms x problems to learn from: shares solved."""
    return solved_AP(arms.ask(problems.learn, "learn", stage.samples, _seed(arms.context, "learn")), arms.names)


def _proof(arms: Arms, gain: Asked, stage: GrowingStage) -> np.ndarray:
    """Arms x problems set aside x samples."""
    return correct_APS(arms.ask(gain, "gain", stage.samples, _seed(arms.context, "gain")), arms.names)


def _seed(context: StageContext, draw: str) -> int:
    return stage_seed(context.recipe, f"{context.called}/{draw}")


def _grown(context: StageContext, stage: GrowingStage, growth: Growth, decision: Decision, problems: Problems) -> None:
    """Train the expert that is called for, and keep it if the panel gains by it."""
    name = _new_name(decision.domain, growth)
    own = context.of_expert(name, context.folder / GROWN / name)
    sources = _traces(context, stage, decision.domain)
    result = trained_once(own, lambda: imitated(own, stage, sources, 0))
    growth.trained.append(result)
    adapter = own.folder / ADAPTER
    panel = growth.panel.with_expert(expert_after(own, result, tuple(stage.data), (decision.domain,), adapter))
    arms = Arms.of(context, panel, {**growth.arms.places, name: adapter})
    solved_P = _learned(arms, problems, stage)[-1]
    router = context.once(lambda: growth.router.with_arm(name, problems.learn_PH, solved_P, stage.router, context.seed))
    _must_be_as_before(growth, panel, router, arms)
    proof_APS = _proof(arms, problems.gain, stage)
    features_PH = features(context, arms.model, problems.gain, router.layer)
    after_PS, before_PS = (answers_of(proof_APS, one.route(features_PH).arm_P) for one in (router, growth.router))
    recipe = context.recipe
    difference = paired_difference(after_PS, before_PS, recipe.evaluate.confidence, recipe.seed)
    kept = difference.low > 0
    _note(context, growth, Change(len(growth.seen), "grow", name, decision.domain, decision.reason, kept, difference))
    if kept:
        growth.panel, growth.router, growth.arms = panel, router, arms


def _pruned(context: StageContext, stage: GrowingStage, growth: Growth, decision: Decision, gain: Asked) -> None:
    """Remove the expert that is called for, if that costs little enough."""
    arms, router = growth.arms, growth.router
    features_PH = features(context, arms.model, gain, router.layer)
    cost = removal_cost(
        decision.expert, arms.names, _proof(arms, gain, stage), router.probabilities(features_PH),
        router.route(features_PH).arm_P, threshold=router.threshold, confidence=context.recipe.evaluate.confidence,
        seed=context.recipe.seed,
    )  # fmt: skip
    kept = cost.difference.low >= -stage.may_cost
    domain = ", ".join(growth.panel.expert(cost.expert).domains)
    change = Change(len(growth.seen), "prune", cost.expert, domain, decision.reason, kept, cost.difference)
    _note(context, growth, change)
    if not kept:
        return
    panel = replace(growth.panel, experts=tuple(one for one in growth.panel.experts if one.name != cost.expert))
    arms, router = Arms.of(context, panel, {n: arms.places[n] for n in panel.names}), router.without(cost.expert)
    _must_be_as_before(growth, panel, router, arms)
    growth.panel, growth.router, growth.arms = panel, router, arms


def _must_be_as_before(growth: Growth, panel: Panel, router: Router, arms: Arms) -> None:
    """What stays is the same: the experts' files, their rows in the router, and what they make of a probe, to the bit.

    Raises:
        PanelError: it is not.
    """
    must_be_untouched(growth.panel, panel, but=tuple(set(growth.panel.names) - set(panel.names)))
    left = tuple(name for name in growth.panel.names if name in panel)
    for name in left:
        must_be_files(arms.places[name], growth.panel.expert(name).files, f"expert {name!r}")
    for name in (BASE, *left):
        if growth.router.row_bytes(name) != router.row_bytes(name):
            raise PanelError(f"the router's row of {name!r} changed when another expert came or went")
        if growth.arms.probed(name) != arms.probed(name):
            raise PanelError(f"what {name!r} makes of a probe changed when another expert came or went")


def _traces(context: StageContext, stage: GrowingStage, domain: str) -> dict[str, list[Trace]]:
    found = {source: traces_of(context, source)[0] for source in stage.data}
    shares = isinstance(stage.data, FrozenDict)
    return traces_in(found, domain_by_problem(context.resources, stage), (domain,), shares=shares)


def _new_name(domain: str, growth: Growth) -> str:
    """That of the domain, with a number where it has or had an expert already, or where that is a reserved word."""
    name = expert_name(domain)
    taken = {*RESERVED_EXPERTS, *growth.panel.names, *(one.expert for one in growth.changes)}
    return next(one for one in (name, *(f"{name[:36]}-{i}" for i in range(2, 1000))) if one not in taken)


def _note(context: StageContext, growth: Growth, change: Change) -> None:
    growth.changes.append(change)
    one, done = change.difference, "kept" if change.kept else "not kept"
    if change.action == "prune":
        done = "removed" if change.kept else "not removed"
    context.progress.say(
        f"    {change.action} {change.expert}: {points(one.difference)} points [{points(one.low)}, {points(one.high)}] "
        f"on {one.n} problems set aside, {done}"
    )


def _stopped(context: StageContext, found: LabelAudit, tokens: int) -> StageResult:
    """A controller whose labels say nothing changes nothing."""
    context.once(lambda: write_json(context.folder / GROWTH, {"audit": asdict(found), "windows": [], "changes": []}))
    return replace(context.result(**_audit_numbers(found)), tokens=tokens)


def _finished(
    context: StageContext, stage: GrowingStage, growth: Growth, before: Growth, found: LabelAudit | None
) -> StageResult:
    """Measure the panel as it is now, beside the one that it was."""
    told = {
        "audit": None if found is None else asdict(found),
        "windows": [asdict(one) for one in growth.seen],
        "changes": [asdict(one) for one in growth.changes],
        "structure_start": before.structure,
        "structure_end": growth.structure,
    }
    context.once(lambda: write_json(context.folder / GROWTH, told))
    panel, was = growth.panel, before.panel
    result, evaluation, held = finished(context, panel, growth.arms, growth.router, stage.oracle_samples)
    extra: dict[str, float | str] = {"experts_before": len(was.experts), "experts": len(panel.experts)}
    if panel.names != was.names:
        gained = _gained(context, before, evaluation, held)
        extra |= {"growth_gain": gained.difference, "growth_gain_low": gained.low, "growth_gain_high": gained.high}
        context.progress.say(
            f"    from {len(was.experts)} to {len(panel.experts)} experts: {points(gained.difference)} points "
            f"[{points(gained.low)}, {points(gained.high)}] on held-out problems"
        )
    return replace(
        result,
        steps=sum(one.steps for one in growth.trained),
        # an expert that was removed has answered the held-out problems after all others
        tokens=growth.arms.tokens + evaluation.tokens + sum(one.tokens for one in growth.trained),
        extra=result.extra | extra | _audit_numbers(found),
    )


def _gained(context: StageContext, before: Growth, evaluation: Evaluation, held: Held) -> PairedDifference:
    """On held-out problems, the panel as it is minus the one that it was; of this one each arm is asked alone, which
    gives the same answers."""
    recipe, arms = context.recipe, before.arms
    second = arms.ask(held.asked, SCORED, context.stage.evaluation(recipe).samples, recipe.seed)
    arm_P = routes_of(context, arms.model, before.router, held.asked).routes.arm_P
    was_PS = answers_of(correct_APS(second, arms.names), arm_P)
    return paired_difference(evaluation.sampled.correct_PS, was_PS, recipe.evaluate.confidence, recipe.seed)


def _audit_numbers(found: LabelAudit | None) -> dict[str, float | str]:
    if found is None:
        return {}
    return {"audit_verdict": found.verdict, "audit_auc": found.auc, "audit_p_value": found.p_value}
