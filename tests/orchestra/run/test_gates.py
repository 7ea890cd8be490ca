"""Gates, number by number: what is compared with what, on which side the limit lies, and what is said."""

import pytest

from orchestra.config.loading import load_recipe
from orchestra.run.gates import best_so_far, judge, previous, sentence
from orchestra.run.ledger import Fingerprint, LedgerEntry, StageResult


def recipe(**gate):
    limits = ", ".join(f"{key}: {value}" for key, value in gate.items())
    return load_recipe("40d", "embedded", [f"stages.consolidate.gate={{{limits}}}"])


def verdict(gate, **results):
    """Of consolidate, given accuracies (or whole results)."""
    made = recipe(**gate)
    known = {
        name: value if isinstance(value, StageResult) else StageResult(name, "grpo", accuracy=value)
        for name, value in results.items()
    }
    return judge(made, made.stage("consolidate"), known)


@pytest.mark.parametrize(
    ("name", "before"),
    [
        ("traces", "base"),
        ("imitate", "base"),
        ("explore", "imitate"),
        ("consolidate", "explore"),
        ("release", "polish"),
    ],
)
def test_previous_is_the_evaluated_stage_before(name, before):
    """The traces in between are not evaluated; a stage is not its own."""
    assert previous(load_recipe("40d", "embedded"), name) == before


@pytest.mark.parametrize(
    ("limit", "own", "word"),
    [
        (0.0, 0.5, "GO"),  # as good as the other, exactly
        (0.25, 0.75, "GO"),  # better by the limit, exactly
        (0.25, 0.7499, "NO-GO"),
        (0.25, 0.7501, "GO"),
        (-0.25, 0.25, "GO"),
        (-0.25, 0.2499, "NO-GO"),
        (-0.25, 0.9, "GO"),
        (0.0, 0.4999, "NO-GO"),
    ],
)
def test_the_limit_itself_passes(limit, own, word):
    """Against 0.5; halves and quarters are exact."""
    found = verdict({"against": "base", "min_difference": limit}, base=0.5, consolidate=own)
    assert found.word == word
    sign = ">=" if word == "GO" else "<"
    assert found.sentence == (
        f"{word}: accuracy {own:.4f} against 0.5000 of 'base', difference {own - 0.5:+.4f} {sign} {limit:+.4f}"
    )


def test_each_word_means_its_stage():
    accuracies = {"base": 0.1, "imitate": 0.3, "explore": 0.4, "consolidate": 0.35, "polish": 0.9}

    def against(name):
        return verdict({"against": name}, **accuracies)

    assert (against("previous").word, "against 0.4000 of 'explore'" in against("previous").sentence) == ("NO-GO", True)
    assert (against("imitate").word, "against 0.3000 of 'imitate'" in against("imitate").sentence) == ("GO", True)
    assert (against("base").word, "difference +0.2500" in against("base").sentence) == ("GO", True)


def test_the_metric_that_is_asked_for():
    now = StageResult("consolidate", "grpo", accuracy=0.9, greedy_accuracy=0.2, format_rate=0.5)
    then = StageResult("explore", "grpo", accuracy=0.1, greedy_accuracy=0.3, format_rate=0.5)
    words = [verdict({"metric": metric}, consolidate=now, explore=then).word
             for metric in ("accuracy", "greedy_accuracy", "format_rate")]  # fmt: skip
    assert words == ["GO", "NO-GO", "GO"]


def test_what_was_not_measured_is_no_go():
    own = verdict({"metric": "greedy_accuracy"}, explore=0.5, consolidate=0.6)
    assert (own.word, own.sentence) == ("NO-GO", "NO-GO: stage 'consolidate' has no greedy_accuracy")
    now = StageResult("consolidate", "grpo", greedy_accuracy=0.6)
    other = verdict({"metric": "greedy_accuracy"}, explore=0.5, consolidate=now)
    assert (other.word, other.sentence) == ("NO-GO", "NO-GO: stage 'explore' has no greedy_accuracy")
    assert verdict({"against": "imitate"}, explore=0.5, consolidate=0.6).word == "NO-GO", "never ran"
    zero = StageResult("consolidate", "grpo", greedy_accuracy=0.0)
    found = verdict({"metric": "greedy_accuracy", "min_difference": -1}, explore=zero, consolidate=zero)
    assert found.word == "GO", "none right is a measurement"


def test_without_a_gate_there_is_no_verdict():
    made = load_recipe("40d", "embedded")
    assert judge(made, made.stage("explore"), {"explore": StageResult("explore", "grpo", accuracy=0.1)}) is None


def test_the_best_so_far_is_where_its_adapter_is(tmp_path):
    def entries(**accuracies):
        return {
            name: LedgerEntry(f"{at:02}-{name}", Fingerprint({}, {}, {}), {}, StageResult(name, "grpo", accuracy=value))
            for at, (name, value) in enumerate(accuracies.items())
        }

    assert best_so_far(tmp_path, entries(base=None)) == "no stage has been evaluated yet"
    assert best_so_far(tmp_path, entries(base=0.7, explore=0.6)) == "best so far: 'base' with accuracy 0.7000"
    found = entries(base=0.0, traces=None, explore=0.6, polish=0.5)
    (tmp_path / "02-explore" / "adapter").mkdir(parents=True)
    assert best_so_far(tmp_path, found) == (
        f"best so far: 'explore' with accuracy 0.6000, {tmp_path / '02-explore' / 'adapter'}"
    )


def test_a_finished_stage_in_one_line():
    assert sentence(StageResult("a", "distill", seconds=65, extra={"kept": 3.0, "peak_memory_bytes": 1e9})) == (
        "kept 3, 1:05"
    )
    full = StageResult("b", "grpo", accuracy=0.5, low=0.4, high=0.61, difference=-0.02, p_value=0.0321, kl=0.0123,
                       seconds=5, extra={"kl_to_base": 0.5})  # fmt: skip
    assert sentence(full) == "accuracy 0.500 [0.400, 0.610], -0.020 (p = 0.032), KL 0.012, 0:05"
    bare = StageResult("b", "grpo", accuracy=0.0, difference=0.0, kl=0.0)
    assert sentence(bare) == "accuracy 0.000, +0.000, KL 0, 0:00"
