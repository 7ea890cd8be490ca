"""Ask a policy the held-out problems and grade what it writes: greedy and sampled, on the same problems.

The engine samples each problem under a seed of its own, derived from the evaluation's seed and the problem's id, so
neither the order of the problems nor how many there are changes what a problem is answered with, and two policies
are compared under the same random numbers.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import TypeAdapter

from evals.statistics import Interval, PairedDifference, accuracy, paired_difference, pass_at_k
from rewards.formats import Format
from rewards.math.verifier import Verdict, verify_batch
from rewards.problems import Problem

if TYPE_CHECKING:
    from models.engine import Completion, Engine

SHOWN = 4  # sample completions kept of each kind

Kind = Literal["right", "wrong", "truncated"]
Verify = Callable[[Sequence[str], Sequence[str]], Sequence[Verdict]]
GRADES = {Verdict.CORRECT: 1, Verdict.WRONG: 0, Verdict.UNGRADABLE: None}


@dataclass(frozen=True)
class EvaluationSettings:
    """How to sample an evaluation.

    Fields:
        samples: completions per problem in the sampled pass; 1 where `temperature` is 0.
        temperature, top_p, top_k: of the sampled pass; top_k 0 keeps the whole vocabulary.
        max_completion_tokens: a completion that reaches it is truncated.
        confidence: nominal coverage of every interval.
        pass_at_k: the k to report, each at most `samples`.
        greedy: also decode once at temperature 0.
        seed: of the sampling and of the resampling statistics.
        stop_token_ids: end a completion besides the engine's own end-of-turn token.
    """

    samples: int
    temperature: float
    top_p: float
    max_completion_tokens: int
    confidence: float = 0.95
    pass_at_k: tuple[int, ...] = ()
    greedy: bool = True
    seed: int = 0
    top_k: int = 0
    stop_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"evaluate: samples must be at least 1, got {self.samples}")
        if self.temperature < 0:
            raise ValueError(f"evaluate: temperature must not be negative, got {self.temperature}")
        if self.temperature == 0 and self.samples > 1:
            raise ValueError(f"evaluate: {self.samples} samples at temperature 0 are all the same; set samples: 1")
        high = [k for k in self.pass_at_k if not 1 <= k <= self.samples]
        if high:
            raise ValueError(f"evaluate: pass_at_k {high} is outside 1..{self.samples} (samples)")


@dataclass(frozen=True)
class Pass:
    """One decoding of all problems, in the order of `Evaluation.problem_ids`.

    Fields:
        correct: problems x samples of 1 (correct), 0 (wrong), None (ungradable).
        accuracy: with its interval.
        mean_length: tokens per completion.
        truncation_rate: share of completions cut off at `max_completion_tokens`.
        format_rate: share that keep the answer contract (`Format.follows`).
        ungradable: completions the verifier could not judge.
        tokens, seconds: generated in all, and the time the engine took.
    """

    temperature: float
    correct: tuple[tuple[int | None, ...], ...]
    accuracy: Interval
    mean_length: float
    truncation_rate: float
    format_rate: float
    ungradable: int
    tokens: int
    seconds: float

    @property
    def correct_PS(self) -> np.ndarray:
        """`correct` as floats, nan where ungradable."""
        return np.array(self.correct, dtype=float)


@dataclass(frozen=True)
class Sample:
    """A completion to show; a truncated one is `truncated` whether right or wrong."""

    kind: Kind
    problem_id: str
    question: str
    gold: str
    completion: str
    tokens: int


@dataclass(frozen=True)
class Evaluation:
    """What one policy did on the held-out problems.

    `sampled` is the pass that counts; where its temperature is 0, `greedy` is the same pass.
    """

    problem_ids: tuple[str, ...]
    domains: tuple[str, ...]
    sampled: Pass
    greedy: Pass | None
    pass_at_k: dict[int, float] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()
    seed: int = 0

    @property
    def tokens(self) -> int:
        """Completion tokens generated in all passes."""
        return sum(one.tokens for one in self._passes())

    @property
    def seconds(self) -> float:
        """Time the engine took for all passes."""
        return sum(one.seconds for one in self._passes())

    def _passes(self) -> list[Pass]:
        return [self.sampled] if self.greedy in (None, self.sampled) else [self.sampled, self.greedy]

    def to_json(self) -> str:
        """JSON text; `from_json` reads it back to an equal evaluation."""
        return _adapter().dump_json(self).decode()

    @staticmethod
    def from_json(text: str | bytes) -> Evaluation:
        """Read what `to_json` wrote; fields of later versions are ignored.

        Raises:
            ValueError: not an evaluation.
        """
        return _adapter().validate_json(text)


@cache
def _adapter() -> TypeAdapter[Evaluation]:
    return TypeAdapter(Evaluation)


def evaluate(
    engine: Engine,
    problems: Sequence[Problem],
    prompts: Sequence[Sequence[int]],
    settings: EvaluationSettings,
    format: Format,
    *,
    progress: Callable[[int], None] | None = None,
    verify: Verify = verify_batch,
) -> Evaluation:
    """Generate and grade.

    Args:
        engine: holds the policy.
        problems: the held-out problems, ids unique.
        prompts: the token ids of each problem's prompt.
        settings: see `EvaluationSettings`.
        format: the answer contract of the format rate.
        progress: called with the number of completions that have just finished.
        verify: (completions, golds) -> verdicts.

    Raises:
        ValueError: no problems, not one prompt per problem, repeated ids, or nothing gradable.
    """
    from models.engine import Sampling

    ids = tuple(problem.id for problem in problems)
    if not problems:
        raise ValueError("evaluate: there are no problems to evaluate on")
    if len(prompts) != len(problems):
        raise ValueError(f"evaluate: {len(problems)} problems but {len(prompts)} prompts")
    if len(set(ids)) != len(ids):
        raise ValueError(f"evaluate: {len(ids) - len(set(ids))} problem ids are repeated; results are paired by id")

    def decode(samples: int, temperature: float) -> tuple[Pass, tuple[Sample, ...]]:
        sampling = Sampling(
            max_tokens=settings.max_completion_tokens,
            temperature=temperature,
            top_p=settings.top_p if temperature else 1.0,
            top_k=settings.top_k if temperature else 0,
            n=samples,
            stop_token_ids=settings.stop_token_ids,
        )
        seeds = [zlib.crc32(f"{settings.seed}/{id}".encode()) >> 1 for id in ids]
        start = time.perf_counter()
        completions_PS = engine.generate(prompts, sampling, seeds=seeds, progress=progress)
        seconds = time.perf_counter() - start
        return _grade(problems, completions_PS, samples, temperature, seconds, settings, format, verify)

    sampled, shown = decode(settings.samples, settings.temperature)
    greedy = None
    if settings.greedy:
        greedy = sampled if settings.temperature == 0 else decode(1, 0.0)[0]
    return Evaluation(
        problem_ids=ids,
        domains=tuple(problem.domain for problem in problems),
        sampled=sampled,
        greedy=greedy,
        pass_at_k={k: pass_at_k(sampled.correct_PS, k) for k in settings.pass_at_k},
        samples=shown,
        seed=settings.seed,
    )


def compare(after: Evaluation, before: Evaluation, *, greedy: bool = False, seed: int = 0) -> PairedDifference:
    """Paired difference in accuracy, problems matched by id whatever their order.

    Raises:
        ValueError: the evaluations are of different problems, or one has no greedy pass.
    """
    row = {id: at for at, id in enumerate(before.problem_ids)}
    if row.keys() != set(after.problem_ids):
        differing = len(row.keys() ^ set(after.problem_ids))
        raise ValueError(f"compare: the evaluations differ in {differing} problems; evaluate both on the same ones")
    passes = (after.greedy, before.greedy) if greedy else (after.sampled, before.sampled)
    if passes[0] is None or passes[1] is None:
        raise ValueError("compare: an evaluation has no greedy pass")
    order = [row[id] for id in after.problem_ids]
    confidence = passes[0].accuracy.confidence
    return paired_difference(passes[0].correct_PS, passes[1].correct_PS[order], confidence, seed)


def _grade(
    problems: Sequence[Problem],
    completions_PS: Sequence[Sequence[Completion]],
    samples: int,
    temperature: float,
    seconds: float,
    settings: EvaluationSettings,
    format: Format,
    verify: Verify,
) -> tuple[Pass, tuple[Sample, ...]]:
    got = {len(completions) for completions in completions_PS}
    if len(completions_PS) != len(problems) or got != {samples}:
        raise ValueError(f"evaluate: asked for {len(problems)} x {samples} completions, the engine gave {got} each")
    flat = [completion for completions in completions_PS for completion in completions]
    owners = [problem for problem in problems for _ in range(samples)]
    verdicts = verify([completion.text for completion in flat], [problem.gold for problem in owners])
    grades = [GRADES[verdict] for verdict in verdicts]
    correct = tuple(tuple(grades[at : at + samples]) for at in range(0, len(grades), samples))
    tokens = sum(len(completion.token_ids) for completion in flat)
    truncated = sum(completion.finish == "length" for completion in flat)
    done = Pass(
        temperature=temperature,
        correct=correct,
        accuracy=accuracy(np.array(correct, dtype=float), settings.confidence),
        mean_length=tokens / len(flat),
        truncation_rate=truncated / len(flat),
        format_rate=sum(format.follows(completion.text) for completion in flat) / len(flat),
        ungradable=grades.count(None),
        tokens=tokens,
        seconds=seconds,
    )
    return done, _choose(owners, flat, verdicts)


def _choose(
    owners: Sequence[Problem], completions: Sequence[Completion], verdicts: Sequence[Verdict]
) -> tuple[Sample, ...]:
    """The first of each kind, each problem once; always the first problem, so that stages can be set side by side."""
    kept: dict[Kind, list[Sample]] = {"right": [], "wrong": [], "truncated": []}
    seen: set[str] = set()
    for problem, completion, verdict in zip(owners, completions, verdicts, strict=True):
        if problem.id in seen or verdict is Verdict.UNGRADABLE:
            continue
        kind: Kind = "truncated" if completion.finish == "length" else _KIND[verdict]
        if len(kept[kind]) < SHOWN:
            seen.add(problem.id)
            # JSON files may hold lone surrogates, UTF-8 cannot
            texts = (problem.question, problem.gold, completion.text)
            question, gold, text = (part.encode("utf-8", "replace").decode() for part in texts)
            kept[kind].append(Sample(kind, problem.id, question, gold, text, len(completion.token_ids)))
    return tuple(sample for samples in kept.values() for sample in samples)


_KIND: dict[Verdict, Kind] = {Verdict.CORRECT: "right", Verdict.WRONG: "wrong"}
