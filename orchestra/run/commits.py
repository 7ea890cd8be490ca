"""Which commits of the Hub a run works with: found out once, kept in hub.json, and from then on part of the recipe.

A recipe may say `Qwen/Qwen2.5-3B`, or `Qwen/Qwen2.5-3B@<branch, tag or commit>`. A run puts the commit into the recipe
that its stages get, so that all of them, and the same run resumed a month later, load the same files; and so that
another commit is a changed setting like any other (orchestra/run/fingerprint.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from models.paths import hub_model
from orchestra.config.checks import faults_between_stages
from orchestra.config.faults import RecipeError
from orchestra.config.recipe import Recipe
from orchestra.config.words import is_local
from orchestra.run.folder import read_json
from orchestra.run.ledger import write_json
from rewards.domain import get_domain
from settings import Node, Refers, reference_of
from settings.hub import HubName, Kind, commit_of

FILE = "hub.json"
N = TypeVar("N", bound=Node)
KINDS: Mapping[str, Kind] = {"model": "model", "problems": "dataset"}


def resolve(recipe: Recipe, run_dir: Path) -> dict[str, str]:
    """Find out what those of the recipe's names mean that the run has not met yet, and keep it in hub.json.

    Returns:
        name -> commit of the new ones.

    Raises:
        HubError: it cannot be found out.
    """
    known = read_json(run_dir / FILE)
    new = {}
    for kind, name in sorted(set(_names(recipe, recipe)), key=str):
        key = _key(kind, name)
        if key not in known:
            known[key] = new[str(name)] = commit_of(kind, name)
    if new:
        write_json(run_dir / FILE, known)
    return new


def pinned(recipe: Recipe, run_dir: Path) -> Recipe:
    """The recipe with the commits of hub.json in the place of branches and tags.

    Raises:
        RecipeError: two names that may not be the same turn out to be.
    """
    made = _pinned(recipe, recipe, read_json(run_dir / FILE))
    if faults := faults_between_stages(made.sections, made.stages):
        raise RecipeError(faults)
    return made


def forget(run_dir: Path) -> None:
    """A run that starts from nothing asks again."""
    (run_dir / FILE).unlink(missing_ok=True)


def _pinned(node: N, recipe: Recipe, commits: Mapping[str, str]) -> N:
    update: dict[str, object] = {}
    for key, value in node:
        if isinstance(value, Node):
            update[key] = _pinned(value, recipe, commits)
        elif isinstance(value, tuple) and all(isinstance(one, Node) for one in value):
            update[key] = tuple(_pinned(one, recipe, commits) for one in value)
        elif found := _on_hub(value, reference_of(type(node), key), recipe):
            kind, name = found
            update[key] = str(name.at(commits[_key(kind, name)]))
    return node.model_copy(update=update)


def _names(node: Node, recipe: Recipe) -> Iterator[tuple[Kind, HubName]]:
    for key, value in node:
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, Node):
                yield from _names(one, recipe)
        if found := _on_hub(value, reference_of(type(node), key), recipe):
            yield found


def _on_hub(value: object, refers: Refers | None, recipe: Recipe) -> tuple[Kind, HubName] | None:
    """What a field's value names on the Hub, if that is where it lies."""
    if refers is None or refers.to not in KINDS or not isinstance(value, str) or value in refers.also:
        return None
    if refers.to == "model":
        name = hub_model(value)
    else:
        own = value in get_domain(recipe.problems.domain).sources or is_local(value, refers)
        name = None if own else HubName.parse(value)
    return None if name is None else (KINDS[refers.to], name)


def _key(kind: Kind, name: HubName) -> str:
    return f"{kind} {HubName(name.repo, revision=name.revision)}"
