"""Does a completion answer a problem? `verify` and `verify_batch` say correct, wrong or ungradable."""

from __future__ import annotations

import re
import threading
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING

from rewards.math.extract import Extracted, extract, readable
from rewards.verdict import Judgement, Verdict

if TYPE_CHECKING:
    from rewards.math.decide import Decision
    from rewards.math.symbolic_pool import PoolSettings, SymbolicPool

_INTEGER = re.compile(r"[-+]?\d{1,18}")


@dataclass(frozen=True)
class Counts:
    """What a verifier did so far: verdicts given, how many from memory, symbolic comparisons, verdicts cut short by a
    deadline, and comparisons that failed through a fault of the verifier."""

    verdicts: int = 0
    remembered: int = 0
    symbolic: int = 0
    timeouts: int = 0
    errors: int = 0


class Verifier:
    """Grades completions; remembers pairs of (gold, answer); owns the pool of symbolic workers. Thread-safe.

    Args:
        pool: settings of the symbolic workers, which start at the first comparison that needs them.
        remember: pairs kept in memory, least recently used first out.
    """

    def __init__(self, pool: PoolSettings | None = None, remember: int = 65_536):
        self._settings = pool
        self._remember = remember
        self._memory: OrderedDict[tuple[str, str], Judgement] = OrderedDict()
        self._lock = threading.Lock()
        self._counts = [0, 0, 0, 0, 0]

    @cached_property
    def pool(self) -> SymbolicPool:
        """The symbolic workers, not yet started."""
        from rewards.math.symbolic_pool import SymbolicPool

        return SymbolicPool(self._settings)

    @property
    def counts(self) -> Counts:
        return Counts(*self._counts)

    def verify(self, completion: str, gold: str) -> Verdict:
        return self.judge_batch([completion], [gold])[0].verdict

    def verify_batch(self, completions: Sequence[str], golds: Sequence[str]) -> list[Verdict]:
        return [judgement.verdict for judgement in self.judge_batch(completions, golds)]

    def judge_batch(self, completions: Sequence[str], golds: Sequence[str]) -> list[Judgement]:
        """A judgement each; pairs left open by the structural rules go to the workers together.

        Raises:
            ValueError: when there are not as many golds as completions.
        """
        if len(completions) != len(golds):
            raise ValueError(f"{len(completions)} completions but {len(golds)} golds: there must be one gold each")
        judgements: list[Judgement | None] = [None] * len(completions)
        open_pairs: dict[tuple[str, str], tuple[Decision, list[int]]] = {}
        found = [extract(completion) for completion in completions]
        for index, (answer, gold) in enumerate(zip(found, golds, strict=True)):
            pair = (gold, answer.text)
            known = self._recall(pair) if answer.text else None
            if known is None and pair in open_pairs:
                open_pairs[pair][1].append(index)
                continue
            if known is None:
                known = _settled(gold, answer)
                if known is None:
                    decision = self._decide(gold, answer.text)
                    if decision.open:
                        open_pairs[pair] = (decision, [index])
                        continue
                    known = _judgement(decision.equal, decision.rule, decision.late)
                    self._counts[3] += decision.late
                if answer.text:
                    self._store(pair, known)
            judgements[index] = known
        if open_pairs:
            self._ask_workers(open_pairs, judgements)
        self._counts[0] += len(completions)
        return judgements

    def warm(self) -> None:
        """Load what comparisons need and start the symbolic workers, instead of at the first need of them."""
        import rewards.math.decide  # noqa: F401

        self.pool.start()

    def close(self) -> None:
        """End the workers (they also end with the process)."""
        if "pool" in self.__dict__:
            self.pool.close()

    def _decide(self, gold: str, answer: str) -> Decision:
        from rewards.math.decide import Decision, decide  # imported when first needed: most answers are plain integers

        try:
            return decide(gold, answer)
        except Exception as error:  # noqa: BLE001 - one odd text must not end a run; it is counted and logged
            self._counts[4] += 1
            if self._counts[4] <= 5:
                warnings.warn(f"verifier: {error!r} on gold {gold[:200]!r}, answer {answer[:200]!r}", stacklevel=2)
            return Decision(False, f"error: {type(error).__name__}: {error}")

    def _ask_workers(self, open_pairs, judgements) -> None:
        from rewards.math.equal_single import Doubt

        leaves = list(dict.fromkeys(leaf for decision, _ in open_pairs.values() for leaf in decision.open))
        outcome_of = dict(zip(leaves, self.pool.compare(leaves), strict=True))
        self._counts[2] += len(leaves)
        for pair, (decision, indices) in open_pairs.items():
            outcomes = [outcome_of[leaf] for leaf in decision.open]
            refuted = any(outcome == "different" for outcome in outcomes)
            needed = [outcome_of[leaf] for leaf in decision.open if not isinstance(leaf, Doubt)]
            late = not refuted and any(outcome in ("timeout", "crash") for outcome in needed)
            equal = not refuted and all(outcome == "equal" for outcome in needed)
            self._counts[3] += late
            rule = "symbolic: deadline passed" if late else f"symbolic: {', '.join(outcomes)}"
            known = _judgement(equal, rule, late)
            self._store(pair, known)
            for index in indices:
                judgements[index] = known

    def _recall(self, pair: tuple[str, str]) -> Judgement | None:
        with self._lock:
            known = self._memory.get(pair)
            if known is not None:
                self._memory.move_to_end(pair)
                self._counts[1] += 1
            return known

    def _store(self, pair: tuple[str, str], known: Judgement) -> None:
        with self._lock:
            self._memory[pair] = known
            while len(self._memory) > self._remember:
                self._memory.popitem(last=False)


def _judgement(equal: bool, grounds: str, timed_out: bool = False) -> Judgement:
    return Judgement(Verdict.CORRECT if equal else Verdict.WRONG, timed_out, grounds)


def _settled(gold: str, answer: Extracted) -> Judgement | None:
    """The judgement where nothing has to be compared, or only text and integers."""
    if not readable(gold):
        return Judgement(Verdict.UNGRADABLE, grounds="the gold is empty or malformed")
    if not answer.text.strip():
        return _judgement(False, f"no answer: {answer.source}")
    if answer.text == gold:
        return _judgement(True, "same text")
    if _INTEGER.fullmatch(gold) and _INTEGER.fullmatch(answer.text):
        return _judgement(int(gold) == int(answer.text), "integers")
    return None


@cache
def default_verifier() -> Verifier:
    """The verifier behind `verify` and `verify_batch`, made at first use."""
    return Verifier()


def verify(completion: str, gold: str) -> Verdict:
    """Whether the answer in ``completion`` equals ``gold``.

    Args:
        completion: what the model wrote, as plain text; see `rewards.math.extract` for where its answer is looked for.
        gold: the reference answer: a number, LaTeX, words, a list, with or without ``$`` and ``\\boxed``.

    Never raises for the content of either text and never hangs: a comparison that is not done at its deadline is
    wrong, its worker killed and counted. What an answer says on its way to its value, \\lim ... = 1, is wrong only if
    it is refuted by then.
    """
    return default_verifier().verify(completion, gold)


def verify_batch(completions: Sequence[str], golds: Sequence[str]) -> list[Verdict]:
    """`verify` for many at once, symbolic comparisons side by side."""
    return default_verifier().verify_batch(completions, golds)
