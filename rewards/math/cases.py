"""Verdicts to look at: why one was given, and how many agree with the labels of a file of cases."""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rewards.math.extract import extract, gold_text
from rewards.math.verifier import Verifier, default_verifier
from rewards.verdict import Verdict


class CaseError(ValueError):
    """A file of cases that cannot be read; the message names file and line and says what to change."""


@dataclass(frozen=True)
class Explanation:
    """A verdict with its grounds.

    Fields:
        verdict: correct, wrong or ungradable.
        source: where in the completion the answer was found, or why there is none.
        extracted: the answer as written.
        gold, answer: both after normalisation, as the comparison reads them.
        rule: what decided.
    """

    verdict: str
    source: str
    extracted: str
    gold: str
    answer: str
    rule: str


@dataclass(frozen=True)
class CaseReport:
    """Agreement with labels and time, over a file of cases.

    Fields:
        n: rows with a label (`truth`, else `expected`); rows with neither are run and timed, not scored.
        agree, false_positive, false_negative: verdicts against labels; ungradable counts as not correct.
        ungradable, timeout: over all rows run.
        seconds: for all rows, one at a time; p50_ms, p99_ms, max_ms: of one row.
    """

    n: int
    agree: int
    false_positive: int
    false_negative: int
    ungradable: int
    timeout: int
    seconds: float
    p50_ms: float
    p99_ms: float
    max_ms: float

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def explain(completion: str, gold: str, verifier: Verifier | None = None) -> Explanation:
    """Why a completion gets its verdict. Text without any box, tag or answer phrase is taken as the answer itself."""
    judgement = (verifier or default_verifier()).judge_batch([completion], [gold])[0]
    found = extract(completion)
    return Explanation(
        verdict=judgement.verdict.value,
        source=found.source,
        extracted=found.text,
        gold=normalised(gold_text(gold)),
        answer=normalised(found.text),
        rule=judgement.grounds,
    )


def normalised(text: str) -> str:
    """A text as the comparison reads it: tokens in their one spelling; as written where it cannot be read."""
    from rewards.math.tokens import Unreadable, clean, tokenize
    from rewards.math.values import spelled

    try:
        return spelled(tokenize(clean(text[:4_000])))
    except Unreadable as error:
        return f"{text[:200]} (not read: {error})"


def score_cases(path: str | Path, wrong: str | Path | None = None, verifier: Verifier | None = None) -> CaseReport:
    """Run the verifier over a JSONL file of cases, one row at a time.

    Args:
        path: rows with `gold` and `completion`, and `truth` or `expected` (true, false or null).
        wrong: where to write the rows it disagrees on, each with its verdict, answer and rule.

    Raises:
        CaseError: the file is missing, or a line is no case.
    """
    rows = list(_rows(Path(path)))
    verifier = verifier or default_verifier()
    verifier.warm()  # starting the symbolic workers is no property of any case
    before = verifier.counts.timeouts
    times: list[float] = []
    n = agree = false_positive = false_negative = ungradable = 0
    disagreements: list[dict] = []
    for row in rows:
        start = time.perf_counter()
        judgement = verifier.judge_batch([row["completion"]], [row["gold"]])[0]
        times.append(time.perf_counter() - start)
        ungradable += judgement.verdict is Verdict.UNGRADABLE
        label = row["truth"] if "truth" in row else row.get("expected")
        if label is None:
            continue
        n += 1
        correct = judgement.verdict is Verdict.CORRECT
        agree += correct == label
        false_positive += correct and not label
        false_negative += label and not correct
        if correct != label:
            answer = extract(row["completion"]).text
            found = {"verdict": judgement.verdict.value, "answer": answer, "rule": judgement.grounds}
            disagreements.append({**row, **found})
    if wrong is not None:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in disagreements)
        Path(wrong).write_text(text, encoding="utf-8")
    return CaseReport(
        n, agree, false_positive, false_negative, ungradable, verifier.counts.timeouts - before, round(sum(times), 4),
        _milliseconds(times, 0.5), _milliseconds(times, 0.99), _milliseconds(times, 1.0),
    )  # fmt: skip


def _rows(path: Path):
    try:
        # splitlines would also split at separators that may stand inside a JSON string
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CaseError(f"{path}: cannot be read ({error}); give a JSONL file of cases") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise CaseError(f"{path}, line {number}: not JSON ({error.msg}); one object a line") from error
        if not isinstance(row, dict) or not isinstance(row.get("completion"), str) or "gold" not in row:
            raise CaseError(f"{path}, line {number}: a case needs `gold` and `completion`, both text")
        for label in ("truth", "expected"):
            if row.get(label) not in (True, False, None):
                raise CaseError(f"{path}, line {number}: {label}: {row[label]!r} is not true, false or null")
        yield row


def _milliseconds(times: list[float], share: float) -> float:
    """A quantile of the times, in milliseconds."""
    if not times:
        return 0.0
    if share == 0.5:
        return round(statistics.median(times) * 1e3, 4)
    ordered = sorted(times)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e3, 4)
