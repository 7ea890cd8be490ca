"""Rewards in TRL's signature, made from the names and weights of a recipe.

    name        value                                                          source
    correct     1 right, 0 wrong, None ungradable                              the domain's judge
    format      1 when the completion keeps the format's contract, else 0      rewards.formats
    length      0 up to L - c tokens, falling linearly to -1 at L, c = L / 5   DAPO, arXiv:2503.14476, eq. 13
    cosine      u right, -u wrong, u = (1 + cos(pi * length / L)) / 2          after arXiv:2502.03373, appendix C.1
    repetition  -(share of token 4-grams that occurred before)                 after arXiv:2502.03373, appendix C.2

L is the longest completion allowed, in tokens. `length` spares the short and warns the overlong; `cosine` prefers a
short right answer to a long one and a long wrong one (still exploring) to a short one. Every value lies in [-1, 1].

The weights are refused unless the worst right answer still beats the best wrong one: otherwise a policy may learn to
be well-formed, brief and wrong. Rewards from a user's file take part in that bound as values in [-1, 1].
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from rewards.formats import Format, with_opening
from rewards.verdict import Verdict

if TYPE_CHECKING:
    from rewards.domain import Domain
    from rewards.settings import Reward

RewardFunction = Callable[..., "list[float | None]"]
SOFT_SHARE = 0.2
NGRAM = 4
LIMIT_BASE = 64
# by these a file gets names that reading it does not show
UNSEEN = frozenset({"*", "__getattr__", "globals", "vars", "setattr", "exec"})

# (lowest, highest) value for a right and for a wrong completion
RANGES: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "correct": ((1.0, 1.0), (0.0, 0.0)),
    "format": ((0.0, 1.0), (0.0, 1.0)),
    "length": ((-1.0, 0.0), (-1.0, 0.0)),
    "cosine": ((0.0, 1.0), (-1.0, 0.0)),
    "repetition": ((-1.0, 0.0), (-1.0, 0.0)),
}
_USER_RANGE = ((-1.0, 1.0), (-1.0, 1.0))


class RewardError(ValueError):
    """A reward's name, weight, file or value that cannot be used; the message says what to change."""

    user_message = True


class UngradableError(RuntimeError):
    """More golds are ungradable than the recipe allows; the message shows the share and what to do."""

    user_message = True


@dataclass(frozen=True)
class RewardSet:
    """What TRL's GRPOTrainer takes: ``reward_funcs``, their names (for logs) and ``reward_weights``, in one order.

    Fields:
        task: the function whose value says how well the task itself was done, and by which it is judged whether a
            completion can be graded and whether a group has a signal (rl/advantages.py). None: all together.
    """

    functions: list[RewardFunction]
    names: list[str]
    weights: list[float]
    task: str | None = None


def build_rewards(reward: Reward, domain: Domain, format: Format, max_completion_tokens: int) -> RewardSet:
    """Reward functions for the names that have a weight, in the settings' order.

    Args:
        domain: whose judge `correct` and `cosine` ask.
        format: the contract that `format` pays for.
        max_completion_tokens: the longest completion allowed.

    Raises:
        RewardError: a file that does not have a function of the user's; it is imported only where a weight names one.
    """
    weights = reward.weights
    if max_completion_tokens < 1:
        raise RewardError(f"max_completion_tokens: {max_completion_tokens} must be at least 1")
    components: dict[str, RewardFunction] = {
        "correct": Correct(domain, reward.ungradable_limit),
        "format": FormatKept(format),
        "length": Length(max_completion_tokens),
        "cosine": Cosine(domain, max_completion_tokens),
        "repetition": Repetition(),
    }
    own = [name for name in weights if name not in components]
    if own:
        components |= _from_file(Path(reward.file), own)
    functions = [components[name] for name in weights]
    task = "correct" if "correct" in weights else None
    return RewardSet(functions, list(weights), [float(weight) for weight in weights.values()], task)


def check_weights(weights: Mapping[str, float]) -> None:
    """Refuse weights that pay nothing, or pay some wrong answer as much as some right one.

    `Reward` is judged by it, so that what passes the check can be built.

    Args:
        weights: by name, numbers of at least 0.

    Raises:
        RewardError: with the arithmetic and the smallest weight of `correct` that would do.
    """
    if not any(weights.values()):
        raise RewardError("no component has a weight; the usual choice is {correct: 1.0, format: 0.1}")
    if "correct" not in weights:
        if "cosine" in weights:
            raise RewardError("cosine depends on correctness; add `correct` with its weight")
        if not set(weights) - set(RANGES):
            raise RewardError("nothing pays a right answer; add `correct`, such as {correct: 1.0, format: 0.1}")
        return
    others = {name: weight for name, weight in weights.items() if name != "correct"}
    spread = sum(
        weight * (RANGES.get(name, _USER_RANGE)[1][1] - RANGES.get(name, _USER_RANGE)[0][0])
        for name, weight in others.items()
    )
    if weights["correct"] <= spread:
        parts = ", ".join(f"{name} {weight:g}" for name, weight in others.items())
        raise RewardError(
            f"a wrong answer could beat a right one: `correct` pays {weights['correct']:g}, the other "
            f"components ({parts}) can tell two completions apart by {spread:g}; "
            f"raise `correct` above {spread:g} or lower the others"
        )


class Correct:
    """1 right, 0 wrong, None ungradable; logs counts; stops a run whose golds cannot be graded."""

    __name__ = "correct"

    def __init__(self, domain: Domain, ungradable_limit: float):
        self.domain, self.ungradable_limit = domain, ungradable_limit
        self.seen = self.ungradable = 0

    def __call__(self, prompts, completions, completion_ids=None, *, gold, log_metric=None, **columns):
        judgements = self.domain.judge([_text(completion) for completion in completions], gold)
        lost = [index for index, judgement in enumerate(judgements) if judgement.verdict is Verdict.UNGRADABLE]
        self.seen += len(judgements)
        self.ungradable += len(lost)
        if log_metric is not None:
            log_metric("verifier/ungradable", float(len(lost)))
            log_metric("verifier/timeouts", float(sum(judgement.timed_out for judgement in judgements)))
        # a share of few completions says little: the limit binds as if at least LIMIT_BASE had been seen
        if self.ungradable > self.ungradable_limit * max(self.seen, LIMIT_BASE):
            example = gold[lost[-1]] if lost else ""
            names = columns.get("problem_id")
            where = f" of problem {names[lost[-1]]}" if names and lost else ""
            raise UngradableError(
                f"{self.ungradable} of {self.seen} completions have an ungradable gold (limit "
                f"{self.ungradable_limit:.1%}); the last is {example!r}{where}. "
                f"Repair or remove such problems, or raise ungradable_limit"
            )
        return [_PAID[judgement.verdict] for judgement in judgements]


_PAID = {Verdict.CORRECT: 1.0, Verdict.WRONG: 0.0, Verdict.UNGRADABLE: None}


class FormatKept:
    """1 when a completion keeps the format's contract, else 0."""

    __name__ = "format"

    def __init__(self, format: Format):
        self.format = format

    def __call__(self, prompts, completions, completion_ids=None, **columns):
        return [
            float(self.format.follows(with_opening(prompt, _text(completion))))
            for prompt, completion in zip(prompts, completions, strict=True)
        ]


class Length:
    """DAPO's soft penalty for overlong completions, in [-1, 0]."""

    __name__ = "length"

    def __init__(self, longest: int, soft_share: float = SOFT_SHARE):
        self.longest, self.soft = longest, max(1.0, soft_share * longest)

    def __call__(self, prompts, completions, completion_ids, **columns):
        free = self.longest - self.soft
        return [max(-1.0, min(0.0, (free - len(ids)) / self.soft)) for ids in completion_ids]


class Cosine:
    """Length seen through correctness: short is best when right and worst when wrong."""

    __name__ = "cosine"

    def __init__(self, domain: Domain, longest: int):
        self.domain, self.longest = domain, longest

    def __call__(self, prompts, completions, completion_ids, *, gold, **columns):
        judgements = self.domain.judge([_text(completion) for completion in completions], gold)
        values: list[float | None] = []
        for judgement, ids in zip(judgements, completion_ids, strict=True):
            brief = (1 + math.cos(math.pi * min(1.0, len(ids) / self.longest))) / 2
            values.append({Verdict.CORRECT: brief, Verdict.WRONG: -brief, Verdict.UNGRADABLE: None}[judgement.verdict])
        return values


class Repetition:
    """Minus the share of a completion's token n-grams that occurred in it before, in [-1, 0]."""

    __name__ = "repetition"

    def __init__(self, ngram: int = NGRAM):
        self.ngram = ngram

    def __call__(self, prompts, completions, completion_ids, **columns):
        values = []
        for ids in completion_ids:
            count = len(ids) - self.ngram + 1
            distinct = len(set(zip(*(ids[shift:] for shift in range(self.ngram)), strict=False)))
            values.append(distinct / count - 1.0 if count > 0 else 0.0)
        return values


class UserReward:
    """A function from the user's file, its values checked: as many as completions, each None or in [-1, 1]."""

    def __init__(self, name: str, function: RewardFunction):
        self.__name__, self.function = name, function

    def __call__(self, prompts, completions, completion_ids=None, **columns):
        values = self.function(prompts=prompts, completions=completions, completion_ids=completion_ids, **columns)
        if len(values) != len(completions):
            raise RewardError(
                f"reward: {self.__name__} returned {len(values)} values for {len(completions)} completions"
            )
        for value in values:
            if value is not None and not -1.0 <= value <= 1.0:
                raise RewardError(
                    f"reward: {self.__name__} returned {value!r}; return None or a number between -1 and 1"
                )
        return [None if value is None else float(value) for value in values]


def _text(completion: str | Sequence[Mapping[str, str]]) -> str:
    """A completion's text; TRL passes a list of messages when prompts are conversational."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def _from_file(file: Path, names: Sequence[str]) -> dict[str, UserReward]:
    """The functions of these names in the user's file."""
    if not file.is_file():
        raise RewardError(f"reward: file: {file} does not exist; it should define {names[0]}")
    folder = str(file.parent.absolute())
    if folder not in sys.path:
        # what lies beside the file may be imported by it, as by a script; last, so that it hides nothing
        sys.path.append(folder)
    spec = importlib.util.spec_from_file_location(f"user_rewards_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise RewardError(f"reward: file: {file} could not be imported: {type(error).__name__}: {error}") from error
    return {name: UserReward(name, _function(module, name, file)) for name in names}


def undefined_functions(file: Path, names: Sequence[str]) -> list[str]:
    """Those of the names that a user's file does not define, seen without executing it; none where that cannot be seen.

    Raises:
        RewardError: it is not Python.
    """
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise RewardError(f"{file} is not Python: {error}") from error
    defined: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            defined |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name) and (isinstance(node.ctx, ast.Store) or node.id in UNSEEN):
            defined.add(node.id)
    if not defined.isdisjoint(UNSEEN):
        return []
    return [name for name in names if name not in defined]


def _function(module: ModuleType, name: str, file: Path) -> RewardFunction:
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")]
        raise RewardError(f"reward: {file} does not define {name} (it defines: {', '.join(known) or 'no function'})")
    return function
