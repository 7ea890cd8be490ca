"""The router: a row for each arm that knows nothing of the others, calibrated; routes, files, and what is refused."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from models.features import RouterError
from models.router import CONFIG, TENSORS, Router, Row, _calibration, _early_stopped
from models.settings import RouterSettings

NAMES = ("base", "sums", "rates")
SETTINGS = RouterSettings(l2=0.03)


def world(problems=400, hidden=24, samples=8, seed=0):
    """Features with directions of very different size, and shares of arms that solve what lies on their side:
    P(sums solves) rises in the first direction, P(rates solves) falls in it, the base solves 40 % of anything."""
    rng = np.random.default_rng(seed)
    features_PH = rng.normal(size=(problems, hidden)) * np.geomspace(100, 0.01, hidden) + 5
    side_P = (features_PH[:, 0] - 5) / 100
    chance_AP = np.stack([np.full(problems, 0.4), 1 / (1 + np.exp(-3 * side_P)), 1 / (1 + np.exp(3 * side_P))])
    return features_PH.astype(np.float32), rng.binomial(samples, chance_AP) / samples, chance_AP


def fitted(seed=0, settings=SETTINGS, **how):
    features_PH, solved_AP, _ = world(**how)
    return Router.fit(features_PH, solved_AP, NAMES, settings, seed, layer=2)


def fixed(odds_A, names=NAMES):
    """Log-odds that are the same for every problem: weights 0."""
    rows = tuple(Row(np.zeros(2, np.float32), np.float32(x), np.float32(1), np.float32(0)) for x in odds_A)
    return Router(names, 1, np.zeros(2, np.float32), np.ones(2, np.float32), rows, 0.0)


def bytes_of(row):
    return b"".join(np.asarray(part).tobytes() for part in (row.weights_H, row.bias, row.slope, row.offset))


ANY = np.zeros((1, 2), dtype=np.float32)


def odds(p):
    return math.log(p / (1 - p))


def test_it_finds_who_solves_what_on_problems_it_has_not_seen():
    router = fitted()
    features_PH, _, chance_AP = world(seed=1, problems=1000)
    routes = router.route(features_PH)
    won = chance_AP[routes.arm_P, np.arange(1000)].mean()
    # the best arm of each problem wins about 0.76, the best single one 0.5
    assert won > chance_AP.max(axis=0).mean() - 0.01 and chance_AP.mean(axis=1).max() < 0.55
    assert {0, 1, 2} >= set(routes.arm_P.tolist()) and (routes.arm_P == 1).mean() > 0.3


def test_a_chance_is_a_chance():
    """Of problems that are given p, a share p is solved: by tenths, within 4 standard errors."""
    router = fitted(problems=1500)
    features_PH, solved_AP, chance_AP = world(seed=2, problems=4000, samples=1)
    chances_PA = router.probabilities(features_PH)
    assert chances_PA.shape == (4000, 3) and ((chances_PA > 0) & (chances_PA < 1)).all()
    assert abs(chances_PA - chance_AP.T).mean() < 0.02
    for arm in (1, 2):
        for bin_P in np.array_split(np.argsort(chances_PA[:, arm]), 10):
            said, was = chances_PA[bin_P, arm].mean(), solved_AP[arm, bin_P].mean()
            assert abs(said - was) < 4 * math.sqrt(0.25 / 400)


def test_calibration_takes_back_what_stopping_early_says_too_softly():
    """After one step the odds are small; on new problems those of the calibration are nearer to what happens."""
    rng = np.random.default_rng(5)
    features_PH = rng.normal(size=(2400, 20)).astype(np.float32)
    solved_P = rng.binomial(1, 1 / (1 + np.exp(-3 * features_PH[:, 0])))
    half = RouterSettings(set_aside=0.5, max_steps=1)
    router = Router.fit(features_PH[:400], solved_P[None, :400], ("base",), half, 0, layer=1)
    plain = replace(router, rows=(replace(router.rows[0], slope=np.float32(1), offset=np.float32(0)),))

    def surprise(of):
        odds_P = of.log_odds(features_PH[400:])[:, 0]
        return float((np.logaddexp(0, odds_P) - solved_P[400:] * odds_P).mean())

    assert router.rows[0].slope > 1.5
    assert surprise(router) < surprise(plain) - 0.02


def test_where_nothing_can_be_told_apart_the_base_rate_is_said():
    rng = np.random.default_rng(3)
    features_PH = rng.normal(size=(300, 40)).astype(np.float32)
    solved_AP = np.stack([np.full(300, 0.25), np.zeros(300), np.ones(300)])
    chances_PA = Router.fit(features_PH, solved_AP, NAMES, SETTINGS, 0, layer=1).probabilities(features_PH)
    # all 300 are set aside in turn: Platt's targets are 0 + 1 / 302 and 301 / 302; a quarter is
    # 0.25 (76 / 77) + 0.75 / 227 = 0.2501
    np.testing.assert_allclose(chances_PA, np.tile([0.2501, 1 / 302, 301 / 302], (300, 1)), atol=2e-3)


def test_a_row_is_never_turned_round():
    """Held-out problems that say the opposite make its chances equal, not inverted; 30 of 60 are solved."""
    raw_P = np.repeat([-2.0, 2.0], 30)
    slope, offset = _calibration(raw_P, (raw_P < 0).astype(float))
    assert 0 < slope <= 1e-3 and abs(offset) < 1e-3
    right, _ = _calibration(raw_P, (raw_P > 0).astype(float))
    # Platt: 31 of 32 at odds of 2 times the slope
    assert float(right) == pytest.approx(odds(31 / 32) / 2, rel=1e-3)


def test_a_fit_goes_on_while_patience_lasts_and_its_best_step_stays():
    """Patience of 1 ends it at the first step that is no better; in 30 draws of noise and signal a longer one is never
    worse on the problems set aside, and sometimes better."""
    better = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        features_PH = rng.normal(size=(60, 30)) * np.geomspace(3, 0.1, 30)
        solved_P = (rng.random(60) < 1 / (1 + np.exp(-2 * features_PH[:, 20:].sum(axis=1)))).astype(float)
        parts = features_PH[:40], solved_P[:40], features_PH[40:], solved_P[40:]
        lost = []
        for patience in (1, 30):
            weights_H, bias, _ = _early_stopped(*parts, RouterSettings(patience=patience))
            odds_P = features_PH[40:] @ weights_H + bias
            lost.append(float((np.logaddexp(0, odds_P) - solved_P[40:] * odds_P).mean()))
        assert lost[1] <= lost[0] + 1e-6
        better += lost[1] < lost[0] - 1e-3
    assert better


def test_a_row_knows_nothing_of_the_others():
    """Fitted together, one after the other, or in another order: the same bytes; a removed one leaves the others."""
    features_PH, solved_AP, _ = world(problems=120)
    whole = Router.fit(features_PH, solved_AP, NAMES, SETTINGS, 0, layer=2)
    grown = Router.fit(features_PH, solved_AP[:1], NAMES[:1], SETTINGS, 0, layer=2)
    for name, solved_P in zip(NAMES[1:], solved_AP[1:], strict=True):
        before = [bytes_of(row) for row in grown.rows]
        odds_PA = grown.log_odds(features_PH)
        grown = grown.with_arm(name, features_PH, solved_P, SETTINGS, 0)
        assert [bytes_of(row) for row in grown.rows[:-1]] == before
        assert grown.log_odds(features_PH)[:, :-1].tobytes() == odds_PA.tobytes()
    assert list(map(bytes_of, grown.rows)) == list(map(bytes_of, whole.rows))
    other = Router.fit(features_PH, solved_AP[[0, 2, 1]], ("base", "rates", "sums"), SETTINGS, 0, layer=2)
    assert bytes_of(other.rows[1]) == bytes_of(whole.rows[2])
    left = whole.without("sums")
    assert left.names == ("base", "rates") and bytes_of(left.rows[1]) == bytes_of(whole.rows[2])
    assert left.mean_H is whole.mean_H and left.scale_H is whole.scale_H


def test_an_arm_that_comes_later_is_standardised_as_the_first_were():
    """On other problems, far away: mean and scale are those of the first fit."""
    router = fitted(problems=120)
    features_PH, solved_AP, _ = world(problems=90, seed=7)
    more = router.with_arm("new", features_PH * 3, solved_AP[1], SETTINGS, 0)
    assert more.mean_H.tobytes() == router.mean_H.tobytes() and more.scale_H.tobytes() == router.scale_H.tobytes()
    assert more.names == (*NAMES, "new") and len(more.rows) == 4


def test_a_problem_is_routed_alike_whatever_stands_beside_it():
    router, (features_PH, _, _) = fitted(problems=120), world(problems=57, seed=4)
    whole = router.log_odds(features_PH)
    for at in (0, 13, 56):
        assert router.log_odds(features_PH[at : at + 1]).tobytes() == whole[at : at + 1].tobytes()
    assert router.log_odds(features_PH[::-1]).tobytes() == whole[::-1].tobytes()


def test_problems_that_were_not_graded_are_left_out_of_an_arms_row_alone():
    features_PH, solved_AP, _ = world(problems=120)
    holes_AP = solved_AP.copy()
    holes_AP[1, ::3] = np.nan
    router = Router.fit(features_PH, holes_AP, NAMES, SETTINGS, 0, layer=2)
    whole = Router.fit(features_PH, solved_AP, NAMES, SETTINGS, 0, layer=2)
    same = [bytes_of(a) == bytes_of(b) for a, b in zip(router.rows, whole.rows, strict=True)]
    assert same == [True, False, True]


def test_equal_inputs_give_equal_bytes_and_the_seed_says_who_is_set_aside(tmp_path):
    written = []
    for at, seed in enumerate((0, 0, 1)):
        place = tmp_path / str(at)
        place.mkdir()
        fitted(seed=seed, problems=120).write(place)
        written.append([(place / file).read_bytes() for file in (TENSORS, CONFIG)])
        assert sorted(path.name for path in place.iterdir()) == sorted((TENSORS, CONFIG))
        assert sum(map(len, written[-1])) < 4096, "a few kB"
    assert written[0] == written[1] != written[2]


@pytest.mark.parametrize(
    ("odds_A", "threshold", "arm"),
    [
        ((0.0, 1.0, 2.0), 0.0, 2),
        ((0.0, 2.0, 2.0), 0.0, 1),  # the earlier of equals
        ((2.0, 2.0, 1.0), 0.0, 0),
        ((2.0, 2.0, 2.0), 0.5, 0),
        ((odds(0.5), odds(0.59), odds(0.4)), 0.1, 0),  # 9 points are too few
        ((odds(0.5), odds(0.61), odds(0.4)), 0.1, 1),  # 11 are enough
        ((odds(0.5), odds(0.999), odds(0.9)), 0.5, 0),
        ((3.0, 1.0, 2.0), 0.0, 0),
        ((90.0, 80.0, 100.0), 0.0, 2),  # all are certain: the odds decide
    ],
)
def test_the_likeliest_arm_answers_but_the_base_where_no_expert_is_clearly_better(odds_A, threshold, arm):
    assert replace(fixed(odds_A), threshold=threshold).route(ANY).arm_P.tolist() == [arm]


def test_a_threshold_of_one_asks_the_base_alone_and_a_panel_may_have_no_expert():
    assert set(replace(fitted(problems=120), threshold=1.0).route(world()[0]).arm_P) == {0}
    assert fixed((0.0,), ("base",)).route(ANY).arm_P.tolist() == [0]


def test_shares_are_the_softmax_of_the_odds():
    """Odds 1 : 2 : 5 are 1/8, 2/8, 5/8."""
    shares_PA = fixed(np.log([1, 2, 5])).route(ANY).shares_PA
    np.testing.assert_allclose(shares_PA, [[0.125, 0.25, 0.625]], rtol=1e-6)
    np.testing.assert_allclose(fitted(problems=120).route(world()[0]).shares_PA.sum(axis=1), 1)


def test_it_is_read_as_it_was_written(tmp_path):
    router, features_PH = fitted(problems=120), world()[0]
    router.write(tmp_path)
    read = Router.read(tmp_path, NAMES, 24)
    assert (read.names, read.layer) == (NAMES, 2)
    assert read.log_odds(features_PH).tobytes() == router.log_odds(features_PH).tobytes()
    again = tmp_path / "again"
    again.mkdir()
    read.write(again)
    assert all((again / file).read_bytes() == (tmp_path / file).read_bytes() for file in (TENSORS, CONFIG))


def test_a_renamed_arm_is_the_same_under_another_name():
    router = fitted(problems=120)
    renamed = router.renamed("sums", "adding")
    assert renamed.names == ("base", "adding", "rates") and renamed.rows == router.rows
    assert renamed.renamed("adding", "sums").names == NAMES


def damaged(folder, how):
    if how == "no config":
        (folder / CONFIG).unlink()
    elif how == "no tensors":
        (folder / TENSORS).unlink()
    elif how == "cut":
        (folder / TENSORS).write_bytes((folder / TENSORS).read_bytes()[:-40])
    elif how == "another":
        fitted(problems=120, seed=1).write(folder / "other")
        (folder / "other" / TENSORS).replace(folder / TENSORS)
    elif how == "no json":
        (folder / CONFIG).write_text("{")
    elif how == "list":
        (folder / CONFIG).write_text("[]")
    else:
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(config | {"arms": how}))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("no config", rf"holds no router \({CONFIG} is missing\); train the router again with a `route` stage"),
        ("no tensors", rf"holds no router \({TENSORS} is missing\)"),
        ("cut", r"is no readable router \(it is cut, or of another router\); train"),
        ("another", r"is no readable router \(it is cut, or of another router\); train"),
        ("no json", r"is no readable router \("),
        ("list", r"is no readable router \("),
        (["base", "sums"], r"names base, sums: it was edited"),
        (["base", "sums", "sums"], r"names base, sums, sums: it was edited"),
        (["sums", "base", "rates"], r"it was edited"),
        (["base", "sums", "other"], r"routes to base, sums, other, but the panel holds base, sums, rates; train"),
    ],
)
def test_a_damaged_router_is_refused(tmp_path, how, said):
    (tmp_path / "other").mkdir()
    fitted(problems=120).write(tmp_path)
    damaged(tmp_path, how)
    with pytest.raises(RouterError, match=said):
        Router.read(tmp_path, NAMES)


def test_a_router_of_another_base_or_panel_is_refused(tmp_path):
    router = fitted(problems=120)
    router.write(tmp_path)
    with pytest.raises(RouterError, match="made for a base of hidden size 24, this one has 64; train"):
        Router.read(tmp_path, NAMES, 64)
    with pytest.raises(RouterError, match="routes to base, sums, rates, but the panel holds base, rates, sums"):
        Router.read(tmp_path, ("base", "rates", "sums"))
    with pytest.raises(RouterError, match="made for 24 numbers per prompt, these are 2"):
        router.probabilities(ANY)


def test_what_cannot_be_fitted_is_said():
    features_PH, solved_AP, _ = world(problems=40)

    def fit(solved_AP=solved_AP, names=NAMES, features_PH=features_PH):
        return Router.fit(features_PH, solved_AP, names, SETTINGS, 0, layer=1)

    for names in (NAMES[1:], ()):
        with pytest.raises(RouterError, match="the first arm must be 'base', not"):
            fit(solved_AP[: len(names)], names)
    with pytest.raises(RouterError, match="there is an arm 'sums' already"):
        fit(names=("base", "sums", "sums"))
    with pytest.raises(RouterError, match=r"is \(2, 40\), not 3 arms x 40 problems"):
        fit(solved_AP[:2])
    with pytest.raises(RouterError, match="arm 'sums': shares of solved samples lie between 0 and 1"):
        fit(solved_AP * [[1], [8], [1]])
    with pytest.raises(RouterError, match="too few problems to learn from"):
        fit(solved_AP[:, :1], features_PH=features_PH[:1])
    with pytest.raises(RouterError, match="hidden states of 1 of 40 prompts are no numbers"):
        fit(features_PH=np.where(np.arange(40)[:, None] == 3, np.nan, features_PH))
    nothing_AP = solved_AP.copy()
    nothing_AP[2] = np.nan
    with pytest.raises(
        RouterError, match=r"arm 'rates' has too few problems to learn from and be calibrated on \(0 of 40"
    ):
        fit(nothing_AP)
    router = fit()
    with pytest.raises(RouterError, match=r"there is no arm 'sum' \(base, sums, rates\); did you mean 'sums'"):
        router.without("sum")
    with pytest.raises(RouterError, match="'base' cannot be removed"):
        router.without("base")
    with pytest.raises(RouterError, match="there is an arm 'rates' already"):
        router.renamed("sums", "rates")
    with pytest.raises(RouterError, match="'base' cannot be renamed"):
        router.renamed("base", "x")


def test_features_that_do_not_vary_do_not_matter():
    """All prompts alike in one number, and in another but for rounding."""
    features_PH, solved_AP, _ = world(problems=120)
    features_PH[:, 3] = 7.0
    features_PH[:, 4] = 1000 * (1 + 1e-7 * (np.arange(120) % 2))
    router = Router.fit(features_PH, solved_AP, NAMES, SETTINGS, 0, layer=1)
    moved_PH = features_PH.copy()
    moved_PH[:, 3:5] += 0.001
    np.testing.assert_allclose(router.probabilities(moved_PH), router.probabilities(features_PH), atol=1e-3)


WRONG = (("set_aside", 0.0), ("set_aside", 1.0), ("threshold", 1.5), ("l2", -1.0), ("layer", -1), ("patience", 0),
         ("max_steps", 0), ("samples", 4))  # fmt: skip


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_settings_out_of_their_range_are_refused(key, value):
    with pytest.raises(ValidationError, match=key):
        RouterSettings(**{key: value})
