"""How a router's share of the oracle's gain grows with what it learns from, told from finished route stages.

Nothing is generated: rows are fitted anew to parts of the answers that a stage has, read at other layers, and scored on
the held-out answers that it has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evals.evaluate import Evaluation
from evals.panel import answers_of, best_by_problem
from models.base import load_base, load_tokenizer
from models.engines.routed import panel_model
from models.experts import BASE, expert_folder, read_panel
from models.features import prompt_features
from models.prompts import prompt_tokens, render_prompt
from models.router import Router
from models.settings import RouterSettings
from orchestra.work.arms import correct_APS, solved_AP
from rewards.domain import get_domain
from rewards.problems import Problem

PARTS = (0.1, 0.2, 0.4, 1.0)
DRAWS = 3
SOURCE = "embedded:formal"


@dataclass(frozen=True)
class Curve:
    """Share recovered of what the instance oracle adds to the best single expert, mean over runs and draws.

    Fields:
        problems: learned from; layers: that prompts are read behind; share: layers x problems; task_oracle: of one who
            knows the domain of each problem and which arm is best there.
    """

    problems: tuple[int, ...]
    layers: tuple[int, ...]
    share: tuple[tuple[float, ...], ...]
    task_oracle: float

    def lines(self) -> Iterator[str]:
        """A table in Markdown."""
        yield "The same share by how many problems the router learned from, and the layer at which it reads prompts "
        yield "(the middle one is the default), from the same answers; all of one who knows each problem's domain: "
        yield f"{self.task_oracle:.0%}."
        yield ""
        yield "| layer | " + " | ".join(f"{count} problems" for count in self.problems) + " |"
        yield "|---" * (len(self.problems) + 1) + "|"
        for layer, row in zip(self.layers, self.share, strict=True):
            yield f"| {layer} | " + " | ".join(f"{one:.0%}" for one in row) + " |"


def curve(stages: Sequence[Path]) -> Curve:
    """Of finished route stages, the same recipe under several seeds."""
    found = [_of(folder) for folder in stages]
    counts, layers, _, _ = found[0]
    share = np.mean([share for _, _, share, _ in found], axis=0)
    return Curve(counts, layers, tuple(map(tuple, share.tolist())), float(np.mean([task for *_, task in found])))


def _of(folder: Path) -> tuple[tuple[int, ...], tuple[int, ...], np.ndarray, float]:
    panel = read_panel(folder / "panel")
    names = (BASE, *panel.names)
    base = load_base(panel.base, "nf4", "auto")
    model = panel_model(base, {name: expert_folder(folder / "panel", name) for name in panel.names})
    learn, first, second = (draw(folder, of) for of in ("learn", "first", "second"))
    ids, test_ids = (one["base"].problem_ids for one in (learn, second))
    shares_AP = solved_AP(learn, names)
    first_APS, second_APS = correct_APS(first, names), correct_APS(second, names)
    single = 1 + int(np.nanmean(first_APS[1:], axis=(1, 2)).argmax())
    floor = float(np.nanmean(second_APS[single]))
    oracle = float(np.nanmean(answers_of(second_APS, best_by_problem(first_APS))))
    # .../seed-3/04-route
    known = _problems(int(folder.parent.name.rpartition("-")[2]))
    domains = np.array([known[id].domain for id in test_ids])
    best = {one: int(np.nanmean(first_APS[:, domains == one], axis=(1, 2)).argmax()) for one in sorted(set(domains))}
    task = float(np.nanmean(answers_of(second_APS, np.array([best[one] for one in domains]))))
    counts = tuple(round(part * len(ids)) for part in PARTS)
    layers = tuple(range(base.config.num_hidden_layers + 1))
    rows = []
    for layer in layers:
        learn_PH, test_PH = (_features(model, panel.base, known, of, layer) for of in (ids, test_ids))
        won = [
            np.mean([_won(learn_PH, shares_AP, test_PH, second_APS, names, layer, count, at) for at in range(DRAWS)])
            for count in counts
        ]
        rows.append([(one - floor) / (oracle - floor) for one in won])
    return counts, layers, np.array(rows), (task - floor) / (oracle - floor)


def _won(
    learn_PH: np.ndarray, solved_AP: np.ndarray, test_PH: np.ndarray, second_APS: np.ndarray, names: Sequence[str],
    layer: int, count: int, seed: int,
) -> float:  # fmt: skip
    """Accuracy under a router that has learned from so many of the problems."""
    part = np.random.default_rng(seed).permutation(len(learn_PH))[:count]
    router = Router.fit(learn_PH[part], solved_AP[:, part], names, RouterSettings(), seed, layer=layer)
    return float(np.nanmean(answers_of(second_APS, router.route(test_PH).arm_P)))


def draw(folder: Path, of: str) -> dict[str, Evaluation]:
    """What every arm answered in one draw of a route stage, `base` first, then as in the panel."""
    names = (BASE, *read_panel(folder / "panel").names)
    return {name: Evaluation.read(folder / "answers" / f"{of}-{name}.json") for name in names}


def _problems(seed: int) -> dict[str, Problem]:
    """Those of a run under this training seed; held-out ones are the same under all."""
    domain = get_domain("math")
    drawn = [domain.problems(SOURCE, split, limit=None, seed=own) for split, own in (("train", seed), ("test", 0))]
    return {problem.id: problem for problems in drawn for problem in problems}


def _features(model: object, base: str, known: Mapping[str, Problem], ids: Sequence[str], layer: int) -> np.ndarray:
    tokenizer, format = load_tokenizer(base), get_domain("math").format("think-boxed")
    asked = [render_prompt(tokenizer, format.messages(known[id].question)) for id in ids]
    tokens = [prompt_tokens(tokenizer, prompt) for prompt in asked]
    return prompt_features(model, tokens, layer, pad_token_id=tokenizer.pad_token_id)
