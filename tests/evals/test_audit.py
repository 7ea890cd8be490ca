"""evals/audit.py: labels that say nothing end in NO-GO, labels that can be learned in GO."""

import math
import time

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.special import log_softmax, logsumexp
from scipy.stats import binom, mannwhitneyu, multivariate_normal

from evals.audit import AuditError, LabelAudit, _auc, _scores, audit, held_out_auc
from evals.settings import AuditSettings

RULES = AuditSettings()


def random_labels(draw, rows):
    """As of experiment 7b-1: 30 % grow, 20 % prune."""
    return [str(one) for one in draw.choice(["grow", "prune", "stay"], rows, p=[0.3, 0.2, 0.5])]


def test_random_labels_pass_no_more_often_than_the_level():
    """At 19 permutations and a level just above 1 / 20, GO takes all shuffled AUCs below: one chance in 20, and the
    binomial says how often that is in 300 audits."""
    rules = AuditSettings(folds=3, permutations=19, significance=0.0501)
    draw = np.random.default_rng(0)
    seeds = 300
    found = [audit(draw.normal(size=(90, 4)), random_labels(draw, 90), rules, seed) for seed in range(seeds)]
    passed = sum(one.verdict == "GO" for one in found)
    assert binom.ppf(0.001, seeds, 0.05) <= passed <= binom.ppf(0.999, seeds, 0.05)
    # and p-values are as often below a half as above
    below = sum(one.p_value <= 0.5 for one in found)
    assert binom.ppf(0.001, seeds, 0.5) <= below <= binom.ppf(0.999, seeds, 0.5)


def test_the_experiment_of_random_labels_is_stopped_in_a_second_or_two():
    draw = np.random.default_rng(1)
    features_NF, labels = draw.normal(size=(600, 32)), random_labels(draw, 600)
    began = time.process_time()
    found = audit(features_NF, labels, RULES, seed=0)
    assert time.process_time() - began < 3
    assert found.verdict == "NO-GO" and found.p_value >= 0.01
    assert found.reason.startswith("NO-GO: the held-out AUC of 600 labels")
    assert f"{found.auc:.3f}" in found.reason and "200 permutations" in found.reason


def test_labels_that_depend_on_a_feature_are_go():
    draw = np.random.default_rng(2)
    features_NF = draw.normal(size=(300, 16))
    noisy = features_NF[:, 3] + draw.normal(size=300)
    labels = np.select([noisy > 0.7, noisy < -1], ["grow", "prune"], "stay")
    found = audit(features_NF, labels, RULES, seed=0)
    # none of 200 shuffled ones comes near
    assert (found.verdict, found.p_value) == ("GO", 1 / 201)
    assert found.shuffled_low < 0.5 < found.shuffled_high < 0.6 < found.auc < 1
    assert found.shuffled_mean == pytest.approx(0.5, abs=0.01)
    assert found.classes == {"grow": int((noisy > 0.7).sum()), "prune": int((noisy < -1).sum()),
                             "stay": int(((noisy <= 0.7) & (noisy >= -1)).sum())}  # fmt: skip
    assert LabelAudit.from_json(found.to_json()) == found
    # neither the features' units nor their order matter
    units = features_NF[:, ::-1] * 10.0 ** np.arange(-8, 8) + 3
    assert audit(units, labels, RULES, seed=0).p_value == 1 / 201


def test_go_takes_the_level_and_the_95th_percentile():
    draw = np.random.default_rng(7)
    sets = [(draw.normal(size=(60, 2)), random_labels(draw, 60)) for _ in range(60)]
    found = [audit(*one, RULES, seed=0) for one in sets]
    # above the percentile, and yet not below the level of 0.01; and above most shuffled ones, but below the percentile
    near = next(i for i, one in enumerate(found) if one.auc > one.shuffled_high and 0.01 < one.p_value < 0.05)
    mild = next(i for i, one in enumerate(found) if one.auc < one.shuffled_high and one.p_value < 0.3)

    def verdict(which, significance):
        return audit(*sets[which], AuditSettings(significance=significance), seed=0).verdict

    assert (verdict(near, 0.01), verdict(near, 0.05)) == ("NO-GO", "GO")
    assert verdict(mild, 0.5) == "NO-GO"


def test_the_same_seed_gives_the_same_bytes_and_names_do_not_matter():
    draw = np.random.default_rng(3)
    features_NF, labels = draw.normal(size=(100, 5)), random_labels(draw, 100)
    one = audit(features_NF, labels, RULES, seed=4)
    assert one.to_json() == audit(features_NF, np.array(labels), RULES, seed=4).to_json()
    assert one.to_json() != audit(features_NF, labels, RULES, seed=5).to_json()
    renamed = {"grow": "a", "prune": "b", "stay": "c"}
    assert audit(features_NF, [renamed[name] for name in labels], RULES, seed=4).auc == one.auc


def test_scores_are_those_of_normal_distributions_with_one_covariance():
    """The same AUC from scipy's normal density and Mann and Whitney's U, row by row."""
    draw = np.random.default_rng(5)
    class_N = np.repeat([0, 1, 2], [20, 14, 11])
    features_NF = draw.normal(size=(45, 3)) @ np.array([[1, 0.5, 0], [0, 1, 0.5], [0, 0, 2]]) + class_N[:, None] * 0.7
    fold_N = np.arange(45) % 3
    rules = AuditSettings(folds=3, l2=0.3)
    parts = []
    for fold in range(3):
        train, test = features_NF[fold_N != fold], features_NF[fold_N == fold]
        mean, deviation = train.mean(axis=0), train.std(axis=0)
        train, test, of = (train - mean) / deviation, (test - mean) / deviation, class_N[fold_N != fold]
        means = [train[of == one].mean(axis=0) for one in range(3)]
        within = np.concatenate([train[of == one] - means[one] for one in range(3)])
        covariance = within.T @ within / (len(train) - 3) + 0.3 * np.eye(3)
        joint = [
            multivariate_normal(means[one], covariance).logpdf(test) + np.log((of == one).mean()) for one in range(3)
        ]
        log_chance = log_softmax(np.array(joint), axis=0)
        for one in range(3):
            score = log_chance[one] - logsumexp(np.delete(log_chance, one, axis=0), axis=0)
            positive = class_N[fold_N == fold] == one
            u = mannwhitneyu(score[positive], score[~positive]).statistic
            parts.append(u / positive.sum() / (~positive).sum())
    assert held_out_auc(features_NF[None], class_N, fold_N, rules)[0] == pytest.approx(np.mean(parts))


def test_noise_with_as_many_features_as_rows_predicts_nothing_that_was_held_out():
    """With 120 features any labels of 120 rows can be learned by heart: tested on rows that were trained on, the AUC is
    1 or nearly so; held out, it is chance."""
    aucs = []
    for seed in range(8):
        draw = np.random.default_rng(seed)
        class_N, fold_N = draw.permutation(np.arange(120) % 2), draw.permutation(np.arange(120) // 24)
        aucs.append(held_out_auc(draw.normal(size=(1, 120, 120)), class_N, fold_N, RULES)[0])
    # one AUC of 12 against 12 rows has a standard deviation of 0.12 by chance, the mean of 5 folds and 8 seeds 0.02
    assert np.mean(aucs) == pytest.approx(0.5, abs=0.08)
    assert max(aucs) < 0.7


def test_what_is_constant_ties_and_says_nothing():
    labels = ["grow", "stay"] * 20
    found = audit(np.full((40, 2), 0.1), labels, RULES, seed=0)
    assert (found.auc, found.shuffled_low, found.shuffled_high) == (0.5, 0.5, 0.5)
    assert (found.p_value, found.verdict) == (1.0, "NO-GO")
    # equal rows tie by whatever product their score was summed: of a coin that is the label the AUC is 1, of one that
    # is it for half of the class (1 + 0.5) / 2
    coin = np.array([1.0, 0.0] * 20)
    both = np.stack([coin, np.full(40, 7.0)], axis=1)
    assert audit(both, labels, RULES, seed=0).auc == 1
    half = coin * np.repeat([1, 0], 20)
    assert audit(half[:, None], labels, AuditSettings(folds=2), seed=0).auc == pytest.approx(0.75, abs=0.02)


def test_what_ties_in_theory_ties():
    """Seven switches, each in a unit of its own, of which each class has every one equally often: any one that is on
    says the same, whatever rounding makes of it."""
    on, off = np.eye(7), np.zeros((7, 7))
    switches_NF = np.concatenate([on, on, on, off[:3], on, off, off])
    train_NF, test_MF = (one * (0.1 + np.arange(7) / 3) + 0.7 for one in (switches_NF, np.concatenate([on, off])))
    scores_BMC = _scores(train_NF[None], np.repeat([0, 1], [24, 21]), test_MF[None], l2=0.1)
    assert len(np.unique(scores_BMC[0, :, 0])) == 2
    # seven of the first class on, seven of the second off
    assert _auc(scores_BMC, np.arange(14) // 7)[0] == pytest.approx([1, 1])
    # one of the first class and one of the second on, one of each off: (1 + 0.5 + 0.5 + 0) / 4
    assert _auc(scores_BMC[:, [0, 7, 3, 8]], np.array([0, 0, 1, 1]))[0] == pytest.approx([0.5, 0.5])


def test_every_fold_has_every_class():
    """As many rows of a class as folds are enough, whatever the seed; without one there would be no AUC."""
    labels = ["grow"] * 5 + ["stay"] * 22 + ["prune"] * 6
    features_NF = np.random.default_rng(8).normal(size=(33, 2))
    for seed in range(10):
        assert math.isfinite(audit(features_NF, labels, RULES, seed).auc)


def test_more_permutations_than_fit_in_memory_at_once(monkeypatch):
    draw = np.random.default_rng(6)
    features_NF, labels = draw.normal(size=(60, 4)), random_labels(draw, 60)
    whole = audit(features_NF, labels, RULES, seed=0)
    monkeypatch.setattr("evals.audit.AT_ONCE", 60 * 4 * 7)
    assert audit(features_NF, labels, RULES, seed=0) == whole


@pytest.mark.parametrize(
    "features_NF, labels, told",
    [
        (np.zeros((6, 1)), ["stay"] * 6, r"6 labels 'stay', and with fewer than two classes"),
        (np.zeros((0, 1)), [], "no labels"),
        (np.eye(9), ["stay"] * 5 + ["grow"] * 4, r"4 labels 'grow', 5 labels 'stay', and each of 5 folds"),
        (np.array([[0.0, 1], [2, math.nan]]), ["a", "b"], "feature 1 of row 1 is nan"),
        (np.array([[-math.inf, 1], [2, 3]]), ["a", "b"], "feature 0 of row 0 is -inf"),
        (np.zeros((3, 2)), ["a", "b"], r"shape \(3, 2\) do not fit 2 labels"),
        (np.zeros((2, 0)), ["a", "b"], r"shape \(2, 0\)"),
        (np.zeros(2), ["a", "b"], r"shape \(2,\)"),
    ],
)
def test_what_cannot_be_audited(features_NF, labels, told):
    with pytest.raises(AuditError, match=told) as caught:
        audit(features_NF, labels, RULES, seed=0)
    assert caught.value.user_message


def test_a_level_that_no_p_value_reaches_is_refused():
    with pytest.raises(ValidationError, match=r"99 permutations give no p-value below 0\.01"):
        AuditSettings(permutations=99)
    assert AuditSettings(permutations=100).permutations == 100
