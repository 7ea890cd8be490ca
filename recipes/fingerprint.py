"""What a stage's outcome depends on: settings, inputs, code. Libraries' versions are recorded in run.json instead."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from recipes.checks import is_file, is_problem_file
from recipes.ledger import Fingerprint, LedgerEntry, sha256_of
from recipes.schema import FREE, DistillStage, EvaluateStage, GrpoStage, Node, Recipe, SftStage, Stage, marked

PACKAGES: Mapping[str, tuple[str, ...]] = {
    "base": ("models", "rewards", "evals", "rl/rollouts.py"),
    "distill": ("sft", "models", "rewards"),
    "sft": ("sft", "models", "rewards", "evals", "rl/rollouts.py"),
    "grpo": ("rl", "models", "rewards", "evals"),
    "evaluate": ("models", "rewards", "evals", "rl/rollouts.py"),
    "export": ("models", "evals"),
}
"""The packages (and single files) whose code decides the outcome of a kind of stage."""

SECTIONS: Mapping[str, tuple[str, ...]] = {
    "base": ("model.base", "model.quantize", "model.dtype", "problems.test", "problems.format", "problems.test_limit",
             "rollouts.engine", "rollouts.sync", "rollouts.dtype", "rollouts.max_prompt_tokens"),
    "distill": ("model", "problems", "rollouts.engine", "rollouts.dtype", "rollouts.max_prompt_tokens"),
    "sft": ("model", "problems.test", "problems.format", "problems.test_limit", "rollouts.engine", "rollouts.sync",
            "rollouts.dtype", "rollouts.max_prompt_tokens", "rollouts.max_completion_tokens"),
    "grpo": ("model", "problems", "reward", "rollouts"),
    "evaluate": ("model", "problems.test", "problems.format", "problems.test_limit", "rollouts.engine",
                 "rollouts.sync", "rollouts.dtype", "rollouts.max_prompt_tokens"),
    "export": ("model",),
}  # fmt: skip
"""The parts of the recipe, besides the stage itself, that decide the outcome of a kind of stage."""

OUTPUTS = ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "traces.jsonl", "evaluation.json")
"""What is hashed when a stage is finished, where it exists."""

WEIGHTS_LIMIT = 2**30
"""Bytes of a local model that are hashed whole; of larger ones the files' names and sizes count."""


def fingerprint(recipe: Recipe, stage: Stage, entries: Mapping[str, LedgerEntry]) -> Fingerprint:
    """The fingerprint of a stage, given the finished stages before it. Raises OSError where an input is missing."""
    kind: str = stage.kind  # type: ignore[attr-defined]
    config = dict(_flat("stage", stage))
    config["seed"] = recipe.seed
    for section in SECTIONS[kind]:
        value: Any = recipe
        for key in section.split("."):
            value = getattr(value, key)
        config |= dict(_flat(section, value))
    if type(stage).evaluated:
        config |= dict(_flat("evaluate", recipe.evaluate_of(stage)))
    paths, inputs = _inputs(recipe, stage, entries)
    config = {key: _without_folder(value, paths) for key, value in config.items()}
    return Fingerprint(config=config, inputs=inputs, code=_code(PACKAGES[kind]))


def hashed_outputs(folder: Path) -> dict[str, str]:
    """sha256 of what a stage wrote."""
    return {name: sha256_of(folder / name) for name in OUTPUTS if (folder / name).is_file()}


def _flat(prefix: str, value: object) -> Iterator[tuple[str, Any]]:
    """Dotted key and plain value; keys that do not change the outcome are left out."""
    if not isinstance(value, Node):
        yield prefix, list(value) if isinstance(value, tuple) else value
        return
    free = marked(type(value), FREE)
    for key in (*type(value).model_fields, *(value.__pydantic_extra__ or {})):
        if key not in free:
            yield from _flat(f"{prefix}.{key}", getattr(value, key))


def _without_folder(value: Any, paths: frozenset[str]) -> Any:
    """Files count by their content; where they lie does not matter."""
    if isinstance(value, list):
        return [_without_folder(item, paths) for item in value]
    return Path(value).name if isinstance(value, str) and value in paths else value


def _inputs(recipe: Recipe, stage: Stage, entries: Mapping[str, LedgerEntry]) -> tuple[frozenset[str], dict[str, str]]:
    """The local files that are read, and the sha256 of every input by a name for people."""
    inputs: dict[str, str] = {}
    files: set[str] = set()

    def file(label: str, path: str) -> None:
        files.add(path)
        inputs[f"{label} ({Path(path).name})"] = sha256_of(Path(path))

    def output(name: str, of: str) -> None:
        inputs[f"{Path(name).parts[0]} of stage {of}"] = entries[of].outputs[name]

    def model(label: str, name: str) -> None:
        digest = _local_model(name)
        if digest is not None:
            inputs[f"{label} {name}"] = digest

    model("base", recipe.model.base)
    parent = recipe.parent_of(stage.name)
    takes_policy = not isinstance(stage, DistillStage) or stage.teacher == "self"
    if parent is not None and takes_policy:
        output(OUTPUTS[0], parent)
    if isinstance(stage, DistillStage | GrpoStage) and is_problem_file(recipe.problems.train):
        file("training problems", recipe.problems.train)
    test = stage.problems if isinstance(stage, EvaluateStage) and stage.problems else recipe.problems.test
    if is_problem_file(test):
        file("test problems", test)
    if isinstance(stage, DistillStage) and stage.teacher != "self":
        model("teacher", stage.teacher)
    if isinstance(stage, SftStage):
        for data in stage.data:
            file("data", data) if is_file(data) else output("traces.jsonl", data)
    if isinstance(stage, GrpoStage):
        if stage.reference not in ("base", "start"):
            output(OUTPUTS[0], stage.reference)
        if recipe.reward.file is not None:
            file("reward", recipe.reward.file)
    return frozenset(files), inputs


@cache
def _local_model(name: str) -> str | None:
    """A digest of a model in a local folder or in the package; None for one of the Hub."""
    folder = _package_folder("models") / name if name.startswith("embedded/") else Path(name).expanduser()
    if not folder.is_dir():
        return None
    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".jinja"))
    small = sum(path.stat().st_size for path in files) <= WEIGHTS_LIMIT
    parts = [f"{path.name} {sha256_of(path) if small else path.stat().st_size}" for path in files]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _package_folder(package: str) -> Path:
    found = importlib.util.find_spec(package)
    places = list(found.submodule_search_locations or ()) if found is not None else []
    if not places:
        raise RuntimeError(f"the package {package} is not installed")
    return Path(places[0])


def _code(packages: tuple[str, ...]) -> dict[str, str]:
    return {f"{path.parent.name}/{path.name}": _source_digest(path) for package in packages for path in _files(package)}


def _files(package: str) -> list[Path]:
    """The modules of a package, or the one file."""
    name, _, file = package.partition("/")
    return sorted(_package_folder(name).glob(file or "*.py"))


@cache
def _source_digest(path: Path) -> str:
    """sha256 of the syntax tree, so that comments, docstrings and layout do not count."""
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and isinstance(
            node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        ):
            node.body = [
                line for line in body
                if not (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)
                        and isinstance(line.value.value, str))
            ]  # fmt: skip
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()
