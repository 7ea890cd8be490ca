"""models/population.py: what a window says, and when it follows that a panel grows or is pruned."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from models.population import (
    ExpertShape,
    PopulationError,
    Unsolved,
    Window,
    decide,
    structure_hash,
    window,
)
from models.settings import GrowthSettings

nan = math.nan
RULES = GrowthSettings(unsolved_above=0.2, entropy_above=0.8, loss_above=0.3, load_below=0.05, windows=3, cooldown=2,
                       at_most=4, at_least=2)  # fmt: skip
EXPERTS = ("add", "mul")


def seen(unsolved=0, entropy=0.1, loss=0.1, load=None, domains=None):
    """A window of 100 problems; `unsolved` of them of one domain."""
    load = load or {"base": 0.2, "add": 0.4, "mul": 0.4}
    return Window(100, domains or {"sums": Unsolved(100, unsolved)}, load, entropy, loss, 2.0)


def test_a_window_by_hand():
    solved_AP = np.array([[0.0, 0.5, 0.0, nan, nan], [0.0, 0.0, 1.0, 0.0, nan]])
    shares_PA = np.array([[0.5, 0.5], [1.0, 0.0], [0.5, 0.5], [1.0, 0.0], [1.0, 0.0]])
    found = window(("base", "add"), ["b", "a", "a", "b", "b"], solved_AP, np.array([1, 0, 1, 1, 0]), shares_PA)
    # problem 0 is unsolved; 1 and 2 have an arm that solves them; 3 has one that failed and one that nobody judged, and
    # 4 none that was judged: of 3 known ones 1 is unsolved
    assert found.domains == {"a": Unsolved(2, 0), "b": Unsolved(1, 1)}
    assert found.unsolved == pytest.approx(1 / 3)
    assert found.load == {"base": 0.4, "add": 0.6}
    # routed: 0, 0.5, 1, 0, nan
    assert found.loss == pytest.approx(1 - 1.5 / 4)
    # two of five routings are uniform, three decided
    assert found.entropy == pytest.approx(2 / 5)
    # mean shares (0.8, 0.2): exp(-(0.8 ln 0.8 + 0.2 ln 0.2)) = exp(0.500402) = 1.649385
    assert found.effective == pytest.approx(1.649385, abs=1e-6)
    assert Window.from_json(found.to_json()) == found
    given_loss = window(
        ("base", "add"), ["a"], np.array([[nan], [nan]]), np.array([0]), np.array([[1.0, 0.0]]), loss=2.5
    )
    assert given_loss.loss == 2.5 and given_loss.unsolved == 0


def test_limits_of_entropy_and_effective_arms():
    def of(shares_PA):
        arms = shares_PA.shape[1]
        return window([f"e{i}" for i in range(arms)], ["a"] * 6, np.ones((arms, 6)), np.zeros(6, int), shares_PA)

    for arms in (1, 2, 5, 7):
        uniform, decided = of(np.full((6, arms), 1 / arms)), of(np.eye(arms)[np.zeros(6, int)])
        assert uniform.entropy == pytest.approx(float(arms > 1)) and uniform.effective == pytest.approx(arms)
        assert decided.entropy == 0 and decided.effective == 1


@pytest.mark.parametrize(
    "change, told",
    [
        ({"route_P": np.array([0, 2])}, "index"),
        ({"route_P": np.array([0, -1])}, "index"),
        ({"route_P": np.array([0.0, 1.0])}, "index"),
        ({"route_P": np.array([0])}, "shapes|cannot"),
        ({"solved_AP": np.array([[0, 2], [1, 1]])}, "between 0 and 1"),
        ({"solved_AP": np.full((2, 2), nan)}, "no loss"),
        ({"shares_PA": np.array([[0.5, 0.4], [1, 0]])}, "sum to 1"),
        ({"shares_PA": np.array([[1.5, -0.5], [1, 0]])}, "not negative"),
        ({"shares_PA": np.full((2, 2), nan)}, "sum to 1"),
        ({"names": ("base", "base")}, "different names"),
        ({"domains": []}, "0 problems"),
    ],
)  # fmt: skip
def test_what_is_no_window_is_refused(change, told):
    sound = {"names": ("base", "add"), "domains": ["a", "b"], "solved_AP": np.ones((2, 2)),
             "route_P": np.array([0, 1]), "shares_PA": np.eye(2)}  # fmt: skip
    assert window(**sound).problems == 2
    with pytest.raises(ValueError, match=told):
        window(**(sound | change))


@pytest.mark.parametrize(
    "change",
    [{"entropy": 1.2}, {"entropy": None}, {"loss": -0.1}, {"problems": 0}, {"problems": 99}, {"effective": 9.0},
     {"load": {"base": 0.5}}, {"load": {"base": 1.5, "add": -0.5}}, {"domains": {"a": {"problems": 1, "unsolved": 2}}}],
)  # fmt: skip
def test_a_window_edited_by_hand_is_refused(change):
    with pytest.raises(ValueError):
        Window.from_json(json.dumps(json.loads(seen().to_json()) | change))
    for loss in (nan, math.inf):
        with pytest.raises(ValueError, match="loss"):
            seen(loss=loss)


def test_growing_by_what_no_arm_solves():
    windows = [seen(unsolved=n) for n in (0, 21, 30, 25)]
    found = decide(windows, [], EXPERTS, RULES)
    assert (found.action, found.domain, found.expert) == ("grow", "sums", None)
    assert "0.210, 0.300, 0.250" in found.reason and "limit 0.2" in found.reason and "76 of the 76" in found.reason
    # exactly the limit is not above it
    assert decide([*windows[:-1], seen(unsolved=20)], [], EXPERTS, RULES).action == "stay"


def test_growing_by_entropy_takes_the_loss_too():
    def of(entropy, loss):
        return decide([seen(unsolved=5, entropy=entropy, loss=loss)] * 3, [], EXPERTS, RULES)

    assert of(0.9, 0.4).action == "grow"
    assert of(0.9, 0.3).action == of(0.8, 0.4).action == of(0.1, 0.9).action == "stay"


def test_one_signal_must_hold_throughout():
    """Unsolved problems in two windows and a hesitant router in the third are not three windows in a row of either."""
    mixed = [seen(unsolved=30), seen(unsolved=30), seen(unsolved=5, entropy=0.9, loss=0.5)]
    assert decide(mixed, [], EXPERTS, RULES).action == "stay"


def test_a_hesitant_router_over_solved_problems_needs_no_new_expert():
    found = decide([seen(entropy=0.95, loss=0.6)] * 3, [], EXPERTS, RULES)
    assert found.action == "stay" and "router" in found.reason


def test_the_domain_with_most_unsolved_problems():
    def of(a, b):
        return seen(domains={"b": Unsolved(20, b), "a": Unsolved(80, a)})

    # 11 of b is more than half of it, but 12 of a are more problems; over three windows 36 against 33
    assert decide([of(12, 11)] * 3, [], EXPERTS, RULES).domain == "a"
    # summed over the windows: 40 + 5 + 5 = 50 against 3 x 18 = 54, though a has the largest window
    assert decide([of(40, 18), of(5, 18), of(5, 18)], [], EXPERTS, RULES).domain == "b"
    assert decide([of(15, 15)] * 3, [], EXPERTS, RULES).domain == "a"


def test_pruning_the_least_used():
    experts = ("add", "mul", "sub")

    def of(mul, sub):
        return seen(unsolved=50, load={"base": 0.3, "add": 0.7 - mul - sub, "mul": mul, "sub": sub})

    found = decide([of(0.04, 0.02), of(0.01, 0.02), of(0.02, 0.02)], [], experts, RULES)
    # means 0.0233 and 0.02; it goes before one comes for the half that nobody solves
    assert (found.action, found.expert, found.domain) == ("prune", "sub", None)
    assert "0.020, 0.020, 0.020" in found.reason
    assert decide([of(0.02, 0.02)] * 3, [], experts[::-1], RULES).expert == "mul"
    # 0.05 is not below 0.05
    assert decide([of(0.04, 0.3), of(0.05, 0.3), of(0.04, 0.3)], [], experts, RULES).action == "grow"
    # the base is no expert, however little it does
    idle = seen(load={"base": 0.0, "add": 0.3, "mul": 0.3, "sub": 0.4})
    assert decide([idle] * 3, [], experts, RULES).action == "stay"


def test_an_expert_that_is_needed_stays_and_none_has_to_go_before_another_comes():
    idle = seen(unsolved=50, load={"base": 0.3, "add": 0.7, "mul": 0.0, "sub": 0.0})
    experts = ("add", "mul", "sub")
    assert decide([idle] * 3, [], experts, RULES).expert == "mul"
    assert decide([idle] * 3, [], experts, RULES, needed={"mul"}).expert == "sub"
    assert decide([idle] * 3, [], experts, RULES, needed={"mul", "sub"}).action == "grow"


def test_a_cooldown_by_hand():
    windows = [seen(unsolved=50)] * 9
    # changed after 5 windows, cooldown 2 and 3 windows in a row: the first decision is with 8
    actions = [decide(windows[:n], [2, 5], EXPERTS, RULES).action for n in (5, 6, 7, 8, 9)]
    assert actions == ["stay", "stay", "stay", "grow", "grow"]
    patient = RULES.model_copy(update={"cooldown": 3})
    assert decide(windows[:8], [5], EXPERTS, patient).action == "stay"
    eager = RULES.model_copy(update={"cooldown": 0, "windows": 1})
    assert decide(windows[:5], [5], EXPERTS, eager).action == "stay"  # nothing was seen of this panel
    assert decide(windows[:6], [5], EXPERTS, eager).action == "grow"
    assert decide([], [], EXPERTS, eager).action == "stay"


def test_a_window_of_another_panel_is_refused():
    windows = [seen(unsolved=50)] * 3
    with pytest.raises(PopulationError, match=r"window 0 has no load of expert 'new', only of add, base, mul"):
        decide(windows, [], (*EXPERTS, "new"), RULES)
    for change in (-1, 4):
        with pytest.raises(ValueError, match="cannot have been among 3 windows"):
            decide(windows, [change], EXPERTS, RULES)


NAMES = ("e0", "e1", "e2", "e3", "e4")


@st.composite
def any_windows(draw, count=None):
    count = draw(st.integers(0, 8)) if count is None else count
    made = []
    for _ in range(count):
        idle = draw(st.sets(st.sampled_from(NAMES), max_size=4))
        busy = {name: 0.8 / (5 - len(idle)) for name in NAMES if name not in idle}
        load = {"base": 0.2} | {name: busy.get(name, 0.0) for name in NAMES}
        domains = {name: Unsolved(50, draw(st.sampled_from([0, 5, 30]))) for name in ("x", "y")}
        high = st.sampled_from([0.1, 0.95])
        made.append(Window(100, domains, load, draw(high), draw(high), 2.0))
    return made


rules = st.builds(
    lambda windows, cooldown, least, more: GrowthSettings(
        windows=windows, cooldown=cooldown, at_least=least, at_most=max(1, least + more)
    ),
    st.integers(1, 3), st.integers(0, 4), st.integers(0, 4), st.integers(0, 3),
)  # fmt: skip
panels = st.integers(0, 5).map(lambda count: NAMES[:count])
MANY = settings(max_examples=150, deadline=None)


@MANY
@given(any_windows(), rules, panels, st.data())
def test_nothing_is_decided_in_the_cooldown_or_of_too_few_windows(windows, rules, panel, data):
    change = data.draw(st.integers(0, len(windows)))
    found = decide(windows, [change], panel, rules)
    if len(windows) - change <= max(rules.cooldown, rules.windows - 1):
        assert found.action == "stay"


@MANY
@given(any_windows(), rules, panels)
def test_the_bounds_hold(windows, rules, panel):
    found = decide(windows, [], panel, rules)
    assert (found.action == "grow") == (found.domain is not None)
    assert (found.action == "prune") == (found.expert is not None)
    if found.action == "grow":
        assert len(panel) + 1 <= rules.at_most
    if found.action == "prune":
        assert len(panel) - 1 >= rules.at_least and found.expert in panel


@MANY
@given(any_windows(6), any_windows(6), rules, panels, st.data())
def test_only_the_last_windows_count(windows, others, rules, panel, data):
    changes = data.draw(st.lists(st.integers(0, 6), max_size=2))
    swapped = [*others[: 6 - rules.windows], *windows[6 - rules.windows :]]
    assert decide(windows, changes, panel, rules) == decide(swapped, changes, panel, rules)
    assert decide(windows, changes, panel, rules) == decide(windows, changes[::-1], panel[::-1], rules)


@MANY
@given(st.lists(st.floats(0, 1), min_size=3, max_size=6), st.lists(st.floats(0, 0.3), min_size=6, max_size=6))
def test_high_entropy_with_low_loss_stays(entropies, losses):
    windows = [seen(unsolved=int(50 * loss), entropy=e, loss=loss) for e, loss in zip(entropies, losses, strict=False)]
    assert decide(windows, [], EXPERTS, RULES).action == "stay"


@MANY
@given(st.integers(2, 5), st.data())
def test_a_spike_shorter_than_the_windows_stays(needed, data):
    """Whatever is seen in fewer windows than are needed, with calm ones around it."""
    rules = RULES.model_copy(update={"windows": needed, "at_least": 0})
    spike = data.draw(st.integers(1, needed - 1))
    before, after = data.draw(st.integers(1, 5)), data.draw(st.integers(0, 5))
    hot = seen(unsolved=90, entropy=1.0, loss=1.0, load={"base": 1.0, "add": 0.0, "mul": 0.0})
    windows = [seen()] * before + [hot] * spike + [seen()] * after
    assert decide(windows, [], EXPERTS, rules).action == "stay"
    # and is acted on as soon as it is not shorter
    assert decide([*windows[: before + spike], *[hot] * (needed - spike)], [], EXPERTS, rules).action == "prune"


def test_settings_that_no_panel_can_meet_are_refused():
    with pytest.raises(ValidationError, match=r"at_least \(5\) must not be above at_most \(4\)"):
        GrowthSettings(at_least=5, at_most=4)


def test_the_structure_is_what_it_is_built_of():
    add, mul = ExpertShape(8, 16, ("q_proj", "v_proj")), ExpertShape(4, 8.0, ("q_proj",))
    one = structure_hash("base", {"add": add, "mul": mul}, ("base", "add", "mul"))
    turned = {"mul": mul, "add": ExpertShape(8, 16.0, ("v_proj", "q_proj"))}
    assert one == structure_hash("base", turned, ["base", "add", "mul"])
    others = [
        structure_hash("other", {"add": add, "mul": mul}, ("base", "add", "mul")),
        structure_hash("base", {"add": add}, ("base", "add", "mul")),
        structure_hash("base", {"add": add, "mul": mul}, ("base", "mul", "add")),
        structure_hash("base", {"add": add, "div": mul}, ("base", "add", "mul")),
        structure_hash("base", {"add": mul, "mul": add}, ("base", "add", "mul")),
        structure_hash("base", {"add": ExpertShape(8, 32, add.targets), "mul": mul}, ("base", "add", "mul")),
        structure_hash("base", {"add": ExpertShape(8, 16, ("q_proj",)), "mul": mul}, ("base", "add", "mul")),
    ]
    assert len({one, *others}) == 8
    # added and removed again
    grown = {"add": add, "mul": mul, "new": mul}
    del grown["new"]
    assert structure_hash("base", grown, ("base", "add", "mul")) == one


def test_no_torch_is_needed():
    text = "import sys, models.population; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", text], timeout=60).returncode == 0
