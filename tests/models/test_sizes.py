"""Rows at once: the recipe's number where it divides the batch, else what does; the default for CPU and GPU."""

import pytest

from models.sizes import completions_at_once, traces_at_once


@pytest.mark.parametrize(
    ("asked", "batch", "tokens", "cuda", "rows"),
    [
        (None, 256, 96, False, 64),  # 6144 / 96 = 64
        (None, 64, 256, False, 16),  # 6144 / 256 = 24; 16 divides 64
        (None, 64, 10_000, False, 1),  # a completion longer than the default's tokens still goes through, alone
        (None, 24, 96, False, 24),  # never more than there are
        (None, 256, 96, True, 16),
        (8, 256, 96, False, 8),
        (8, 12, 96, False, 6),  # two processes share a batch of 24: 8 does not divide 12
        (7, 13, 96, True, 1),
    ],
)
def test_completions(asked, batch, tokens, cuda, rows):
    assert completions_at_once(asked, batch, tokens, cuda=cuda) == rows


@pytest.mark.parametrize(
    ("asked", "batch", "cuda", "rows"),
    [(None, 16, False, 16), (None, 16, True, 8), (4, 16, True, 4), (None, 6, True, 6)],
)
def test_traces(asked, batch, cuda, rows):
    assert traces_at_once(asked, batch, cuda=cuda) == rows
