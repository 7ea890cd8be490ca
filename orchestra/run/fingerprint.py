"""What a stage's outcome depends on: settings, inputs, code. Libraries' versions are recorded in run.json instead."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from models.expert_files import FILES, MOMENTS
from models.paths import model_path
from orchestra.config.checks import references
from orchestra.config.recipe import Recipe
from orchestra.config.stage import EVALUATION, OUTPUTS, ROUTES, Stage
from orchestra.config.words import is_local
from orchestra.run.code import closure, imported_by
from orchestra.run.ledger import Fingerprint, LedgerEntry
from orchestra.work.held_out import lost_to_other_evaluations, lost_to_validation, validation_digest
from orchestra.work.settings import PANEL_EVALUATION
from settings import FrozenDict, FrozenSequence, Node, Refers, reference_of, uncounted
from settings.files import sha256_of

WEIGHTS_LIMIT = 2**30
"""Bytes of a local model that are hashed whole; of larger ones the files' names and sizes count."""


def fingerprint(recipe: Recipe, stage: Stage, entries: Mapping[str, LedgerEntry]) -> Fingerprint:
    """The fingerprint of a stage, given the finished stages before it. Raises OSError where an input is missing."""
    inputs = dict(_inputs(recipe, stage, entries))
    return Fingerprint(_config(recipe, stage), inputs, closure(type(stage).__module__, recipe.problems.domain))


def known_beforehand(recipe: Recipe, stage: Stage) -> str:
    """A digest of what is known of a stage's fingerprint before anything has run: all but what earlier stages give it.

    Runs with the same digests up to a stage have that stage's fingerprint in common, for what earlier ones give it is
    then the same, too; but where the recipes have evaluations on other problems and training problems are lost to them,
    which takes reading all of these. Raises OSError where an input is missing.
    """
    known = [_config(recipe, stage), dict(_outside(recipe, stage)), recipe.problems.domain]
    own = recipe.problems
    if own.validation is not None and (stage.asks_validation() or stage.trains_on(recipe)):
        # as it is written: which problems they are, and which are then not trained on, is not read here
        known += [own.validation, own.train]
    return hashlib.sha256(json.dumps(known, sort_keys=True, default=list).encode()).hexdigest()


def _config(recipe: Recipe, stage: Stage) -> dict[str, Any]:
    """The settings that decide a stage's outcome, by dotted key. The seed is one of every stage's."""
    files = frozenset(value for _, value, refers in _referred(recipe, stage) if is_local(value, refers))
    config = dict(_flat("stage", stage)) | {"seed": recipe.seed}
    for key in reads(stage):
        config |= dict(_flat(key, _part(recipe, key)))
    if "evaluation" in stage.gives:
        config |= dict(_flat("evaluate", stage.evaluation(recipe)))
    return {key: _without_folder(value, files) for key, value in config.items()}


def reads(stage: Stage) -> tuple[str, ...]:
    """The parts of the recipe that decide the stage's outcome, evaluation included."""
    return (*stage.reads, *(EVALUATION if "evaluation" in stage.gives else ()))


def hashed_outputs(stage: Stage, folder: Path) -> dict[str, str]:
    """sha256 of what a stage wrote for later ones, and of whatever else its kind names, where it exists."""
    names = [*(name for given in sorted(stage.gives) for name in OUTPUTS.get(given, ())), *stage.outputs]
    return {name: sha256_of(folder / name) for name in names if (folder / name).is_file()}


def _part(recipe: Recipe, key: str) -> object:
    value: object = recipe
    for name in key.split("."):
        value = getattr(value, name)
    return value


def _flat(prefix: str, value: object) -> Iterator[tuple[str, Any]]:
    """Dotted key and plain value; keys that do not change the outcome are left out."""
    if not isinstance(value, Node):
        if isinstance(value, FrozenSequence):
            value = [list(item) for item in value.items()]
        elif isinstance(value, FrozenDict | tuple):
            value = dict(value) if isinstance(value, FrozenDict) else list(value)
        yield prefix, value
        return
    left_out = uncounted(type(value))
    for key in (*type(value).model_fields, *(value.__pydantic_extra__ or {})):
        if key not in left_out:
            yield from _flat(f"{prefix}.{key}", getattr(value, key))


def _without_folder(value: Any, files: frozenset[str]) -> Any:
    """Files count by their content; where they lie does not matter."""
    if isinstance(value, list):
        return [_without_folder(item, files) for item in value]
    if isinstance(value, dict):
        return {_without_folder(key, files): _without_folder(item, files) for key, item in value.items()}
    return Path(value).name if isinstance(value, str) and value in files else value


def _inputs(recipe: Recipe, stage: Stage, entries: Mapping[str, LedgerEntry]) -> Iterator[tuple[str, str]]:
    """The sha256 of every input by a name for people."""
    parents = recipe.parents_of(stage.name)
    for parent in parents:
        yield from _given(parent, "policy", entries)
    if (panel := recipe.panel_of(stage.name)) is not None:
        yield from _given(panel, "panel", entries)
        for measured in (ROUTES, PANEL_EVALUATION):  # by these a merge chooses
            if (digest := entries[panel].outputs.get(measured)) is not None:
                yield f"{measured} of stage {panel}", digest
    for seen in stage.traces_seen(recipe.before(stage.name)):
        yield from _given(seen, "traces", entries)
    yield from _outside(recipe, stage)
    for _, value, refers in _referred(recipe, stage):
        if refers.to_stage and value not in (*refers.also, *parents) and not is_local(value, refers):
            yield from _given(value, refers.to, entries)

    for lost, why in (
        (lost_to_other_evaluations(recipe, stage), "an evaluate stage asks them"),
        (lost_to_validation(recipe, stage), "they are validation problems"),
    ):
        if lost:
            digest = hashlib.sha256("\n".join(lost).encode()).hexdigest()
            yield f"training problems left out because {why}", digest
    if stage.asks_validation():
        yield "validation problems", validation_digest(recipe)


def _outside(recipe: Recipe, stage: Stage) -> Iterator[tuple[str, str]]:
    """Those from outside the run."""
    for key, value, refers in _referred(recipe, stage):
        if value in refers.also:
            continue
        if refers.to == "model":
            digest = _local_model(value)
            if digest is not None:
                yield f"{key} {value}", digest
        elif refers.to == "adapter":
            files = (Path(value) / file for file in (*FILES, MOMENTS))
            yield from (
                (f"{key} ({file.parent.name}/{file.name})", sha256_of(file)) for file in files if file.is_file()
            )
        elif is_local(value, refers):
            yield f"{key} ({Path(value).name})", sha256_of(Path(value))
            if refers.to == "file":
                imported = imported_by(Path(value)).items()
                yield from ((f"{key} ({Path(value).name}: {name})", digest) for name, digest in imported)


def _given(name: str, what: str, entries: Mapping[str, LedgerEntry]) -> Iterator[tuple[str, str]]:
    output = OUTPUTS[what][0]
    if what == "policy" and output not in entries[name].outputs:
        output = OUTPUTS["panel"][0]  # of a stage that trains several experts
    yield f"{Path(output).parts[0]} of stage {name}", entries[name].outputs[output]


def _referred(recipe: Recipe, stage: Stage) -> Iterator[tuple[str, str, Refers]]:
    """(key, value, what it refers to) of everything outside the recipe that the stage's settings name."""
    yield from references(stage, free=False)
    for key in reads(stage):
        section, _, name = key.rpartition(".")
        if isinstance(part := _part(recipe, key), Node):
            yield from references(part, f"{key}.", free=False)
        elif part is not None and (refers := reference_of(type(_part(recipe, section)), name)) is not None:
            yield key, part, refers


@cache
def _local_model(name: str) -> str | None:
    """A digest of a model in a local folder or in the package; None for one of the Hub."""
    folder = Path(model_path(name)).expanduser()
    if not folder.is_dir():
        return None
    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".jinja"))
    small = sum(path.stat().st_size for path in files) <= WEIGHTS_LIMIT
    parts = [f"{path.name} {sha256_of(path) if small else path.stat().st_size}" for path in files]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
