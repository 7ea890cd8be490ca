"""Problems: questions with a gold answer, from the domain itself, a JSON file or a Hub dataset.

A source is one of

    embedded, ...             what the domain makes itself, by its name (`Domain.sources`)
    path/to/file.jsonl        one object a line: question, answer[, solution, id, domain, difficulty] (.json: a list);
                              `prompt` where the solution was written under one
    openai/gsm8k              a dataset on the Hugging Face Hub with the same columns; also name[:config][@revision]

An answer may be a whole solution with the gold behind `####`; the domain takes it apart (`Domain.gold`,
`Domain.solution`), so that nothing downstream knows about it.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from settings import near
from settings.hub import HubName, is_commit

if TYPE_CHECKING:
    from rewards.domain import Domain

Split = Literal["train", "test"]
SPLITS = ("train", "test")
SHOWN_ERRORS = 5

QUESTION_KEYS = ("question", "problem")
ANSWER_KEYS = ("answer", "gold")
DOMAIN_KEYS = ("domain", "subject")
PROMPT_KEY = "prompt"
PREFERRED_CONFIGS = ("default", "main")

Prompt = str | tuple[tuple[str, str], ...]


class ProblemError(ValueError):
    """Problems that cannot be used; the message names the place, what was found there and the remedy."""

    user_message = True


@dataclass(frozen=True)
class Problem:
    """One problem.

    Fields:
        id: unique within its source.
        gold: the answer alone, as the domain's judge wants it.
        solution: reasoning that leads to the gold, where the source has it.
        domain: what the source says it is about (algebra, say); the domain's name where it says nothing.
        difficulty: 0 where unknown; larger is harder.
        family: the generator's problem family, "" elsewhere.
        prompt: that the solution was written under, where the source says: text, or (role, content) messages. Nobody is
            asked in it; a preflight compares it with what is asked.
    """

    id: str
    question: str
    gold: str
    solution: str | None = None
    domain: str = ""
    difficulty: int = 0
    family: str = ""
    prompt: Prompt | None = None


@dataclass(frozen=True)
class Asked:
    """Problems as a model is asked them: `prompts` as text, `tokens` as the engine takes them, one each; `left_out`
    did not fit or overlap with held-out ones."""

    problems: tuple[Problem, ...]
    prompts: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    left_out: int = 0

    def part(self, numbers: Sequence[int]) -> Asked:
        """Those with these numbers, in this order."""
        parts = (tuple(one[at] for at in numbers) for one in (self.problems, self.prompts, self.tokens))
        return Asked(*parts, self.left_out)


Source = Callable[[Split, "int | None", int], list[Problem]]
"""(split, limit, seed) -> problems that a domain makes itself: exactly `limit`, or as many as it thinks enough."""


def load_problems(domain: Domain, source: str, split: Split, *, limit: int | None, seed: int) -> list[Problem]:
    """Load the problems of one split.

    Args:
        domain: whose problems they are.
        source: see the module docstring. A file holds a single split, so `split` chooses nothing there.
        limit: at most this many, drawn with `seed` and kept in their order; None is all.
        seed: of the domain's own source, or of the draw.

    Raises:
        ProblemError: unknown source or split, unreadable rows (with line numbers), rows without a gold, no rows.
    """
    if split not in SPLITS:
        raise ProblemError(f"problems: split {split!r} is not one of {', '.join(SPLITS)}")
    if limit is not None and limit < 1:
        raise ProblemError(f"problems: limit must be 1 or more, not {limit}")
    if source in domain.sources:
        return domain.sources[source](split, limit, seed)
    path = Path(source).expanduser()
    if path.suffix in (".jsonl", ".json", ".ndjson") or path.is_file():
        problems = _from_file(domain, path)
    elif (name := HubName.parse(source)) is not None and "/" in name.repo and not path.is_dir():
        problems = _from_hub(domain, name, split)
    else:
        own = ", ".join(repr(name) for name in domain.sources)
        raise ProblemError(
            f"problems: {source!r} is neither {own + ', ' if own else ''}a .jsonl or .json file, nor a Hub dataset "
            f"'owner/name'{near(source, domain.sources)}"
        )
    if limit is not None and limit < len(problems):
        chosen = sorted(random.Random(f"{seed}/{split}").sample(range(len(problems)), limit))
        problems = [problems[index] for index in chosen]
    return problems


def overlapping(problems: Iterable[Problem], against: Iterable[Problem], n: int = 13) -> set[str]:
    """Ids of `problems` whose question shares a run of `n` words with a question of `against`.

    Words are runs of letters and digits, lower-cased. A question of fewer than `n` words is compared as a whole.
    """
    taken = {gram for problem in against for gram in _ngrams(problem.question, n)}
    return {problem.id for problem in problems if not taken.isdisjoint(_ngrams(problem.question, n))}


def _ngrams(text: str, n: int) -> Iterator[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    for start in range(max(len(words) - n, 0) + 1):
        yield tuple(words[start : start + n])


def _from_file(domain: Domain, path: Path) -> list[Problem]:
    if not path.is_file():
        similar = get_close_matches(path.name, [p.name for p in path.parent.glob("*.json*")], n=1)
        hint = f"did you mean {str(path.parent / similar[0])!r}?" if similar else "check the path in 'problems:'"
        raise ProblemError(f"problems: file {str(path)!r} does not exist; {hint}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ProblemError(f"{path}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from error
    if path.suffix == ".json":
        try:
            listed = json.loads(text)
        except json.JSONDecodeError as error:
            raise ProblemError(f"{path}:{error.lineno}: not JSON ({error.msg}, column {error.colno})") from error
        if not isinstance(listed, list):
            raise ProblemError(f"{path}: a .json file must hold a list of objects, not {type(listed).__name__}")
        rows = ((f"{path}[{index}]", index, row) for index, row in enumerate(listed))
    else:
        rows = _jsonl_rows(path, text)
    return _from_rows(domain, str(path), path.stem, rows)


def _jsonl_rows(path: Path, text: str) -> Iterator[tuple[str, int, object]]:
    # not splitlines(): JSON strings may hold U+2028 and its kin unescaped
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            shown = line.strip()[:60]
            row = ProblemError(f"{path}:{number}: not JSON ({error.msg}, column {error.colno}): {shown!r}")
        yield f"{path}:{number}", number, row


def _from_rows(domain: Domain, source: str, stem: str, rows: Iterable[tuple[str, int, object]]) -> list[Problem]:
    """Read (place, number, row) triples; a row may be the error of having read it."""
    problems, errors, places = [], [], {}
    for place, number, row in rows:
        try:
            if isinstance(row, ProblemError):
                raise row
            problem = _read_row(domain, row, place, f"{stem}-{number}")
            if problem.id in places:
                raise ProblemError(
                    f"{place}: id {problem.id!r} is already that of {places[problem.id]}; make ids unique"
                )
        except ProblemError as error:
            errors.append(str(error))
            continue
        places[problem.id] = place
        problems.append(problem)
    if errors:
        more = f"\n... and {len(errors) - SHOWN_ERRORS} more" if len(errors) > SHOWN_ERRORS else ""
        raise ProblemError("\n".join(errors[:SHOWN_ERRORS]) + more)
    if not problems:
        raise ProblemError(f"{source}: no problems in it; give at least one row with 'question' and 'answer'")
    return problems


def _read_row(domain: Domain, row: object, place: str, default_id: str) -> Problem:
    if not isinstance(row, Mapping):
        raise ProblemError(f"{place}: expected an object with 'question' and 'answer', got {type(row).__name__}")
    question = _text(row, QUESTION_KEYS, place)
    answer = _text(row, ANSWER_KEYS, place)
    gold = domain.gold(answer)
    if not gold:
        raise ProblemError(f"{place}: key 'answer': no gold in {answer[-60:]!r}; write the answer behind '####'")
    solution = row.get("solution")
    if solution is not None and not isinstance(solution, str):
        raise ProblemError(f"{place}: key 'solution': expected text, got {solution!r}")
    if solution is None and "####" in answer:
        solution = answer
    difficulty = row.get("difficulty")
    if difficulty is not None and (isinstance(difficulty, bool) or not isinstance(difficulty, int | float)):
        raise ProblemError(f"{place}: key 'difficulty': expected a number, got {difficulty!r}")
    return Problem(
        id=str(row.get("id", default_id)),
        question=question,
        gold=gold,
        solution=domain.solution(solution) if solution else None,
        domain=next((str(row[key]) for key in DOMAIN_KEYS if row.get(key)), domain.name),
        difficulty=int(difficulty or 0),
        prompt=_prompt(row.get(PROMPT_KEY)),
    )


def _prompt(value: object) -> Prompt | None:
    """Text or chat messages, as they stand there to the last blank; anything else is another column of that name."""
    if isinstance(value, str):
        return value or None
    turns = value if isinstance(value, list) else []
    pairs = tuple((turn.get("role"), turn.get("content")) for turn in turns if isinstance(turn, Mapping))
    texts = all(isinstance(part, str) for pair in pairs for part in pair)
    return pairs if pairs and texts and len(pairs) == len(turns) else None


def _text(row: Mapping, keys: tuple[str, ...], place: str) -> str:
    key = next((key for key in keys if key in row), None)
    if key is None:
        similar = get_close_matches(keys[0], [str(name) for name in row], n=1)
        hint = f"rename {similar[0]!r}?" if similar else f"the row has {', '.join(map(repr, row)) or 'no keys'}"
        raise ProblemError(f"{place}: key {keys[0]!r} is missing; {hint}")
    value = "" if row[key] is None else row[key]
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise ProblemError(f"{place}: key {key!r}: expected text or a number, got {value!r}")
    if not value.strip():
        what = (
            "a row without a gold cannot be graded; fill it in or drop the row" if keys is ANSWER_KEYS else "fill it in"
        )
        raise ProblemError(f"{place}: key {key!r} is empty; {what}")
    return value.strip()


def _from_hub(domain: Domain, source: HubName, split: Split) -> list[Problem]:
    import datasets

    repo, config = source.repo, source.config
    remedy = "check the name and the network, or download the split and give its .jsonl path instead"
    try:
        if not config:
            configs = datasets.get_dataset_config_names(repo, revision=source.revision)
            config = next((known for known in PREFERRED_CONFIGS if known in configs), configs[0])
            if len(configs) > 1 and config not in PREFERRED_CONFIGS:
                raise ProblemError(
                    f"problems: dataset {repo!r} has several configurations; name one, such as '{repo}:{config}' "
                    f"(known: {', '.join(configs)})"
                )
        rows = datasets.load_dataset(repo, config, split=split, revision=source.revision)
    except ProblemError:
        raise
    # the Hub client, fsspec and the dataset readers raise many unrelated types; all mean the same here
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ProblemError(f"problems: Hub dataset '{source}', split {split!r}: {reason}; {remedy}") from error
    # without a network the library takes the newest revision that it has, whatever was asked for
    if is_commit(source.revision) and not all(source.revision in file["filename"] for file in rows.cache_files):
        raise ProblemError(
            f"problems: Hub dataset '{source}', split {split!r}: the cache of this machine has another commit; {remedy}"
        )
    stem = f"{repo.split('/')[-1]}-{split}"
    places = ((f"{source}[{split}][{index}]", index, row) for index, row in enumerate(rows))
    return _from_rows(domain, str(source), stem, places)
