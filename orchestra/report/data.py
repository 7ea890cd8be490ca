"""What a run folder holds, read for the report: every file may be missing, and the last line of a log cut short.

A file that is there but cannot be read becomes a note on the report instead of an end to it; the run itself is
judged by the runner, not here.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.comments import CommentedMap

from evals.evaluate import Evaluation, compare
from evals.statistics import PairedDifference
from orchestra.config.recipe import BASE, Recipe
from orchestra.config.stage import Gives
from orchestra.report.parts import Part
from orchestra.run.ledger import StageResult
from orchestra.stages import all_kinds

T = TypeVar("T")
Row = Mapping[str, float]
Tree = Mapping[str, object]

FOLDER = re.compile(r"^(\d{2,})-(.+)$")


@dataclass(frozen=True)
class StageRecord:
    """One stage as its folder, or the recipe alone, shows it.

    Fields:
        name, kind: as in the recipe; the base's evaluation is the stage `base` of kind `base`.
        config: the resolved stage config, empty where it has not started.
        result: None until the stage is finished.
        metrics: the step metrics, one mapping a step; sweep: what was measured of the policy at some of the steps.
        statistics: of distillation.
        sets: evaluations by the name of the held-out problems, of a stage that was evaluated on several sets of them.
        outputs: what is in the JSON files that its kind names as its own.
    """

    name: str
    kind: str
    config: Tree = field(default_factory=dict)
    result: StageResult | None = None
    evaluation: Evaluation | None = None
    metrics: tuple[Row, ...] = ()
    sweep: tuple[Row, ...] = ()
    statistics: Tree = field(default_factory=dict)
    sets: Mapping[str, Evaluation] = field(default_factory=dict)
    outputs: Mapping[str, Tree] = field(default_factory=dict)

    @property
    def parts(self) -> tuple[Part, ...]:
        """What its kind shows of it; nothing where the kind is not known here."""
        kind = all_kinds().get(self.kind)
        return tuple(kind.report(self)) if kind is not None else ()

    def gives(self, what: Gives) -> bool:
        """Whether stages of its kind give that to later ones."""
        kind = all_kinds().get(self.kind)
        return kind is not None and what in kind.gives

    def same_problems_as(self, other: StageRecord) -> bool:
        """Whether both were evaluated on the same problems."""
        return set(self.evaluation.problem_ids) == set(other.evaluation.problem_ids)

    @property
    def status(self) -> str:
        """`finished`, `unfinished` (it has begun) or `to do`."""
        if self.result is not None or (self.kind == BASE and self.evaluation is not None):
            return "finished"
        return "unfinished" if self.metrics or self.evaluation or self.statistics else "to do"

    @property
    def beta(self) -> float | None:
        """The KL penalty's weight; None where the stage has none."""
        from_result = self.result.beta if self.result is not None else None
        value = self.config.get("beta") if from_result is None else from_result
        return float(value) if isinstance(value, int | float) else None


@dataclass(frozen=True)
class RunRecord:
    """A run folder.

    Fields:
        arm: of the experiment that it is a run of; empty where it is of none.
        recipe: as YAML text, with what the scale and the command line changed; defaults are left out.
        resolved: the recipe itself; None where it is of another version of the schema.
        ran_on: versions, machine and the like, by name.
        plan: stage name -> planned numbers, empty where the run did not record any.
        stages: those with a folder in their order, then those to come.
        notes: what could not be read.
    """

    path: Path
    name: str
    arm: str
    scale: str
    seed: str
    recipe: str
    ran_on: dict[str, str]
    plan: dict[str, dict[str, float]]
    stages: tuple[StageRecord, ...]
    notes: tuple[str, ...]
    resolved: Recipe | None = None

    @property
    def finished(self) -> bool:
        """Whether every stage of the recipe is."""
        return bool(self.stages) and all(stage.status == "finished" for stage in self.stages)

    @property
    def evaluated(self) -> list[StageRecord]:
        """The stages whose policy was evaluated, the base first."""
        return [stage for stage in self.stages if stage.evaluation is not None]


def compared(
    after: StageRecord, before: StageRecord, of: Literal["sampled", "greedy"] = "sampled"
) -> PairedDifference | None:
    """The paired difference of two evaluated stages; None where the problems differ, or one has no such pass."""
    if not after.same_problems_as(before) or None in (getattr(after.evaluation, of), getattr(before.evaluation, of)):
        return None
    return compare(after.evaluation, before.evaluation, of=of, seed=after.evaluation.seed)


def read_run(run_dir: Path) -> RunRecord:
    """Read a run folder, finished or not.

    Raises:
        FileNotFoundError: there is no such folder, or nothing of a run in it.
    """
    if not run_dir.is_dir():
        raise FileNotFoundError(f"{run_dir}: no such run folder")
    reader = _Reader()
    about = reader.tree(run_dir / "run.json")
    folders = sorted(
        (int(match[1]), match[2], path) for path in run_dir.iterdir() if (match := FOLDER.match(path.name))
    )
    if not about and not folders:
        raise FileNotFoundError(f"{run_dir}: not a run folder (no run.json, no stage folders)")
    recipe_text, recipe, resolved = _recipe(about.get("recipe"), reader)
    planned = {str(stage["name"]): stage for stage in _trees(recipe.get("stages")) if "name" in stage}
    stages = [_stage(name, path, planned.get(name, {}), reader) for _, name, path in folders]
    begun = {stage.name for stage in stages}
    stages += [
        StageRecord(name, str(stage.get("kind", "?")), config=stage)
        for name, stage in planned.items()
        if name not in begun
    ]
    return RunRecord(
        path=run_dir,
        name=str(recipe.get("name") or about.get("name") or run_dir.name),
        arm=str(about.get("arm", "")),
        scale=str(about.get("scale", "")),
        seed=str(about.get("seed", recipe.get("seed", ""))),
        recipe=recipe_text,
        ran_on=_ran_on(about),
        plan=_plan(about.get("plan") or reader.tree(run_dir / "plan.json")),
        stages=tuple(stages),
        notes=tuple(reader.notes),
        resolved=resolved,
    )


class _Reader:
    """Reads files and notes those that it cannot make sense of."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def parsed(self, path: Path, parse: Callable[[bytes], T]) -> T | None:
        if not path.is_file():
            return None
        try:
            return parse(path.read_bytes())
        except FileNotFoundError:  # gone since: the run goes on
            return None
        except ValueError as error:
            first = str(error).strip().splitlines()[0]
            self.notes.append(f"{path.parent.name}/{path.name} could not be read: {first}")
            return None

    def tree(self, path: Path) -> Tree:
        return _tree(self.parsed(path, json.loads))

    def rows(self, path: Path) -> tuple[Row, ...]:
        """Step metrics; only what is a finite number, the last of each step (a resumed run may repeat some)."""
        if not path.is_file():
            return ()
        rows: dict[float, Row] = {}
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = {key: float(value) for key, value in _tree(json.loads(line)).items() if _is_number(value)}
            except ValueError as error:
                if number < len(lines):  # the last line of a killed run may be half written
                    self.notes.append(f"{path.parent.name}/{path.name} line {number} could not be read: {error}")
                continue
            if "step" in row:
                rows[row["step"]] = row
        return tuple(rows[step] for step in sorted(rows))


def _stage(name: str, path: Path, planned: Tree, reader: _Reader) -> StageRecord:
    config = reader.tree(path / "config.json")
    # config.json may hold more than the stage itself
    config = {**planned, **config, **_tree(config.get("stage"))}
    # strict about types, where StageResult.from_json takes what comes; keys of other versions are left out by both
    result = reader.parsed(path / "result.json", TypeAdapter(StageResult).validate_json)
    kind = result.kind if result is not None else str(config.get("kind", BASE if name == BASE else "?"))
    evaluation = reader.parsed(path / "evaluation.json", Evaluation.from_json)
    named = [str(one) for one in _tree(config.get("problems"))]
    others = {one: reader.parsed(path / f"evaluation-{one}.json", Evaluation.from_json) for one in named[1:]}
    sets = {one: found for one, found in ({one: evaluation for one in named[:1]} | others).items() if found is not None}
    return StageRecord(
        name=name,
        kind=kind,
        config=config,
        result=result,
        evaluation=evaluation,
        metrics=reader.rows(path / "metrics.jsonl"),
        sweep=reader.rows(path / "sweep.jsonl"),
        statistics=reader.tree(path / "statistics.json"),
        sets=sets,
        outputs={file: reader.tree(path / file) for file in _own_files(kind) if (path / file).is_file()},
    )


def _own_files(kind: str) -> list[str]:
    known = all_kinds().get(kind)
    return [file for file in known.outputs if file.endswith(".json")] if known is not None else []


def _recipe(value: object, reader: _Reader) -> tuple[str, Tree, Recipe | None]:
    """The recipe's text, tree and itself. Of a mapping only what differs from the schema's defaults is written."""
    if isinstance(value, str):
        try:
            return value, _tree(YAML(typ="safe").load(value)), None
        except YAMLError as error:
            reader.notes.append(f"run.json: the recipe is not YAML: {str(error).splitlines()[0]}")
            return value, {}, None
    tree = _tree(value)
    if not tree:
        return "", {}, None
    try:
        resolved = Recipe.model_validate(tree)
    except ValidationError:  # of another version of the schema: all of it, then
        return to_yaml(tree), tree, None
    return to_yaml(resolved.model_dump(mode="json", exclude_defaults=True)), tree, resolved


def to_yaml(recipe: Tree) -> str:
    """The recipe as YAML text in the manner of the recipe files: a stage is a mapping on one line, name first."""
    yaml = YAML()
    yaml.default_flow_style = None
    yaml.width = 96
    yaml.indent(sequence=4, offset=2)
    plain = json.loads(json.dumps({"name": None, "seed": None} | dict(recipe)))
    plain = {key: value for key, value in plain.items() if value is not None}
    stages = plain.get("stages")
    if isinstance(stages, list):
        plain["stages"] = [_one_line(stage) if isinstance(stage, dict) else stage for stage in stages]
    out = io.StringIO()
    yaml.dump(plain, out)
    return re.sub(r" +$", "", out.getvalue(), flags=re.MULTILINE)


def _one_line(stage: dict[str, object]) -> CommentedMap:
    first = [key for key in ("name", "kind") if key in stage]
    line = CommentedMap((key, stage[key]) for key in (*first, *(key for key in stage if key not in first)))
    line.fa.set_flow_style()
    return line


def _ran_on(about: Tree) -> dict[str, str]:
    """Everything that run.json says besides the recipe, its name and its scale."""
    changes = about.get("set")
    found = {
        "recipe file": about.get("source"),
        "set on the command line": ", ".join(map(str, changes)) if isinstance(changes, list) else changes,
        "machine": about.get("machine"),
        "seed": about.get("seed"),
        **_tree(about.get("versions")),
    }
    return {str(key): str(value) for key, value in found.items() if value not in (None, "")}


def _plan(value: object) -> dict[str, dict[str, float]]:
    """From {"stages": [{"name": ..., "seconds": ...}]}, the list alone, or {name: {...}}."""
    tree = _tree(value)
    listed = _trees(value if isinstance(value, list) else tree.get("stages"))
    named = {str(item.get("name")): item for item in listed} or {
        k: v for k, v in tree.items() if isinstance(v, Mapping)
    }
    numbers = {name: {k: float(v) for k, v in item.items() if _is_number(v)} for name, item in named.items()}
    return {name: values for name, values in numbers.items() if values}


def _tree(value: object) -> Tree:
    return value if isinstance(value, Mapping) else {}


def _trees(value: object) -> list[Tree]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
