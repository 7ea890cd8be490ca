"""The names in a recipe that stand for something outside it: files, domains and what is theirs, models.

Works on the raw mapping, before and whether or not the rest is valid. What is on the Hub is not asked.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from models.engines.protocol import ADAPTER_CONFIG
from models.families import ALL_LINEAR, LINEARS, read_config, refused, unknown_targets
from models.paths import hub_model
from orchestra.config.faults import Fault, brief
from rewards.domain import Domain, domain_names, get_domain
from rewards.scoring import RewardError, undefined_functions
from rewards.settings import Problems, Reward
from settings import Refers, as_names, near, reference_of
from settings.hub import HubName

SHIPPED = ("embedded/student", "embedded/teacher")

Where = tuple[str | int, ...]


def is_file(data: str) -> bool:
    """Whether a name that may be a stage's or a file's is a file's."""
    return "/" in data or data.endswith((".jsonl", ".json"))


def is_problem_file(source: str) -> bool:
    """Whether a source of problems is a local file rather than the domain's own or a Hub dataset."""
    return source.endswith((".jsonl", ".json")) or source.startswith((".", "/", "~"))


def is_local(value: str, refers: Refers) -> bool:
    """Whether the value of such a field names a local file that is read."""
    if refers.to == "problems":
        return is_problem_file(value)
    return refers.to in ("file", "adapter") or (refers.file and is_file(value))


def find_files(
    raw: dict[str, Any],
    at: Where,
    model: type[BaseModel],
    beside: Path,
    stage: str | None,
    overridden: Container[Where],
) -> list[Fault]:
    """Write the places of local files into a raw mapping: beside the recipe, or else in the working directory.

    What `--set` names is what the user sees: in the working directory first.

    Args:
        at: where the mapping stands in the recipe; `overridden` are the places of values from the command line.

    Returns:
        a fault for each that is not there.
    """
    faults: list[Fault] = []

    def found(value: object, key: str, refers: Refers) -> object:
        if not isinstance(value, str) or not is_local(value, refers):
            return value
        plain = Path(value).expanduser()
        places = (beside / plain, plain)
        by_user = any((*at, key)[:n] in overridden for n in range(1, len(at) + 2))
        for candidate in reversed(places) if by_user else places:
            if (candidate / ADAPTER_CONFIG if refers.to == "adapter" else candidate).is_file():
                return str(candidate)
        is_folder = any(candidate.is_dir() for candidate in places)
        reason = "is a folder" if is_folder else "no such file"
        if refers.to == "adapter":
            reason = f"holds no adapter ({ADAPTER_CONFIG} is missing)" if is_folder else "no such folder"
        siblings = [] if is_folder or not plain.parent.is_dir() else [str(other) for other in plain.parent.glob("*")]
        message = f"{brief(value, 200)}: {reason}{near(value, siblings)}"
        faults.append(Fault((*at, key), message, stage=stage))
        return value

    for key, refers in _referring(model):
        value = raw.get(key)
        if value is not None:
            raw[key] = refers.renamed(value, partial(found, key=key, refers=refers))
    return faults


def unknown_words(
    raw: Mapping[str, Any], at: Where, model: type[BaseModel], domain: Domain | None, stage: str | None
) -> Iterator[Fault]:
    """Models, and sources of a domain's problems, that do not exist, in a raw mapping."""
    for key, refers in _referring(model):
        for further, value in refers.names_in(raw.get(key)):
            message = ""
            if not isinstance(value, str) or not value or value in refers.also:
                continue
            if refers.to == "model":
                # a model of the Hub whose name is that near to a word of the project can be given with its owner
                meant = "" if "/" in value else near(value.lower(), refers.also)
                message = f"is no model that is known here{meant}" if meant else _model(value)
            elif refers.to == "problems" and domain is not None:
                message = _source(value, domain)
            if message:
                yield Fault((*at, key, *further), f"{value!r} {message}", stage=stage)


def unknown_rewards(reward: object) -> Iterator[Fault]:
    """Weights of functions that the recipe's own file, found already, does not define."""
    raw = reward if isinstance(reward, Mapping) else {}
    file = raw.get("file")
    if not isinstance(file, str) or not Path(file).is_file():
        return
    own = [name for name, weight in raw.items() if name not in Reward.model_fields and weight]
    try:
        missing = undefined_functions(Path(file), own)
    except RewardError as error:
        yield Fault(("reward", "file"), str(error))
        return
    for name in missing:
        yield Fault(("reward", str(name)), f"{file} does not define a function of this name")


def base_faults(model: object) -> Iterator[Fault]:
    """A base that cannot be one, and adapter targets that it does not have, as far as a config.json at hand tells."""
    raw = model if isinstance(model, Mapping) else {}
    config = read_config(raw["base"]) if isinstance(raw.get("base"), str) else None
    if config is None:
        return
    if reason := refused(config):
        yield Fault(("model", "base"), f"{brief(raw['base'], 200)} {reason}")
        return
    lora, kind = raw.get("lora"), config.get("model_type")
    targets = as_names(lora.get("targets", ALL_LINEAR)) if isinstance(lora, Mapping) else ()
    if kind in LINEARS and isinstance(targets, tuple) and all(isinstance(target, str) for target in targets):
        # a layer may be named more closely than by the last part of its name
        named = [target.rpartition(".")[2] for target in targets]
        if named and (fault := unknown_targets(named, LINEARS[kind], kind)):
            yield Fault(("model", "lora", "targets"), fault)


def domain_of(problems: object, faults: list[Fault]) -> Domain | None:
    """The domain that a recipe's `problems` name, and the faults of that name and of the format's."""
    raw = problems if isinstance(problems, Mapping) else {}
    name, format = (raw.get(key, Problems.model_fields[key].default) for key in ("domain", "format"))
    if not isinstance(name, str):
        return None
    if name not in domain_names():
        known = ", ".join(domain_names())
        message = f"{name!r} is not a domain (known: {known}){near(name, domain_names())}"
        faults.append(Fault(("problems", "domain"), message))
        return None
    domain = get_domain(name)
    if isinstance(format, str) and format not in domain.formats:
        known = ", ".join(domain.formats)
        message = f"{format!r} is not a format (known: {known}){near(format, domain.formats)}"
        faults.append(Fault(("problems", "format"), message))
    return domain


def _referring(model: type[BaseModel]) -> Iterator[tuple[str, Refers]]:
    for key in model.model_fields:
        refers = reference_of(model, key)
        if refers is not None:
            yield key, refers


def _source(source: str, domain: Domain) -> str:
    hub = HubName.parse(source)
    if source in domain.sources or is_problem_file(source) or (hub is not None and "/" in hub.repo):
        return ""
    own = " nor ".join([*domain.sources, "a .jsonl file"])
    return f"is neither {own} nor a Hub data set (name/set){near(source, domain.sources)}"


def _model(name: str) -> str:
    """A model is shipped, a local folder, or on the Hub."""
    if name.startswith("embedded/") and name not in SHIPPED:
        return f"is not shipped (there are: {', '.join(SHIPPED)}){near(name, SHIPPED)}"
    if name.startswith((".", "/", "~")) and not (Path(name).expanduser() / "config.json").is_file():
        return "is not a folder with a model (no config.json there)"
    if hub_model(name) is not None and hub_model(name).config is not None:
        return "names a configuration, which models do not have; a revision stands behind '@'"
    return ""
