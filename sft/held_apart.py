"""Traces that are set aside from imitation, to tell learning from memorising, and as many that are not to compare with.

By problem: other traces of a problem that is trained on would be half known. Which ones are taken follows from the
problems' texts alone, so that arms and seeds on the same traces set the same aside.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sft.distill import Trace

SHARE = 10
"""One problem in so many is set aside, at most."""
MOST = 128
"""Problems set aside, at most, so that reading them takes little beside an evaluation."""


@dataclass(frozen=True)
class HeldApart:
    """Traces in two parts.

    Fields:
        trained: to train on, in their order.
        aside: one trace of each problem set aside, the first; beside: the same of as many problems trained on.
        gone: traces set aside in all.
    """

    trained: tuple[Trace, ...]
    aside: tuple[Trace, ...]
    beside: tuple[Trace, ...]
    gone: int


def held_apart(traces: Sequence[Trace]) -> HeldApart:
    """Set a tenth of the problems aside, at most `MOST`; none of fewer than ten."""
    first: dict[str, Trace] = {}
    for trace in traces:
        first.setdefault(trace.question, trace)
    drawn = sorted(first, key=_place)
    count = min(MOST, len(drawn) // SHARE)
    aside = set(drawn[:count])
    trained = tuple(trace for trace in traces if trace.question not in aside)
    return HeldApart(
        trained,
        tuple(first[question] for question in drawn[:count]),
        tuple(first[question] for question in drawn[count : 2 * count]),
        len(traces) - len(trained),
    )


def _place(question: str) -> bytes:
    return hashlib.sha256(f"aside\n{question}".encode("utf-8", "replace")).digest()
