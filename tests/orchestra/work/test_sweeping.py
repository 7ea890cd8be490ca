"""What is said where memorising cannot be looked at."""

from types import SimpleNamespace

import pytest

from orchestra.work.sweeping import set_aside
from rewards.formats import FORMATS
from rewards.verdict import Verdict
from sft.distill import Trace
from sft.settings import SftSettings

SETTINGS = SftSettings(data="traces", steps=4, learning_rate=1e-3, evaluate_every=2)


@pytest.mark.parametrize(
    ("problems", "max_length", "said"),
    [(9, 4096, "no traces are set aside"), (20, 8, "longer than 8 tokens: memorisation_above (1.25) is not looked at")],
)
def test_that_memorising_is_not_looked_at_is_said(tokenizer, problems, max_length, said):
    """Of too few problems, or of traces that are not trained on either."""
    lines = []
    context = SimpleNamespace(
        progress=SimpleNamespace(say=lines.append),
        resources=SimpleNamespace(tokenizer=lambda: tokenizer, format=FORMATS["boxed"]),
    )
    traces = [Trace(f"p{i}", f"What is {i} + 1?", "1", "1", Verdict.CORRECT, 1) for i in range(problems)]
    kept, texts = set_aside(context, traces, SETTINGS, max_length)
    assert texts is None and len(kept) == problems - problems // 10 * (problems >= 10) and said in lines[-1]
