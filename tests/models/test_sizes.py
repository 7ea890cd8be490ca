"""What goes through the model at once: the recipe's number, or the default for CPU and GPU."""

import pytest

from models.sizes import completion_tokens_at_once, traces_at_once


@pytest.mark.parametrize(
    ("asked", "longest", "cuda", "tokens"),
    [
        (None, 150, False, 6144),
        (None, 10_000, False, 10_000),  # a row longer than the default's tokens still goes through, alone
        (None, 2560, True, 16 * 2560),
        (4, 2560, True, 4 * 2560),
        (4, 150, False, 600),
    ],
)
def test_completions(asked, longest, cuda, tokens):
    assert completion_tokens_at_once(asked, longest, cuda=cuda) == tokens


@pytest.mark.parametrize(
    ("asked", "batch", "cuda", "rows"),
    [(None, 16, False, 16), (None, 16, True, 8), (4, 16, True, 4), (None, 6, True, 6)],
)
def test_traces(asked, batch, cuda, rows):
    assert traces_at_once(asked, batch, cuda=cuda) == rows
