"""The names in a recipe that stand for something outside it: local files, sources of problems, formats, models.

Works on the raw mapping, before and whether or not the rest is valid. What is on the Hub is not asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from orchestra.config.faults import Fault, brief
from rewards.formats import FORMATS
from settings import Refers, near, reference_of

SHIPPED = ("embedded/student", "embedded/teacher")

Where = tuple[str | int, ...]


def is_file(data: str) -> bool:
    """Whether a name that may be a stage's or a file's is a file's."""
    return "/" in data or data.endswith((".jsonl", ".json"))


def is_problem_file(source: str) -> bool:
    """Whether a source of problems is a local file rather than `embedded` or a Hub dataset."""
    return source.endswith((".jsonl", ".json")) or source.startswith((".", "/", "~"))


def is_local(value: str, refers: Refers) -> bool:
    """Whether the value of such a field names a local file that is read."""
    if refers.to == "problems":
        return is_problem_file(value)
    return refers.to == "file" or (refers.file and is_file(value))


def find_files(raw: dict[str, Any], at: Where, model: type[BaseModel], beside: Path, stage: str | None) -> list[Fault]:
    """Write the places of local files into a raw mapping: relative to the working directory or to the recipe.

    Returns:
        a fault for each that is not there.
    """
    faults: list[Fault] = []

    def found(value: object, key: str, refers: Refers) -> object:
        if not isinstance(value, str) or not is_local(value, refers):
            return value
        plain = Path(value).expanduser()
        for candidate in (plain, beside / plain):
            if candidate.is_file():
                return str(candidate)
        reason = "is a folder" if plain.is_dir() else "no such file"
        siblings = [str(other) for other in plain.parent.glob("*")] if plain.parent.is_dir() else []
        message = f"{brief(value, 200)}: {reason}{near(value, siblings)}"
        faults.append(Fault((*at, key), message, stage=stage))
        return value

    for key, refers in _referring(model):
        value = raw.get(key)
        if value is not None:
            many = isinstance(value, list)
            raw[key] = [found(item, key, refers) for item in value] if many else found(value, key, refers)
    return faults


def unknown_words(raw: Mapping[str, Any], at: Where, model: type[BaseModel], stage: str | None) -> Iterator[Fault]:
    """Models and sources of problems that do not exist, in a raw mapping."""
    judges = {"model": _model, "problems": _source}
    for key, refers in _referring(model):
        value, judge = raw.get(key), judges.get(refers.to)
        if isinstance(value, str) and value and value not in refers.also and judge and (message := judge(value)):
            yield Fault((*at, key), f"{value!r} {message}", stage=stage)


def unknown_format(problems: object) -> Iterator[Fault]:
    """The format that a recipe's `problems` name, if there is none of that name."""
    name = problems.get("format") if isinstance(problems, Mapping) else None
    if isinstance(name, str) and name not in FORMATS:
        message = f"{name!r} is not a format (there are: {', '.join(FORMATS)}){near(name, FORMATS)}"
        yield Fault(("problems", "format"), message)


def _referring(model: type[BaseModel]) -> Iterator[tuple[str, Refers]]:
    for key in model.model_fields:
        refers = reference_of(model, key)
        if refers is not None:
            yield key, refers


def _source(source: str) -> str:
    if source == "embedded" or is_problem_file(source) or source.count("/") == 1:
        return ""
    return f"is neither `embedded` nor a .jsonl file nor a Hub data set (name/set){near(source, ['embedded'])}"


def _model(name: str) -> str:
    """A model is shipped, a local folder, or on the Hub."""
    if name.startswith("embedded/") and name not in SHIPPED:
        return f"is not shipped (there are: {', '.join(SHIPPED)}){near(name, SHIPPED)}"
    if name.startswith((".", "/", "~")) and not (Path(name).expanduser() / "config.json").is_file():
        return "is not a folder with a model (no config.json there)"
    return ""
