"""Distillation data: a teacher's traces, sampled, verified, filtered and rewritten into the student's format.

Raw samples go to samples.jsonl chunk by chunk, so that an interrupted run asks only what it has not asked yet; what is
kept and why the rest is dropped is decided afterwards, from that file alone.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, TypeAdapter, ValidationError

from models.processes import Processes
from rewards.formats import CLOSE, Format, split_completion
from rewards.problems import Asked, Problem
from rewards.verdict import Verdict

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from models.engines.protocol import Completion, Engine
    from rewards.domain import Domain
    from sft.settings import DistillSettings

CHUNK = 128
SAMPLES, TRACES, STATISTICS = "samples.jsonl", "traces.jsonl", "statistics.json"


class DistillError(ValueError):
    """The teacher gave nothing to learn from; the message has the numbers."""

    user_message = True


@dataclass(frozen=True)
class Trace:
    """One training example: a problem and a completion in the student's format.

    Fields:
        tokens: of the completion, the student's.
        pass_rate: share of the teacher's samples of this problem that were right; None of a written solution.
    """

    problem_id: str
    question: str
    gold: str
    completion: str
    verdict: Verdict
    tokens: Annotated[int, Field(ge=0)]
    pass_rate: Annotated[float, Field(ge=0, le=1)] | None = None


@dataclass(frozen=True)
class Statistics:
    """What became of the samples: `sampled` = `kept` + the sum of `dropped`; `tokens` is a trace's mean length.

    Fields:
        correct, answered, closed, cut_off: samples with the right answer, with any, whose think block is closed, and
            that the limit of tokens cut off. Dropping these last favours short traces, so it must be seen.
    """

    problems: int
    sampled: int
    correct: int
    answered: int
    closed: int
    cut_off: int
    dropped: dict[str, int]
    kept: int
    tokens: float
    sampled_tokens: int


def sample_traces(
    engine: "Engine",
    asked: Asked,
    settings: "DistillSettings",
    folder: Path,
    *,
    seeds: Sequence[int],
    progress: Callable[[int], None],
    opening: str,
    processes: Processes | None = None,
) -> None:
    """Ask the teacher and append its samples to samples.jsonl, skipping problems that are already there.

    Args:
        engine: of all processes (models/engines/shared.py); each gets all completions, and the first writes them.
        asked: the problems, and their prompts as the teacher takes them.
        seeds: one per problem.
        progress: called with the number of problems done, those of an earlier process included.
        opening: text that the teacher's prompt already holds of the completion (`<think>` in some chat templates) and
            the student's does not.
        processes: of this run; None: this one alone.
    """
    processes = processes or Processes()
    from models.engines.protocol import Sampling

    sampling = Sampling(
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        n=settings.samples,
    )
    path = folder / SAMPLES
    done = processes.once(lambda: {sample["id"] for sample in _mended(path)})
    progress(sum(problem.id in done for problem in asked.problems))
    left = [i for i, problem in enumerate(asked.problems) if problem.id not in done]
    size = CHUNK * processes.count
    for start in range(0, len(left), size):
        chunk = left[start : start + size]
        groups = engine.generate([asked.tokens[i] for i in chunk], sampling, [seeds[i] for i in chunk])
        if processes.first:
            _append(path, [asked.problems[i] for i in chunk], groups, opening)
        progress(len(chunk))


def _append(path: Path, problems: Sequence[Problem], groups: "Sequence[Sequence[Completion]]", opening: str) -> None:
    with path.open("a") as file:
        for problem, group in zip(problems, groups, strict=True):
            completions = [
                {"text": opening + completion.text, "finish": completion.finish, "tokens": len(completion.token_ids)}
                for completion in group
            ]
            file.write(json.dumps({"id": problem.id, "completions": completions}) + "\n")


def _complete_lines(path: Path) -> list[dict]:
    """Lines of a JSONL file, but a last one cut off by a kill."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _mended(path: Path) -> list[dict]:
    """The complete lines; what is cut off is removed from the file, so that more can be appended."""
    lines = _complete_lines(path)
    if path.exists() and not path.read_text().endswith("\n"):
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines


def choose_traces(
    problems: Sequence[Problem],
    folder: Path,
    settings: "DistillSettings",
    domain: "Domain",
    format: Format,
    tokenizer: "PreTrainedTokenizerBase",
) -> Statistics:
    """Decide over samples.jsonl; writes traces.jsonl and statistics.json.

    A sample is kept where its answer equals the gold (`keep: correct`) or where it has one (`keep: all`), and in either
    case only where, rewritten, it keeps the student's format, and once; or just as it is, as often as it was drawn
    (`keep: raw`). None is kept that is cut off, which would teach to end in the middle, and its length lies between
    `min_tokens` and `max_tokens`, both inclusive, in student tokens.

    Args:
        domain: finds and judges the answers.
        format: the student's.
        tokenizer: the student's.

    Raises:
        DistillError: no trace is left.
    """
    known = {problem.id: problem for problem in problems}
    kept: list[Trace] = []
    dropped: Counter[str] = Counter()
    correct = sampled = tokens = answered = closed = cut_off = 0
    for sample in _complete_lines(folder / SAMPLES):
        if sample["id"] not in known:
            continue
        problem, completions = known[sample["id"]], sample["completions"]
        judgements = domain.judge([c["text"] for c in completions], [problem.gold] * len(completions))
        verdicts = [judgement.verdict for judgement in judgements]
        right = sum(verdict is Verdict.CORRECT for verdict in verdicts)
        sampled += len(completions)
        tokens += sum(c["tokens"] for c in completions)
        correct += right
        answered += sum(bool(domain.answer(c["text"])) for c in completions)
        closed += sum(CLOSE in c["text"] for c in completions)
        cut_off += sum(c["finish"] == "length" for c in completions)
        low, high = settings.pass_rate
        rate = right / len(completions)
        if not low <= rate <= high:
            dropped["pass_rate"] += len(completions)
            continue
        found = _of_problem(problem, completions, verdicts, settings, domain, format, tokenizer, dropped)
        kept += (replace(trace, pass_rate=rate) for trace in found)
    statistics = Statistics(
        problems=len(known),
        sampled=sampled,
        correct=correct,
        answered=answered,
        closed=closed,
        cut_off=cut_off,
        dropped=dict(sorted(dropped.items())),
        kept=len(kept),
        tokens=sum(trace.tokens for trace in kept) / max(len(kept), 1),
        sampled_tokens=tokens,
    )
    (folder / STATISTICS).write_text(json.dumps(asdict(statistics), indent=2) + "\n")
    if not kept:
        reasons = ", ".join(f"{reason} {count}" for reason, count in dropped.most_common()) or "nothing was sampled"
        raise DistillError(
            f"no trace is left of {sampled} samples ({correct} correct; dropped: {reasons}). Look into "
            f"{folder / SAMPLES}; a stronger teacher, a larger max_tokens, or `keep: all` would leave some"
        )
    write_traces(folder / TRACES, kept)
    return statistics


def write_traces(path: Path, traces: Sequence[Trace]) -> None:
    """One a line; `read_traces` reads them back."""
    path.write_text("".join(json.dumps(asdict(trace)) + "\n" for trace in traces))


def _of_problem(
    problem: Problem,
    completions: Sequence[dict],
    verdicts: Sequence[Verdict],
    settings: "DistillSettings",
    domain: "Domain",
    format: Format,
    tokenizer: "PreTrainedTokenizerBase",
    dropped: Counter[str],
) -> Iterator[Trace]:
    seen: set[str] = set()
    kept, raw = 0, settings.keep == "raw"
    for completion, verdict in zip(completions, verdicts, strict=True):
        text = completion["text"] if raw else rewritten(completion["text"], domain, format)
        tokens = len(tokenizer(text, add_special_tokens=False).input_ids) if text else 0
        reason = None
        if completion["finish"] == "length":
            reason = "truncated"
        elif settings.keep == "correct" and verdict is not Verdict.CORRECT:
            reason = str(verdict)
        elif text is None:
            reason = "no_answer"
        elif not text.strip():
            reason = "empty"
        elif not raw and not format.follows(text):
            # a bare answer, say: it would teach an empty think block
            reason = "off_format"
        elif tokens < settings.min_tokens:
            reason = "too_short"
        elif tokens > settings.max_tokens:
            reason = "too_long"
        elif not raw and " ".join(text.split()) in seen:
            # what was drawn twice is twice as likely, which imitating samples as they are is about
            reason = "duplicate"
        elif settings.max_per_problem is not None and kept >= settings.max_per_problem:
            reason = "enough_for_problem"
        if reason:
            dropped[reason] += 1
            continue
        seen.add(" ".join(text.split()))
        kept += 1
        yield Trace(problem.id, problem.question, problem.gold, text, verdict, tokens)


def rewritten(text: str, domain: "Domain", format: Format) -> str | None:
    """A completion in the student's format: its reasoning and its final answer; None where it has no answer.

    A teacher that thinks and then writes the solution out again (R1) keeps its thoughts; one without a think block
    keeps what stands before its box.
    """
    answer = domain.answer(text)
    if not answer:
        return None
    reasoning, rest = split_completion(text)
    if not reasoning:
        reasoning = rest.rpartition(r"\boxed")[0]
    return format.completion(reasoning, answer)


def read_traces(path: Path) -> list[Trace]:
    """Traces of a distill stage, as they stand in its file.

    Raises:
        DistillError: there is no such file, no trace in it, or the first line that is none.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise DistillError(f"{path}: {reason}") from error
    traces = [_trace(line, f"{path}: line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not traces:
        raise DistillError(f"{path}: there are no traces in it")
    return traces


def _trace(line: str, place: str) -> Trace:
    try:
        return _adapter().validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        said = f"no '{key}'" if first["type"] == "missing" else ": ".join(filter(None, [key, first["msg"]]))
        raise DistillError(f"{place}: {said}") from error


@cache
def _adapter() -> TypeAdapter[Trace]:
    return TypeAdapter(Trace)


def traces_of_solutions(
    problems: Sequence[Problem], format: Format, tokenizer: "PreTrainedTokenizerBase", source: str
) -> list[Trace]:
    """Traces from written solutions (a JSONL file with `solution`) instead of a teacher.

    Raises:
        DistillError: a problem has no solution, or there are no problems.
    """
    if not problems:
        raise DistillError(f"{source}: all of its problems overlap with held-out ones; nothing is left to imitate")
    without = [problem.id for problem in problems if not problem.solution]
    if without:
        raise DistillError(
            f"{source}: {len(without)} problems have no `solution` to imitate, the first is {without[0]!r}"
        )
    traces = []
    for problem in problems:
        text = format.completion(problem.solution, problem.gold)
        tokens = len(tokenizer(text, add_special_tokens=False).input_ids)
        traces.append(Trace(problem.id, problem.question, problem.gold, text, Verdict.CORRECT, tokens))
    return traces
