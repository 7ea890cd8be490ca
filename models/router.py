"""Who answers a problem: the frozen base or one of its experts, decided from the prompt alone.

A prompt is what the frozen base makes of it at a middle layer (models/features.py). Each arm (the base, an expert) has
one row: a logistic model of "this arm solves this problem", fitted to the share of its samples that were right, and
calibrated on problems set aside in turn (Platt 1999). A row knows nothing of the other rows, so an expert that comes
or goes leaves them as they are, byte for byte; the features' mean and scale are those of the first fit.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from models.base import one_thread
from models.expert_files import ROUTER_CONFIG
from models.experts import BASE
from models.features import RouterError, checked
from models.settings import RouterSettings
from settings import near
from settings.files import write_whole

TENSORS, CONFIG = "router.safetensors", ROUTER_CONFIG
AGAIN = "train the router again with a `route` stage"
# of a calibration: never against the row, and never a certainty that held-out problems cannot show
SLOPES = (1e-3, 1e3)


@dataclass(frozen=True, eq=False)
class Row:
    """An arm's log-odds of solving a problem: slope * (weights_H . standardised features + bias) + offset, float32.

    Fields:
        weights_H, bias: the logistic model.
        slope, offset: its calibration; the slope is above 0.
    """

    weights_H: np.ndarray
    bias: np.float32
    slope: np.float32
    offset: np.float32


@dataclass(frozen=True, eq=False)
class Routes:
    """Where problems go.

    Fields:
        arm_P: index into the router's names; 0 is the base.
        shares_PA: softmax over the arms of their calibrated log-odds, whose entropy says how undecided the router is.
    """

    arm_P: np.ndarray
    shares_PA: np.ndarray


@dataclass(frozen=True, eq=False)
class Router:
    """The arms' rows over features of one layer of one base.

    Fields:
        names: `base` first, then the experts in the panel's order.
        layer: see `layer_of`.
        mean_H, scale_H: what features are standardised by, float32.
        rows: one for each name.
        threshold: by how much an expert's chance must be above the base's for it to be asked.
    """

    names: tuple[str, ...]
    layer: int
    mean_H: np.ndarray
    scale_H: np.ndarray
    rows: tuple[Row, ...]
    threshold: float

    @classmethod
    def fit(
        cls,
        features_PH: np.ndarray,
        solved_AP: np.ndarray,
        names: Sequence[str],
        settings: RouterSettings,
        seed: int,
        *,
        layer: int,
    ) -> "Router":
        """A router from which arm solved which problem. Equal to fitting the first arm and adding the others.

        Args:
            features_PH: as `prompt_features` gives them, at `layer`.
            solved_AP: arms x problems, share of an arm's samples that were right; nan where none was graded.
            names: of the arms, `base` first.
            seed: says which problems are set aside together.

        Raises:
            RouterError: the base is not the first arm, a name is there twice, the shapes do not fit, a share is not
                between 0 and 1, or an arm has too little graded to learn from and be calibrated on.
        """
        features_PH, solved_AP = checked(features_PH), np.asarray(solved_AP, dtype=float)
        if not names or names[0] != BASE:
            raise RouterError(f"router: the first arm must be '{BASE}', not {names[0] if names else 'none'!r}")
        if solved_AP.shape != (len(names), len(features_PH)):
            wanted = f"{len(names)} arms x {len(features_PH)} problems"
            raise RouterError(f"router: which arm solved which problem is {solved_AP.shape}, not {wanted}")
        mean_H, scale_H = features_PH.mean(axis=0, dtype=float), features_PH.std(axis=0, dtype=float)
        # what varies by rounding alone is not blown up
        scale_H[scale_H <= 1e-6 * (1 + np.abs(mean_H))] = 1.0
        router = cls((), layer, mean_H.astype(np.float32), scale_H.astype(np.float32), (), settings.threshold)
        for name, solved_P in zip(names, solved_AP, strict=True):
            router = router.with_arm(name, features_PH, solved_P, settings, seed)
        return router

    def with_arm(
        self, name: str, features_PH: np.ndarray, solved_P: np.ndarray, settings: RouterSettings, seed: int
    ) -> "Router":
        """With one arm more, behind the others. Arguments and errors are those of `fit`."""
        solved_P = np.asarray(solved_P, dtype=float)
        if name in self.names:
            raise RouterError(f"router: there is an arm '{name}' already; take another name, or remove that one")
        graded_P = ~np.isnan(solved_P)
        if not ((solved_P[graded_P] >= 0) & (solved_P[graded_P] <= 1)).all():
            raise RouterError(f"router: arm '{name}': shares of solved samples lie between 0 and 1")
        standard_PH = self._standardised(features_PH)
        if solved_P.shape != standard_PH.shape[:1]:
            raise RouterError(f"router: arm '{name}' has {solved_P.shape} shares for {len(standard_PH)} problems")
        parts = [part_P[graded_P[part_P]] for part_P in _parts(len(standard_PH), settings.set_aside, seed)]
        parts = [part_P for part_P in parts if len(part_P)]
        if len(parts) < 2:
            known = f"{int(graded_P.sum())} of {len(standard_PH)} problems are graded"
            raise RouterError(
                f"router: arm '{name}' has too few problems to learn from and be calibrated on ({known}); route on more"
            )
        row = _fitted(standard_PH, solved_P, parts, settings)
        return replace(self, names=(*self.names, name), rows=(*self.rows, row))

    def without(self, name: str) -> "Router":
        """Without an arm.

        Raises:
            RouterError: there is no such arm, or it is the base.
        """
        at = self._expert(name, "removed")
        return replace(self, names=self.names[:at] + self.names[at + 1 :], rows=self.rows[:at] + self.rows[at + 1 :])

    def renamed(self, old: str, new: str) -> "Router":
        """With another name for an arm.

        Raises:
            RouterError: there is no such arm, it is the base, or the new name is taken.
        """
        at = self._expert(old, "renamed")
        if new in self.names and new != old:
            raise RouterError(f"router: there is an arm '{new}' already; take another name for '{old}'")
        return replace(self, names=(*self.names[:at], new, *self.names[at + 1 :]))

    def row_bytes(self, name: str) -> bytes:
        """An arm's row, to the last bit."""
        row = self.rows[self.names.index(name)]
        return b"".join(np.asarray(part).tobytes() for part in (row.weights_H, row.bias, row.slope, row.offset))

    def log_odds(self, features_PH: np.ndarray) -> np.ndarray:
        """Calibrated log-odds that each arm solves each problem, problems x arms. Neither the other arms nor the other
        problems change a last bit."""
        standard_PH = self._standardised(features_PH)
        columns = [
            float(row.slope) * ((standard_PH * row.weights_H).sum(axis=1) + float(row.bias)) + float(row.offset)
            for row in self.rows
        ]
        return np.stack(columns, axis=1)

    def probabilities(self, features_PH: np.ndarray) -> np.ndarray:
        """Calibrated chance that each arm solves each problem, problems x arms."""
        from scipy.special import expit

        return expit(self.log_odds(features_PH))

    def route(self, features_PH: np.ndarray) -> Routes:
        """The likeliest arm, of equal ones the earlier; the base where the best expert's chance is not above the base's
        by the threshold."""
        from scipy.special import expit, softmax

        odds_PA = self.log_odds(features_PH)
        arm_P = odds_PA.argmax(axis=1)
        if len(self.names) > 1:
            chances_PA = expit(odds_PA)
            arm_P[chances_PA[:, 1:].max(axis=1) - chances_PA[:, 0] < self.threshold] = 0
        return Routes(arm_P, softmax(odds_PA, axis=1))

    def write(self, folder: Path) -> None:
        """Into an existing folder; a reader sees the old router, the new one, or an error, never a mixture."""
        from safetensors.numpy import save

        stacked = {
            "weights": np.stack([row.weights_H for row in self.rows]),
            "bias": np.array([row.bias for row in self.rows]),
            "slope": np.array([row.slope for row in self.rows]),
            "offset": np.array([row.offset for row in self.rows]),
        }
        tensors = save(stacked | {"mean": self.mean_H, "scale": self.scale_H})
        config = {
            "arms": self.names,
            "layer": self.layer,
            "threshold": self.threshold,
            "sha256": hashlib.sha256(tensors).hexdigest(),
        }
        write_whole(folder / TENSORS, tensors)
        write_whole(folder / CONFIG, (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode())

    @staticmethod
    def read(folder: Path, names: Sequence[str] | None = None, hidden: int | None = None) -> "Router":
        """Read what `write` wrote.

        Args:
            names: what the panel holds, `base` first; None: not compared. `hidden`: the base's hidden size, likewise.

        Raises:
            RouterError: it is missing or damaged, or made for other arms or another base.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        for file in (CONFIG, TENSORS):
            if not (folder / file).is_file():
                raise RouterError(f"{folder} holds no router ({file} is missing); {AGAIN}")
        tensors = (folder / TENSORS).read_bytes()
        try:
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            if hashlib.sha256(tensors).hexdigest() != config["sha256"]:
                raise ValueError("it is cut, or of another router")
            of, arms, layer = load(tensors), tuple(config["arms"]), int(config["layer"])
            columns = zip(of["weights"], of["bias"], of["slope"], of["offset"], strict=True)
            rows = tuple(Row(*column) for column in columns)
            router = Router(arms, layer, of["mean"], of["scale"], rows, float(config["threshold"]))
            if len(router.rows) != len(arms) or arms[:1] != (BASE,) or len(set(arms)) != len(arms):
                raise ValueError(f"{CONFIG} names {', '.join(map(str, arms)) or 'nothing'}: it was edited")
        except (ValueError, KeyError, TypeError, SafetensorError) as error:
            raise RouterError(f"{folder / TENSORS} is no readable router ({error}); {AGAIN}") from error
        if names is not None and arms != tuple(names):
            held = ", ".join(names)
            raise RouterError(f"{folder / CONFIG}: routes to {', '.join(arms)}, but the panel holds {held}; {AGAIN}")
        if hidden is not None and len(router.mean_H) != hidden:
            sizes = f"hidden size {len(router.mean_H)}, this one has {hidden}"
            raise RouterError(f"{folder / TENSORS}: made for a base of {sizes}; {AGAIN}")
        return router

    def _expert(self, name: str, what: str) -> int:
        if name not in self.names:
            raise RouterError(f"router: there is no arm '{name}' ({', '.join(self.names)}){near(name, self.names)}")
        if name == BASE:
            raise RouterError(f"router: '{BASE}' cannot be {what}; it is what every expert stands on")
        return self.names.index(name)

    def _standardised(self, features_PH: np.ndarray) -> np.ndarray:
        features_PH = checked(features_PH)
        if features_PH.shape[1] != len(self.mean_H):
            sizes = f"{len(self.mean_H)} numbers per prompt, these are {features_PH.shape[1]}"
            raise RouterError(f"router: made for {sizes}; take the base that it was trained on")
        return (features_PH.astype(float) - self.mean_H) / self.scale_H


def _parts(problems: int, set_aside: float, seed: int) -> list[np.ndarray]:
    """Indices of the problems that are set aside together, each problem once; as many parts as such shares make a
    whole."""
    order_P = np.random.default_rng(seed).permutation(problems)
    return [np.sort(part_P) for part_P in np.array_split(order_P, max(2, round(1 / set_aside)))]


def _fitted(
    standard_PH: np.ndarray, solved_P: np.ndarray, parts: Sequence[np.ndarray], settings: RouterSettings
) -> Row:
    """An arm's row, from all problems of the parts. How long it is fitted, and how its log-odds are calibrated, is told
    by fits without each part in turn, on that part: what sets arms apart is small, and one part alone would blur it."""
    raw_parts, steps = [], []
    for held_P in parts:
        train_P = np.concatenate([part_P for part_P in parts if part_P is not held_P])
        weights_H, bias, step = _early_stopped(
            standard_PH[train_P], solved_P[train_P], standard_PH[held_P], solved_P[held_P], settings
        )
        raw_parts.append((standard_PH[held_P] * weights_H).sum(axis=1) + bias)
        steps.append(step)
    all_P = np.concatenate(parts)
    slope, offset = _calibration(np.concatenate(raw_parts), solved_P[all_P])
    descent = _descent(standard_PH[all_P], solved_P[all_P], settings)
    weights_H, bias = next(islice(descent, round(sum(steps) / len(steps)), None))
    return Row(weights_H.numpy().astype(np.float32), np.float32(bias), slope, offset)


def _descent(
    train_TH: np.ndarray, solved_T: np.ndarray, settings: RouterSettings
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Weights and bias after each step of L-BFGS, from the base rate alone; endless, where it has arrived the same."""
    weights_H = torch.zeros(train_TH.shape[1], dtype=torch.float64, requires_grad=True)
    rate = (solved_T.sum() + 1) / (len(solved_T) + 2)
    bias = torch.tensor(rate, dtype=torch.float64).logit().requires_grad_()
    train_TH, solved_T = torch.from_numpy(train_TH), torch.from_numpy(solved_T)
    optimizer = torch.optim.LBFGS([weights_H, bias], max_iter=1, line_search_fn="strong_wolfe")

    def penalised() -> torch.Tensor:
        optimizer.zero_grad()
        loss = binary_cross_entropy_with_logits(train_TH @ weights_H + bias, solved_T)
        (loss + settings.l2 / 2 * weights_H.square().sum()).backward()
        return loss.detach() + settings.l2 / 2 * weights_H.detach().square().sum()

    while True:
        yield weights_H.detach().clone(), bias.detach().clone()
        with one_thread(), torch.enable_grad():
            optimizer.step(penalised)


def _early_stopped(
    train_TH: np.ndarray, solved_T: np.ndarray, held_VH: np.ndarray, solved_V: np.ndarray, settings: RouterSettings
) -> tuple[np.ndarray, np.float32, int]:
    """Weights and bias with the least cross-entropy on the problems set aside, and after how many steps they came."""
    held_VH, solved_V = map(torch.from_numpy, (held_VH, solved_V))
    lowest, best, best_step = float("inf"), None, 0
    descent = _descent(train_TH, solved_T, settings)
    for step, (weights_H, bias) in enumerate(islice(descent, settings.max_steps + 1)):
        with one_thread():
            held = float(binary_cross_entropy_with_logits(held_VH @ weights_H + bias, solved_V))
        if held < lowest:
            lowest, best, best_step = held, (weights_H, bias), step
        elif step - best_step >= settings.patience:
            break
    return best[0].numpy().astype(np.float32), np.float32(best[1]), best_step


def _calibration(raw_P: np.ndarray, solved_P: np.ndarray) -> tuple[np.float32, np.float32]:
    """Slope and offset with the least cross-entropy on problems set aside. Targets are drawn in from 0 and 1 as Platt
    (1999) does, or of few problems that are all told apart right nothing would be uncertain any more."""
    from scipy.optimize import minimize
    from scipy.special import expit

    right, wrong = solved_P.sum(), (1 - solved_P).sum()
    target_P = solved_P * (right + 1) / (right + 2) + (1 - solved_P) / (wrong + 2)

    def loss(at: np.ndarray) -> tuple[float, np.ndarray]:
        odds_P = at[0] * raw_P + at[1]
        off_P = expit(odds_P) - target_P
        value = np.logaddexp(0, odds_P) - target_P * odds_P
        return float(value.mean()), np.array([(off_P * raw_P).mean(), off_P.mean()])

    found = minimize(loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=(SLOPES, (None, None)))
    return np.float32(found.x[0]), np.float32(found.x[1])
