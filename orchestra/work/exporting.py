"""Export: the trained policy as files that stand alone, which count as done when they were loaded again and found to be
that policy.

An export is a folder that is published as it is: the merged model with tokenizer and configuration, if one is wanted;
`adapters/<name>/` with each policy that it is of; README.md, the card; and export.json, which says what all this is.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import torch
from pydantic import TypeAdapter

from evals.divergence import Divergence, mean_kl
from evals.evaluate import Evaluation, evaluate
from evals.fidelity import Fidelity, fidelity
from models.adapters import adapter_sha256, load_adapter, read_adapter
from models.base import base_sha256, free_memory, load_base, to_float32
from models.checkpoint import bytes_of
from models.engines.protocol import ADAPTER_CONFIG, ADAPTER_TENSORS, Engine, Sampling
from models.engines.start import EngineKind, why_not_vllm
from models.merge import merged_shards, write_merged
from models.settings import MergeBase
from models.training import TrainingError
from orchestra.config.faults import UserError
from orchestra.run.ledger import sha256_of, write_json
from orchestra.text import gib
from orchestra.work.context import ADAPTER
from orchestra.work.policies import EVALUATION, SharedJudge
from orchestra.work.resources import Resources, stage_seed
from orchestra.work.settings import ExportSettings

if TYPE_CHECKING:
    from orchestra.run.ledger import StageResult
    from orchestra.run.progress import Progress
    from rewards.problems import Asked

RECORD = "export.json"
ADAPTERS = "adapters"
KL_PROBLEMS = 64
# KL in nats a token between the exported model and the trained policy: what rounding the weights to that type costs
# (measured: float16 8e-6, bfloat16 3e-4), with room; merging wrongly costs 0.02 to 0.2
KL_LIMIT: Mapping[tuple[MergeBase, str], float] = {
    ("dequantized", "float32"): 1e-5,
    ("dequantized", "float16"): 1e-3,
    ("dequantized", "bfloat16"): 5e-3,
    **{("original", dtype): 0.2 for dtype in ("float32", "float16", "bfloat16")},
}
ADAPTER_KL_LIMIT = 1e-6
"""Of an adapter alone on the base that it was trained on: rounding."""


@dataclass(frozen=True)
class TrainedPolicy:
    """A finished stage's policy.

    Fields:
        name: of the stage; folder: the stage's; base_sha256: hash of the base when it was trained, None where the stage
            did not record it; no_go: what a gate said against it, empty where none did.
    """

    name: str
    folder: Path
    base_sha256: str | None = None
    no_go: str = ""

    @classmethod
    def of(cls, name: str, folder: Path, result: StageResult, no_go: str = "") -> TrainedPolicy:
        """Of a stage's folder and what it had to say."""
        return cls(name, folder, str(result.extra["base_sha256"]) if "base_sha256" in result.extra else None, no_go)

    @property
    def adapter(self) -> Path:
        """Its PEFT folder."""
        return self.folder / ADAPTER

    def evaluation(self) -> Evaluation:
        """Its own."""
        return Evaluation.from_json((self.folder / EVALUATION).read_bytes())


@dataclass(frozen=True)
class ExportRecord:
    """What export.json says.

    Fields:
        key: hash of all that decides the files; the same export again has the same.
        policies: name -> hash of its adapter, each in adapters/<name>/.
        merged: of the policies, what is merged: None where the adapters are all.
        base, base_sha256: that was trained on, and its hash.
        merge_base, dtype: of the merged model.
        fidelity: how it compares with the policy; not_reloaded: engines that could not be asked, and why.
        no_go: what a gate said against it, where it was exported all the same.
        files: path -> sha256 of everything but this file and the card.
    """

    key: str
    policies: Mapping[str, str]
    merged: tuple[str, ...] | None
    base: str
    base_sha256: str
    merge_base: MergeBase
    dtype: str
    fidelity: Fidelity
    not_reloaded: Mapping[str, str]
    no_go: str
    files: Mapping[str, str]

    @classmethod
    def read(cls, folder: Path) -> ExportRecord | None:
        """Of an export; None where the folder is none. Raises UserError where it cannot be read."""
        file = folder / RECORD
        if not file.is_file():
            return None
        try:
            return TypeAdapter(cls).validate_json(file.read_bytes())
        except ValueError as error:
            raise UserError(f"{file} is damaged ({str(error).splitlines()[0]}); export into another folder") from error

    def lines(self) -> list[str]:
        """What is to be told of how it compares."""
        found = self.fidelity
        lines = [f"KL to the trained policy {found.kl:.1e} nats a token, top-1 {found.agreement:.1%}"]
        for one in found.reloaded:
            lines.append(
                f"reloaded by {one.engine}, {one.of}: accuracy {one.accuracy.estimate:.3f}, "
                f"{100 * one.difference.difference:+.1f} points to the policy's on the same {one.difference.n} "
                f"problems, {one.changed or 'none'} answered otherwise"
            )
        return lines

    def intact(self, folder: Path) -> bool:
        """Whether all its files are as they were written."""
        return all((folder / name).is_file() and sha256_of(folder / name) == sha for name, sha in self.files.items())


def export_policy(
    resources: Resources, policy: TrainedPolicy, folder: Path, settings: ExportSettings, progress: Progress
) -> ExportRecord:
    """Write an export, load it again and compare it with the policy; only then it takes the folder's place.

    All processes of a run call this together. An export that is there already, whole, is left as it is.

    Raises:
        TrainingError: the base is not the one of training, or the export is not the policy.
        UserError: the folder holds something else, or its disk has no room.
    """
    once = resources.processes.once
    key = once(lambda: _key(resources, policy, settings))
    there = once(lambda: _there(folder, key))
    if there is not None:
        return there
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        once(lambda: _write(resources, policy, partial, settings))
        measured, not_reloaded, sequences = _reload(resources, policy, partial, settings, progress)
        divergence = once(lambda: _divergence(resources, policy, partial, settings, sequences))
        found = fidelity(divergence, policy.evaluation(), measured)
        merged = settings.what == "merged"
        usual = KL_LIMIT[settings.base, settings.dtype] if merged else ADAPTER_KL_LIMIT
        if missed := found.misses(settings.check, usual_kl=usual):
            raise TrainingError(
                f"the export of {policy.name!r} is not the policy that was trained: {'; '.join(missed)}. "
                "Nothing was exported (limits: the export's `check`)"
            )
        files = {path.relative_to(partial).as_posix(): path for path in sorted(partial.rglob("*")) if path.is_file()}
        record = once(
            lambda: ExportRecord(
                key=key,
                policies={policy.name: adapter_sha256(read_adapter(policy.adapter))},
                merged=(policy.name,) if merged else None,
                base=resources.recipe.model.base,
                base_sha256=policy.base_sha256 or "",
                merge_base=settings.base,
                dtype=settings.dtype,
                fidelity=found,
                not_reloaded=not_reloaded,
                no_go=policy.no_go,
                files={name: sha256_of(path) for name, path in files.items()},
            )
        )
        once(lambda: _put(partial, folder, record))
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return record


def _key(resources: Resources, policy: TrainedPolicy, settings: ExportSettings) -> str:
    """Over the policy, what it is merged into and how, and what must hold."""
    recipe = resources.recipe
    parts = [
        policy.name, adapter_sha256(read_adapter(policy.adapter)), policy.base_sha256, policy.no_go,
        recipe.model.model_dump(mode="json"), settings.what, settings.base, settings.dtype,
        settings.check.model_dump(mode="json"),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _there(folder: Path, key: str) -> ExportRecord | None:
    """The same export, if it is there and whole. Raises UserError where the folder holds something else."""
    record = ExportRecord.read(folder)
    if record is None and folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} holds something else than an export; choose a folder that is new or empty")
    return record if record is not None and record.key == key and record.intact(folder) else None


def _write(resources: Resources, policy: TrainedPolicy, partial: Path, settings: ExportSettings) -> None:
    recipe = resources.recipe
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if policy.base_sha256 is not None:
        base = load_base(recipe.model.base, recipe.model.quantize, recipe.model.dtype)
        if base_sha256(base) != policy.base_sha256:
            raise TrainingError(
                f"the base {recipe.model.base!r} ({recipe.model.quantize}, {recipe.model.dtype}) is not the one that "
                "the policy was trained on (its hash is another); nothing was exported"
            )
        del base
        free_memory()
    if settings.what == "merged":
        dtype = getattr(torch, settings.dtype)
        shards = merged_shards(recipe.model, policy.adapter, dtype, settings.base)
        needed, free = sum(map(bytes_of, shards.values())), shutil.disk_usage(partial).free
        if needed > free:
            raise UserError(
                f"the merged model takes {gib(needed)}, and the disk with {partial.parent} has {gib(free)}; make room, "
                "or export to another disk"
            )
        write_merged(recipe.model, policy.adapter, partial, dtype, settings.base)
    target = partial / ADAPTERS / policy.name
    target.mkdir(parents=True)
    shutil.copyfile(policy.adapter / ADAPTER_TENSORS, target / ADAPTER_TENSORS)
    config = json.loads((policy.adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    # by the name that the recipe knows it by, not the folder in which this machine has it
    config["base_model_name_or_path"] = recipe.model.base.partition("@")[0]
    write_json(target / ADAPTER_CONFIG, config)


def _put(partial: Path, folder: Path, record: ExportRecord) -> None:
    """In the place of what was exported before."""
    write_json(partial / RECORD, asdict(record))
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


# loaded again

Sequences = Sequence[tuple[Sequence[int], Sequence[int]]]


def _reload(
    resources: Resources, policy: TrainedPolicy, files: Path, settings: ExportSettings, progress: Progress
) -> tuple[list[tuple[str, Evaluation]], dict[str, str], Sequences]:
    """Evaluations by engine, engines that could not be asked and why, and (prompt, completion) of the policy's kind."""
    if settings.what == "adapter":
        # what is on the disk is compared with the policy as PEFT loads it; no engine quantises the base as training did
        return [], {"vllm": "an adapter alone has no base of its own"}, ()
    stage = resources.recipe.stage(policy.name)
    asked = resources.asked_by(str(files), stage, settings.check.problems)
    evaluations: list[tuple[str, Evaluation]] = []
    gone: dict[str, str] = {}
    sequences: Sequences = ()
    for kind in get_args(EngineKind):
        if why := _why_not(kind, resources, files):
            gone[kind] = why
            progress.say(f"    not reloaded by {kind}: {why}")
            continue
        with resources.engine_on(str(files), kind) as engine:
            evaluations.append((kind, _answers(resources, policy, engine, kind, asked, progress)))
            sequences = sequences or _completions(resources, engine, asked)
    return evaluations, gone, sequences


def _why_not(kind: EngineKind, resources: Resources, files: Path) -> str:
    """What speaks against asking this engine; every machine has transformers."""
    serving = resources.recipe.rollouts
    if kind == "transformers":
        return ""
    if serving.engine == "transformers":
        return "rollouts.engine is transformers"
    return why_not_vllm(str(files), resources.recipe.model.base)


def _answers(
    resources: Resources, policy: TrainedPolicy, engine: Engine, kind: str, asked: Asked, progress: Progress
) -> Evaluation:
    """An evaluation like the policy's own; with transformers, which is slow and draws otherwise, the greedy pass."""
    settings = resources.recipe.stage(policy.name).evaluation(resources.recipe)
    if kind == "transformers" and settings.greedy:
        settings = settings.model_copy(update={"temperature": 0.0, "samples": 1, "pass_at_k": ()})
    passes = 2 if settings.greedy and settings.temperature else 1
    with progress.bar(f"export: reloaded by {kind}", passes * len(asked.problems), "problems") as bar:
        return evaluate(
            engine,
            asked,
            settings,
            SharedJudge(resources.domain, resources.processes),
            resources.format,
            seed=resources.recipe.seed,
            stop_token_ids=resources.stops(),
            progress=bar.advance,
        )


def _completions(resources: Resources, engine: Engine, asked: Asked) -> Sequences:
    recipe = resources.recipe
    prompts = asked.tokens[:KL_PROBLEMS]
    limit = recipe.evaluate.max_completion_tokens or recipe.rollouts.max_completion_tokens
    sampling = Sampling(limit, temperature=1.0, top_p=1.0, top_k=0, stop_token_ids=resources.stops())
    seeds = [stage_seed(recipe, f"export-{i}") for i in range(len(prompts))]
    groups = engine.generate(prompts, sampling, seeds)
    return [(prompt, group[0].token_ids) for prompt, group in zip(prompts, groups, strict=True)]


def _divergence(
    resources: Resources, policy: TrainedPolicy, files: Path, settings: ExportSettings, sequences: Sequences
) -> Divergence:
    """KL from the policy, the adapter on the 4-bit base that it was trained on, to what the files hold, in float32."""
    from transformers import AutoModelForCausalLM

    model = resources.recipe.model

    def on_base(adapter: Path) -> torch.nn.Module:
        return load_adapter(to_float32(load_base(model.base, model.quantize, model.dtype)), adapter).eval()

    trained = on_base(policy.adapter)
    if settings.what == "adapter":
        exported = on_base(files / ADAPTERS / policy.name)
        asked = resources.test(resources.recipe.stage(policy.name)).tokens[:KL_PROBLEMS]
        sequences = [(ids[: len(ids) // 2], ids[len(ids) // 2 :]) for ids in asked if len(ids) > 1]
    else:
        # what the GPU has no room for is computed with from main memory
        spread = "auto" if torch.cuda.is_available() else None
        exported = AutoModelForCausalLM.from_pretrained(files, dtype=torch.float32, device_map=spread).eval()
    return mean_kl(trained, exported, sequences, device=trained.device)
