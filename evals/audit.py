"""Whether the labels that a learned controller is to imitate can be learned: its audit before any training.

A control head that grows and prunes experts may be trained on labels that say nothing, and then it acts all the same.
So the labels are first predicted from the features, on rows that were held out, and everything is done again with
shuffled labels (Ojala and Garriga 2010, "Permutation tests for studying classifier performance", test 1). GO takes a
held-out AUC that shuffled labels hardly ever reach.

The classifier is linear discriminant analysis with a ridge (Friedman 1989 with an identity target), which has the
form of multinomial logistic regression and a closed solution: 200 permutations of 600 rows and 32 features take a
second or less. Labels that depend on the features only in another form end in NO-GO, the cautious side.

Rows are taken as exchangeable. Labels that were drawn row by row keep the level whatever the features are like; where
labels and features both drift slowly over one run, neighbouring rows resemble each other, and the p-value is too small.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from pydantic import TypeAdapter

from evals.settings import AuditSettings

AT_ONCE = 2**22
"""Numbers in the features of the permutations that are done together."""
DIGITS = 9
"""Of a score; equal rows then tie, whatever the order in which a product was summed."""


class AuditError(ValueError):
    """Labels or features that cannot be audited; the message says why and what to do."""

    user_message = True


@dataclass(frozen=True)
class LabelAudit:
    """What an audit found.

    Fields:
        auc: held-out area under the ROC curve, one class against the rest, mean over folds and classes; 0.5 is chance.
        shuffled_low, shuffled_mean, shuffled_high: of the AUCs with shuffled labels, 5th percentile, mean, 95th.
        p_value: (1 + shuffled AUCs that are at least `auc`) / (1 + permutations).
        verdict: GO where the p-value is below the significance and `auc` above `shuffled_high`.
        classes: rows of each class, by name.
        permutations: how often the labels were shuffled.
        reason: a sentence with the numbers.
    """

    auc: float
    shuffled_low: float
    shuffled_mean: float
    shuffled_high: float
    p_value: float
    verdict: Literal["GO", "NO-GO"]
    classes: dict[str, int]
    permutations: int
    reason: str

    def to_json(self) -> str:
        """JSON text; `from_json` reads it back to an equal audit."""
        return _adapter().dump_json(self).decode()

    @staticmethod
    def from_json(text: str | bytes) -> LabelAudit:
        """Read what `to_json` wrote.

        Raises:
            ValueError: not an audit.
        """
        return _adapter().validate_json(text)


@cache
def _adapter() -> TypeAdapter[LabelAudit]:
    return TypeAdapter(LabelAudit)


def audit(features_NF: np.ndarray, labels_N: Sequence[str], settings: AuditSettings, seed: int) -> LabelAudit:
    """Predict the labels on held-out rows, and set that beside what shuffled labels give.

    Folds hold each class in its share. Shuffling the labels and drawing stratified folds for them is, in distribution,
    the same as shuffling the rows of the features under fixed labels and folds, which is done here.

    Args:
        features_NF: rows x features, finite; standardised here, on the rows of the training folds alone.
        labels_N: a class's name for each row.
        seed: of the folds and of the shuffling.

    Raises:
        AuditError: shapes that do not fit, a feature that is nan or infinite, one class only, a class with fewer rows
            than folds.
    """
    features_NF = np.asarray(features_NF, dtype=float)
    _check(features_NF, labels_N, settings)
    names, class_N = np.unique(np.array(labels_N, dtype=str), return_inverse=True)
    draw = np.random.default_rng(seed)
    fold_N = _stratified(class_N, settings.folds, draw)
    auc = float(held_out_auc(features_NF[None], class_N, fold_N, settings)[0])
    shuffled = np.concatenate(
        [
            held_out_auc(features_NF[order_BN], class_N, fold_N, settings)
            for order_BN in _orders(settings.permutations, features_NF, draw)
        ]
    )
    low, high = (float(value) for value in np.percentile(shuffled, (5, 95)))
    p_value = (1 + int((shuffled >= auc).sum())) / (1 + settings.permutations)
    go = p_value < settings.significance and auc > high
    classes = {str(name): int(count) for name, count in zip(names, np.bincount(class_N), strict=True)}
    return LabelAudit(
        auc=auc,
        shuffled_low=low,
        shuffled_mean=float(shuffled.mean()),
        shuffled_high=high,
        p_value=p_value,
        verdict="GO" if go else "NO-GO",
        classes=classes,
        permutations=settings.permutations,
        reason=f"{'GO' if go else 'NO-GO'}: the held-out AUC of {len(labels_N)} labels "
        f"({', '.join(f'{count} {name}' for name, count in classes.items())}) is {auc:.3f}, that of shuffled labels "
        f"{low:.3f} to {high:.3f}; p = {p_value:.3g} of {settings.permutations} permutations, below "
        f"{settings.significance:g} is asked",
    )


def _check(features_NF: np.ndarray, labels_N: Sequence[str], settings: AuditSettings) -> None:
    if features_NF.ndim != 2 or not features_NF.shape[1] or len(features_NF) != len(labels_N):
        raise AuditError(
            f"label audit: features of shape {features_NF.shape} do not fit {len(labels_N)} labels; give rows x "
            "features, a row for each label"
        )
    if not np.isfinite(features_NF).all():
        row, column = np.argwhere(~np.isfinite(features_NF))[0]
        raise AuditError(
            f"label audit: feature {column} of row {row} is {features_NF[row, column]}; leave such rows out or put a "
            "number in its place"
        )
    counts = Counter(map(str, labels_N))
    if len(counts) < 2:
        raise AuditError(
            f"label audit: {_told(counts) or 'no labels'}, and with fewer than two classes there is nothing to learn; "
            "take more problems (`learn`)"
        )
    if min(counts.values()) < settings.folds:
        raise AuditError(
            f"label audit: {_told(counts)}, and each of {settings.folds} folds needs a row of every class; take "
            "more problems (`learn`) or fewer `audit.folds`"
        )


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[name]} labels {name!r}" for name in sorted(counts))


def _stratified(class_N: np.ndarray, folds: int, draw: np.random.Generator) -> np.ndarray:
    """The fold of each row: every class is dealt out in a random order, each going on where the one before ended."""
    order_N = draw.permutation(len(class_N))
    dealt_N = order_N[np.argsort(class_N[order_N], kind="stable")]
    fold_N = np.empty(len(class_N), dtype=int)
    fold_N[dealt_N] = np.arange(len(class_N)) % folds
    return fold_N


def _orders(permutations: int, features_NF: np.ndarray, draw: np.random.Generator) -> Iterator[np.ndarray]:
    """Orders of the rows, as many together as memory allows; how many that is does not change them."""
    rows = np.arange(len(features_NF))
    together = max(1, AT_ONCE // features_NF.size)
    for start in range(0, permutations, together):
        yield np.stack([draw.permutation(rows) for _ in range(min(together, permutations - start))])


def held_out_auc(
    features_BNF: np.ndarray, class_N: np.ndarray, fold_N: np.ndarray, settings: AuditSettings
) -> np.ndarray:
    """Cross-validated AUC of each of B sets of features: in each fold one class against the rest, then the mean.

    Args:
        features_BNF: sets x rows x features.
        class_N: 0, 1, ... each in every fold.
        fold_N: 0 to folds - 1.
    """
    folds = []
    for fold in range(settings.folds):
        test_N = fold_N == fold
        scores_BMC = _scores(features_BNF[:, ~test_N], class_N[~test_N], features_BNF[:, test_N], settings.l2)
        folds.append(_auc(scores_BMC, class_N[test_N]).mean(axis=-1))
    return np.mean(folds, axis=0)


def _scores(train_BNF: np.ndarray, class_N: np.ndarray, test_BMF: np.ndarray, l2: float) -> np.ndarray:
    """Log-odds of each class for each row to test, B x M x C, under one normal distribution per class with the
    covariance within classes that they share."""
    mean_BF, deviation_BF = train_BNF.mean(axis=1, keepdims=True), train_BNF.std(axis=1, keepdims=True)
    # what is constant but for rounding stays so
    scale_BF = np.where(deviation_BF > 1e-12 * np.abs(mean_BF), deviation_BF, np.inf)
    train_BNF, test_BMF = (train_BNF - mean_BF) / scale_BF, (test_BMF - mean_BF) / scale_BF
    member_NC = np.eye(class_N.max() + 1)[class_N]
    counts_C = member_NC.sum(axis=0)
    means_BCF = member_NC.T @ train_BNF / counts_C[:, None]
    within_BNF = train_BNF - means_BCF[:, class_N]
    freedom = max(1, len(class_N) - len(counts_C))
    covariance_BFF = within_BNF.swapaxes(1, 2) @ within_BNF / freedom + l2 * np.eye(train_BNF.shape[2])
    directions_BFC = np.linalg.solve(covariance_BFF, means_BCF.swapaxes(1, 2))
    offset_BC = np.log(counts_C / len(class_N)) - (means_BCF.swapaxes(1, 2) * directions_BFC).sum(axis=1) / 2
    return _log_odds(test_BMF @ directions_BFC + offset_BC[:, None])


def _log_odds(joint_BMC: np.ndarray) -> np.ndarray:
    """Of each class against all others together, from joint log-densities."""
    others = [np.delete(joint_BMC, one, axis=-1) for one in range(joint_BMC.shape[-1])]
    rest_BMC = np.stack([np.logaddexp.reduce(one, axis=-1) for one in others], axis=-1)
    return np.round(joint_BMC - rest_BMC, DIGITS)


def _auc(scores_BMC: np.ndarray, class_M: np.ndarray) -> np.ndarray:
    """B x C: chance that a row of the class scores above one of another, ties counting half (Mann and Whitney 1947)."""
    from scipy.stats import rankdata

    member_MC = np.eye(scores_BMC.shape[-1])[class_M]
    inside_C = member_MC.sum(axis=0)
    ranks_BC = (rankdata(scores_BMC, axis=1) * member_MC).sum(axis=1)
    return (ranks_BC - inside_C * (inside_C + 1) / 2) / (inside_C * (len(class_M) - inside_C))
