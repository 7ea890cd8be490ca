"""What a growing panel is judged by: windows of problems, as the arms answered them or as a learned head sees them.

A learned head may be trained on labels that say nothing, and would act all the same (experiment 7b-1). So its labels
are audited first (evals/audit.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from evals.audit import LabelAudit, audit
from models.population import Unsolved, Window, window
from models.router import Router
from orchestra.work.arms import Arms, solved_AP
from orchestra.work.resources import stage_seed
from orchestra.work.routing import features

if TYPE_CHECKING:
    from orchestra.work.context import StageContext
    from orchestra.work.settings import GrowSettings
    from rewards.problems import Asked

GROW, PRUNE, STAY = "grow", "prune", "stay"
RANDOM: Mapping[str, float] = {GROW: 0.3, PRUNE: 0.2, STAY: 0.5}
"""Shares of labels that are drawn at random (experiment 7b-1)."""
COMPONENTS = 32
"""Of the prompts' features that an audit looks at: their directions of most variance, and at most one for ten rows.
Each counts as much as the others there, and with as many as rows those of noise hide what can be told."""


@dataclass(frozen=True)
class Signals:
    """Windows as every arm has answered them."""

    context: StageContext
    samples: int

    def look(self, arms: Arms, router: Router, asked: Asked, number: int) -> Window:
        """Ask, and sum up."""
        seed = stage_seed(self.context.recipe, f"{self.context.called}/window-{number}")
        answers = arms.ask(asked, f"window-{number}", self.samples, seed)
        routes = router.route(features(self.context, arms.model, asked, router.layer))
        domains = [problem.domain for problem in asked.problems]
        return window(arms.names, domains, solved_AP(answers, arms.names), routes.arm_P, routes.shares_PA)


@dataclass(frozen=True)
class Learned:
    """Windows as a head sees them that tells from a prompt whether an arm would solve it; nobody is asked.

    Fields:
        head: its second arm's chance is that of the label `grow`.
    """

    context: StageContext
    head: Router

    def look(self, arms: Arms, router: Router, asked: Asked, number: int) -> Window:
        """Read the prompts, and sum up; `unsolved` is what is expected."""
        features_PH = features(self.context, arms.model, asked, router.layer)
        unsolved_P = self.head.probabilities(features_PH)[:, 1]
        routes = router.route(features_PH)
        chances_PA = router.probabilities(features_PH)
        domain_P = np.array([problem.domain for problem in asked.problems], dtype=object)
        loss = float(1 - chances_PA[np.arange(len(domain_P)), routes.arm_P].mean())
        nobody = np.full(chances_PA.T.shape, np.nan)
        seen = window(arms.names, list(domain_P), nobody, routes.arm_P, routes.shares_PA, loss)
        expected = {
            name: Unsolved(int((domain_P == name).sum()), round(float(unsolved_P[domain_P == name].sum())))
            for name in sorted(set(domain_P))
        }
        return replace(seen, domains=expected)


def labels_of(solved: np.ndarray, stage: GrowSettings, seed: int) -> list[str]:
    """A learned controller's label for each problem. Ungradable is not wrong: a problem of which not every arm was
    graded says neither that none solves it nor that the base does as well as all.

    Args:
        solved: arms x problems, the base first.
    """
    if stage.labels == "random":
        drawn = np.random.default_rng(seed).choice(list(RANDOM), size=solved.shape[1], p=list(RANDOM.values()))
        return drawn.tolist()
    known_P, found = ~np.isnan(solved).any(axis=0), np.nan_to_num(solved)
    return [
        STAY if expert > base or not known else PRUNE if base else GROW
        for base, expert, known in zip(found[0], found[1:].max(axis=0), known_P, strict=True)
    ]


def audited(features_PH: np.ndarray, labels: Sequence[str], stage: GrowSettings, seed: int) -> LabelAudit:
    """Whether these labels can be told from the prompts."""
    centred_PH = features_PH - features_PH.mean(axis=0)
    _, _, directions_CH = np.linalg.svd(centred_PH.astype(float), full_matrices=False)
    kept = min(COMPONENTS, max(1, len(labels) // 10))
    return audit(centred_PH @ directions_CH[:kept].T, labels, stage.audit, seed)


def head_of(features_PH: np.ndarray, labels: Sequence[str], stage: GrowSettings, seed: int, layer: int) -> Router:
    """A head that tells `grow` from the rest."""
    grow_P = np.array([float(label == GROW) for label in labels])
    return Router.fit(features_PH, np.stack([1 - grow_P, grow_P]), ("base", GROW), stage.router, seed, layer=layer)
