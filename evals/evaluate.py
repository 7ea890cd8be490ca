"""Ask a policy the held-out problems and have its answers judged: greedy and sampled, on the same problems.

The engine samples each problem under a seed of its own, derived from the evaluation's seed and the problem's id, so
neither the order of the problems nor how many there are changes what a problem is answered with, and two policies
are compared under the same random numbers.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
from pydantic import TypeAdapter

from evals.statistics import Interval, PairedDifference, accuracy, paired_difference, pass_at_k
from rewards.formats import Format, with_opening
from rewards.problems import Asked, Problem
from rewards.verdict import Judgement, Verdict

if TYPE_CHECKING:
    from evals.settings import Evaluate
    from models.engines.protocol import Completion, Generator, Sampling
    from rewards.domain import Judge

T = TypeVar("T")

SHOWN = 4  # sample completions kept of each kind

Kind = Literal["right", "wrong", "truncated"]
GRADES = {Verdict.CORRECT: 1, Verdict.WRONG: 0, Verdict.UNGRADABLE: None}


@dataclass(frozen=True)
class Pass:
    """One decoding of all problems, in the order of `Evaluation.problem_ids`.

    Fields:
        correct: problems x samples of 1 (correct), 0 (wrong), None (ungradable).
        accuracy: with its interval.
        mean_length: tokens per completion.
        truncation_rate: share of completions cut off at `max_completion_tokens`.
        format_rate: share that keep the answer contract (`Format.follows`).
        ungradable: completions the judge could not judge.
        tokens, seconds: generated in all, and the time the engine took.
        lengths, cut_off: problems x samples of the completions' tokens, and of whether the limit cut them off; empty in
            evaluations that were made without.
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
    lengths: tuple[tuple[int, ...], ...] = ()
    cut_off: tuple[tuple[bool, ...], ...] = ()

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
    pass_at_k: dict[int, float]
    samples: tuple[Sample, ...]
    seed: int

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

    @staticmethod
    def read(path: Path) -> Evaluation:
        """The one in a file.

        Raises:
            OSError: there is none.
            ValueError: it is no evaluation.
        """
        return Evaluation.from_json(path.read_bytes())


@cache
def _adapter() -> TypeAdapter[Evaluation]:
    return TypeAdapter(Evaluation)


def evaluate(
    engine: Generator,
    asked: Asked,
    settings: Evaluate,
    domain: Judge,
    format: Format,
    *,
    seed: int,
    stop_token_ids: tuple[int, ...],
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Generate and grade.

    Args:
        engine: holds the policy.
        asked: the held-out problems, ids unique, and their prompts.
        settings: with `max_completion_tokens` filled in. At temperature 0 all samples are the same: one is drawn.
        domain: judges the completions.
        format: the answer contract of the format rate.
        seed: of the sampling.
        stop_token_ids: end a completion besides the engine's own end-of-turn token.
        progress: called with the number of completions that have just finished.

    Raises:
        ValueError: no problems, not one prompt per problem, repeated ids, pass@k of more samples than are drawn, or
            nothing gradable.
    """
    from models.engines.protocol import Sampling

    problems = asked.problems
    samples = settings.samples if settings.temperature else 1
    ids = tuple(problem.id for problem in problems)
    if not problems:
        raise ValueError("evaluate: there are no problems to evaluate on")
    if len(asked.tokens) != len(problems):
        raise ValueError(f"evaluate: {len(problems)} problems but {len(asked.tokens)} prompts")
    if len(set(ids)) != len(ids):
        raise ValueError(f"evaluate: {len(ids) - len(set(ids))} problem ids are repeated; results are paired by id")
    high = [k for k in settings.pass_at_k if k > samples]
    if high:
        raise ValueError(f"evaluate: pass_at_k {high} is outside 1..{samples} (samples; at temperature 0 there is one)")
    golds = [problem.gold for problem in problems]

    def decode(samples: int, temperature: float) -> tuple[Pass, list[Completion], list[Judgement]]:
        sampling = Sampling(
            max_tokens=settings.max_completion_tokens,
            temperature=temperature,
            top_p=settings.top_p if temperature else 1.0,
            top_k=settings.top_k if temperature else 0,
            min_p=settings.min_p if temperature else None,
            presence_penalty=settings.presence_penalty,
            repetition_penalty=settings.repetition_penalty,
            n=samples,
            stop_token_ids=stop_token_ids,
        )
        completions_PS, seconds = _generate(engine, asked, sampling, seed, progress)
        flat = [completion for completions in completions_PS for completion in completions]
        judgements = domain.judge([one.text for one in flat], [gold for gold in golds for _ in range(samples)])
        prompts = [prompt for prompt in asked.prompts for _ in range(samples)]
        follows = [format.follows(with_opening(prompt, one.text)) for prompt, one in zip(prompts, flat, strict=True)]
        return _summed(flat, judgements, follows, sampling, seconds, settings.confidence), flat, judgements

    sampled, completions, judgements = decode(samples, settings.temperature)
    greedy = None
    if settings.greedy:
        greedy = sampled if settings.temperature == 0 else decode(1, 0.0)[0]
    return Evaluation(
        problem_ids=ids,
        domains=tuple(problem.domain for problem in problems),
        sampled=sampled,
        greedy=greedy,
        pass_at_k={k: pass_at_k(sampled.correct_PS, k) for k in settings.pass_at_k},
        samples=_choose([problem for problem in problems for _ in range(samples)], completions, judgements),
        seed=seed,
    )


def compare(
    after: Evaluation,
    before: Evaluation,
    *,
    of: Literal["sampled", "greedy"] = "sampled",
    seed: int = 0,
    some: bool = False,
) -> PairedDifference:
    """Paired difference in accuracy, problems matched by id whatever their order.

    Args:
        some: `after` may be of some of the problems of `before`, on which both are then compared.

    Raises:
        ValueError: the evaluations are of different problems, or one has no greedy pass.
    """
    row = {id: at for at, id in enumerate(before.problem_ids)}
    differing = len(set(after.problem_ids) - row.keys() if some else row.keys() ^ set(after.problem_ids))
    if differing:
        raise ValueError(f"compare: the evaluations differ in {differing} problems; evaluate both on the same ones")
    passes = (getattr(after, of), getattr(before, of))
    if passes[0] is None or passes[1] is None:
        raise ValueError("compare: an evaluation has no greedy pass")
    order = [row[id] for id in after.problem_ids]
    confidence = passes[0].accuracy.confidence
    return paired_difference(passes[0].correct_PS, passes[1].correct_PS[order], confidence, seed)


def _generate(
    engine: Generator, asked: Asked, sampling: Sampling, seed: int, progress: Callable[[int], None] | None
) -> tuple[Sequence[Sequence[Completion]], float]:
    """Completions, problems x samples, and the seconds the engine took."""
    seeds = [zlib.crc32(f"{seed}/{problem.id}".encode()) >> 1 for problem in asked.problems]
    start = time.perf_counter()
    completions_PS = engine.generate(asked.tokens, sampling, seeds=seeds, progress=progress)
    seconds = time.perf_counter() - start
    got = {len(completions) for completions in completions_PS}
    if len(completions_PS) != len(asked.problems) or got != {sampling.n}:
        wanted = f"{len(asked.problems)} x {sampling.n}"
        raise ValueError(f"evaluate: asked for {wanted} completions, the engine gave {got} each")
    return completions_PS, seconds


def _summed(
    completions: Sequence[Completion],
    judgements: Sequence[Judgement],
    follows: Sequence[bool],
    sampling: Sampling,
    seconds: float,
    confidence: float,
) -> Pass:
    """A pass in numbers; the `sampling.n` completions of a problem stand in a row, `follows` says which keep the
    format."""

    def by_problem(values: Sequence[T]) -> tuple[tuple[T, ...], ...]:
        return tuple(tuple(values[at : at + sampling.n]) for at in range(0, len(values), sampling.n))

    grades = [GRADES[judgement.verdict] for judgement in judgements]
    correct = by_problem(grades)
    lengths = [len(completion.token_ids) for completion in completions]
    cut_off = [completion.finish == "length" for completion in completions]
    return Pass(
        temperature=sampling.temperature,
        correct=correct,
        accuracy=accuracy(np.array(correct, dtype=float), confidence),
        mean_length=sum(lengths) / len(completions),
        truncation_rate=sum(cut_off) / len(completions),
        format_rate=sum(follows) / len(completions),
        ungradable=grades.count(None),
        tokens=sum(lengths),
        seconds=seconds,
        lengths=by_problem(lengths),
        cut_off=by_problem(cut_off),
    )


def _choose(
    owners: Sequence[Problem], completions: Sequence[Completion], judgements: Sequence[Judgement]
) -> tuple[Sample, ...]:
    """The first of each kind, each problem once; always the first problem, so that stages can be set side by side."""
    kept: dict[Kind, list[Sample]] = {"right": [], "wrong": [], "truncated": []}
    seen: set[str] = set()
    for problem, completion, judgement in zip(owners, completions, judgements, strict=True):
        if problem.id in seen or judgement.verdict is Verdict.UNGRADABLE:
            continue
        kind: Kind = "truncated" if completion.finish == "length" else _KIND[judgement.verdict]
        if len(kept[kind]) < SHOWN:
            seen.add(problem.id)
            # JSON files may hold lone surrogates, UTF-8 cannot
            texts = (problem.question, problem.gold, completion.text)
            question, gold, text = (part.encode("utf-8", "replace").decode() for part in texts)
            kept[kind].append(Sample(kind, problem.id, question, gold, text, len(completion.token_ids)))
    return tuple(sample for samples in kept.values() for sample in samples)


_KIND: dict[Verdict, Kind] = {Verdict.CORRECT: "right", Verdict.WRONG: "wrong"}
