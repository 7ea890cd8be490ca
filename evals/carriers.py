r"""Where two policies are compared: carriers, which are answers that do not change, and places in them.

A carrier is one prompt with one answer, by either policy. So many are taken from each stratum, by who wrote it, whether
it is right and how long it is, so that a policy that answers better, or at greater length, is not compared on its own
kind of answers above all. A place is the number of a token in the answer: what is compared is what both policies say of
it, given everything before it. Both are drawn by a seed, whatever the order of the answers.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Literal

import numpy as np

from rewards.formats import BOX

if TYPE_CHECKING:
    from evals.settings import Places, ProbeSettings

Writer = Literal["before", "after"]
PlaceKind = Literal["regular", "boxed", "correction", "declaration", "random"]


class ProbeError(ValueError):
    """There is nothing to compare two policies on; the message says why."""

    user_message = True


@dataclass(frozen=True)
class Answer:
    """What a policy answered to a problem.

    Fields:
        writer: which of the two policies.
        prompt, tokens: ids, the end token included.
        correct: None where it could not be judged.
    """

    writer: Writer
    problem_id: str
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    correct: bool | None


@dataclass(frozen=True)
class Carrier:
    """An answer that was taken, and the band of its length, 0 the shortest."""

    answer: Answer
    band: int


@dataclass(frozen=True)
class Place:
    """A token of an answer by its number, and every kind of place that it is."""

    at: int
    kinds: tuple[PlaceKind, ...]


def choose_carriers(answers: Sequence[Answer], settings: ProbeSettings, seed: int) -> tuple[Carrier, ...]:
    """At most `settings.carriers` of each stratum, ordered by stratum and problem.

    The bands of length have equally many of all answers, of both policies together; equal lengths share a band. What
    was not judged, and empty answers, are left out.

    Raises:
        ProbeError: nothing is left.
        ValueError: a policy answered a problem twice.
    """
    known = [answer for answer in answers if answer.correct is not None and answer.tokens]
    if not known:
        raise ValueError(
            f"probe: none of {len(answers)} answers was judged, so there is nothing to compare policies on"
        )
    if len({(answer.writer, answer.problem_id) for answer in known}) < len(known):
        raise ValueError("probe: a policy answered a problem twice")
    lengths = [len(answer.tokens) for answer in known]
    edges = np.quantile(lengths, np.arange(1, settings.length_bands) / settings.length_bands, method="inverted_cdf")
    strata: dict[tuple[Writer, bool, int], list[Carrier]] = {}
    for answer, length in zip(known, lengths, strict=True):
        band = int(np.searchsorted(edges, length, side="left"))
        strata.setdefault((answer.writer, answer.correct, band), []).append(Carrier(answer, band))
    return tuple(one for key in sorted(strata) for one in _drawn(strata[key], settings.carriers, f"{seed}/{key}"))


def _drawn(carriers: Sequence[Carrier], count: int, seed: str) -> list[Carrier]:
    by_problem = sorted(carriers, key=lambda one: one.answer.problem_id)
    chosen = random.Random(seed).sample(range(len(by_problem)), min(count, len(by_problem)))
    return [by_problem[at] for at in sorted(chosen)]


def choose_places(pieces: Sequence[str], settings: Places, seed: int | str) -> tuple[Place, ...]:
    """The places of an answer, each once, in their order.

    Args:
        pieces: the text of each token; joined, they are the answer.
        seed: of the random places. The others do not depend on it.
    """
    kinds: dict[int, list[PlaceKind]] = {}
    for at, kind in _fixed(pieces, settings):
        if kind not in kinds.setdefault(at, []):
            kinds[at].append(kind)
    rest = [at for at in range(len(pieces)) if at not in kinds]
    for at in random.Random(f"{seed}/places").sample(rest, min(settings.random, len(rest))):
        kinds[at] = ["random"]
    return tuple(Place(at, tuple(kinds[at])) for at in sorted(kinds))


def _fixed(pieces: Sequence[str], settings: Places) -> Iterator[tuple[int, PlaceKind]]:
    count = len(pieces)
    # not from the first token on: there both policies' answers to a problem are one and the same place
    yield from ((at, "regular") for at in range(settings.every // 2, count, settings.every))
    text, ends = "".join(pieces), list(accumulate(map(len, pieces)))
    for found in re.finditer(re.escape(BOX), text):
        at = _token_at(ends, found.start())
        near = range(max(0, at - settings.near_box), min(count, at + settings.near_box + 1))
        yield from ((one, "boxed") for one in near)
    words: tuple[tuple[PlaceKind, tuple[str, ...]], ...] = (
        ("correction", settings.corrections),
        ("declaration", settings.declarations),
    )
    for kind, listed in words:
        pattern = rf"(?<!\w)(?:{'|'.join(map(re.escape, listed))})(?!\w)"
        yield from ((_token_at(ends, found.start()), kind) for found in re.finditer(pattern, text, re.IGNORECASE))


def _token_at(ends: Sequence[int], character: int) -> int:
    """The token that has this character; `ends` are the tokens' ends in the text."""
    return int(np.searchsorted(ends, character, side="right"))
