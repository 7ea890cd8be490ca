"""Export: the trained policy as files that stand alone, which count as done when they were loaded again and found to be
that policy. One process of a run does it all; the files are loaded in processes of their own (models/engines/apart.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import torch
from torch import nn

from evals.divergence import Divergence, mean_kl
from evals.evaluate import Evaluation, evaluate
from evals.fidelity import fidelity
from models.adapters import adapter_sha256, load_adapter, read_adapter
from models.base import base_sha256, free_memory, load_base, to_float32
from models.checkpoint import bytes_of
from models.engines.protocol import ADAPTER_CONFIG, ADAPTER_TENSORS, Sampling
from models.engines.start import EngineKind, why_not_vllm
from models.merge import merged_shards, write_merged
from models.paths import hub_model, model_place
from models.training import TrainingError
from orchestra.config.faults import UserError
from orchestra.run.ledger import write_json
from orchestra.text import gib
from orchestra.work.exported import ADAPTERS, ExportRecord, TrainedPolicy, files_of
from orchestra.work.policies import rows_at_once
from orchestra.work.resources import Resources, stage_seed
from orchestra.work.settings import ExportSettings
from settings.files import sha256_of

if TYPE_CHECKING:
    from models.engines.apart import ApartEngine
    from orchestra.run.progress import Progress
    from rewards.problems import Asked

    Sequences = Sequence[tuple[Sequence[int], Sequence[int]]]

KL_PROBLEMS = 64
MERGE_PROBLEMS = 8
"""On which a merge into the original base is compared with the adapter on it, which rounding alone may tell apart."""
# KL in nats a token between a merged model and the adapter on the same base: what rounding the weights to that type
# costs (measured: float16 8e-6, bfloat16 3e-4), with room
ROUNDING: Mapping[str, float] = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 5e-3}
ORIGINAL = 0.2
"""KL in nats a token that the original base in the place of the 4-bit one may cost (measured: 0.005 to 0.02)."""
GPU_RESERVE = 6 * 2**30
"""Bytes of a GPU that are left for logits where a model is spread over it and main memory."""


def export_policy(
    resources: Resources,
    policy: TrainedPolicy,
    folder: Path,
    settings: ExportSettings,
    progress: Progress,
    *,
    replace: bool = False,
) -> ExportRecord:
    """Write an export, load it again and compare it with the policy; only then it takes the folder's place.

    An export that is there already, whole, is left as it is.

    Args:
        replace: also an export of another policy.

    Raises:
        TrainingError: the base is not the one of training, or the export is not the policy.
        EngineError: an engine cannot load what was written.
        UserError: the folder holds something else, or its disk has no room.
    """
    with _alone(folder):
        key = _key(resources, policy, settings)
        there = _there(folder, key, policy, replace=replace)
        if there is not None:
            return there
        partial = folder.with_name(f".{folder.name}.partial")
        try:
            record = _checked(resources, policy, partial, settings, progress, key)
            record.write(partial)
            _put(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return record


def _checked(
    resources: Resources, policy: TrainedPolicy, partial: Path, settings: ExportSettings, progress: Progress, key: str
) -> ExportRecord:
    """Written and found to be the policy."""
    merged = settings.what == "merged"
    _write(resources, policy, partial, settings)
    files = {name: sha256_of(path) for name, path in files_of(partial).items()}
    measured, not_reloaded, sequences = _reload(resources, policy, partial, settings, progress)
    divergence, merge_kl = _divergence(resources, policy, partial, settings, sequences)
    found = fidelity(divergence, merge_kl, policy.evaluation(), measured)
    rounding = ROUNDING[settings.dtype] if merged else ROUNDING["float32"]
    usual = ORIGINAL if merged and settings.base == "original" else rounding
    if missed := found.misses(settings.check, usual_kl=usual, rounding=rounding):
        raise TrainingError(
            f"the export of {policy.name!r} is not the policy that was trained: {'; '.join(missed)}. "
            "Nothing was exported (limits: the export's `check`)"
        )
    return ExportRecord(
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
        files=files,
    )


# the folder


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One export at a time beside one another; what stands in the way of one is told before anything is merged."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is no folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # the folder above: it leaves nothing behind, and is not exchanged while another waits for it
    lock = os.open(folder.parent, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another export works in {folder.parent}; wait for it") from None
        yield
    finally:
        os.close(lock)


def _key(resources: Resources, policy: TrainedPolicy, settings: ExportSettings) -> str:
    """Over the policy, what it is merged into and how, and what must hold."""
    recipe = resources.recipe
    parts = [
        policy.name, adapter_sha256(read_adapter(policy.adapter)), policy.base_sha256, policy.no_go,
        recipe.model.model_dump(mode="json"), settings.what, settings.base, settings.dtype,
        settings.check.model_dump(mode="json"),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _there(folder: Path, key: str, policy: TrainedPolicy, *, replace: bool) -> ExportRecord | None:
    """The same export, if it is there and whole.

    Raises:
        UserError: the folder holds something else, or another policy's export that is not to be replaced.
    """
    record = ExportRecord.read(folder)
    if record is None:
        if folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"{folder} holds something else than an export; choose a folder that is new or empty")
        return None
    if strangers := record.strangers(folder):
        raise UserError(f"{folder} holds files that are not of its export, {strangers[0]!r} say; move them away")
    if record.key == key and record.intact(folder):
        return record
    if record.policies != {policy.name: adapter_sha256(read_adapter(policy.adapter))} and not replace:
        names = ", ".join(record.policies)
        raise UserError(f"{folder} holds the export of another policy ({names}); --replace puts this one in its place")
    return None


def _put(partial: Path, folder: Path) -> None:
    """In the place of what was exported before, which is whole until then."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


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
        write_merged(recipe.model, shards, partial, dtype)
    target = partial / ADAPTERS / policy.name
    target.mkdir(parents=True)
    shutil.copyfile(policy.adapter / ADAPTER_TENSORS, target / ADAPTER_TENSORS)
    config = json.loads((policy.adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    # the base by its name on the Hub; a folder of this machine, or a shipped model, is nobody else's
    hub = hub_model(recipe.model.base)
    config["base_model_name_or_path"] = hub.repo if hub is not None else ""
    write_json(target / ADAPTER_CONFIG, config)


# loaded again


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
            continue
        with resources.engine_apart(str(files), kind, settings.dtype) as engine:
            evaluations.append((kind, _answers(resources, policy, engine, kind, asked, progress)))
            sequences = sequences or _completions(resources, engine, asked)
    return evaluations, gone, sequences


def _why_not(kind: EngineKind, resources: Resources, files: Path) -> str:
    """What speaks against asking this engine; every machine has transformers."""
    if kind == "transformers":
        return ""
    if resources.recipe.rollouts.engine == "transformers":
        return "rollouts.engine is transformers"
    return why_not_vllm(str(files), resources.recipe.model.base)


def _answers(
    resources: Resources, policy: TrainedPolicy, engine: ApartEngine, kind: str, asked: Asked, progress: Progress
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
            resources.domain,
            resources.format,
            seed=resources.recipe.seed,
            stop_token_ids=resources.stops(),
            progress=bar.advance,
        )


def _completions(resources: Resources, engine: ApartEngine, asked: Asked) -> Sequences:
    recipe = resources.recipe
    prompts = asked.tokens[:KL_PROBLEMS]
    limit = recipe.evaluate.max_completion_tokens or recipe.rollouts.max_completion_tokens
    sampling = Sampling(limit, temperature=1.0, top_p=1.0, top_k=0, stop_token_ids=resources.stops())
    seeds = [stage_seed(recipe, f"export-{i}") for i in range(len(prompts))]
    groups = engine.generate(prompts, sampling, seeds)
    return [(prompt, group[0].token_ids) for prompt, group in zip(prompts, groups, strict=True)]


def _divergence(
    resources: Resources, policy: TrainedPolicy, files: Path, settings: ExportSettings, sequences: Sequences
) -> tuple[Divergence, float | None]:
    """From the policy, the adapter on the 4-bit base that it was trained on, to what the files hold, in float32; and,
    where they are merged into another base, KL to them from the adapter, unmerged, on that one."""
    model = resources.recipe.model
    free_memory()
    trained = _on_trained_base(resources, policy.adapter)
    if settings.what == "adapter":
        asked = resources.test(resources.recipe.stage(policy.name)).tokens[:KL_PROBLEMS]
        sequences = [(ids[: len(ids) // 2], ids[len(ids) // 2 :]) for ids in asked if len(ids) > 1]
        return _mean_kl(trained, _on_trained_base(resources, files / ADAPTERS / policy.name), sequences), None
    exported = _spread(str(files))
    found = _mean_kl(trained, exported, sequences)
    if settings.base == "dequantized":
        return found, None
    del trained
    free_memory()
    place = model_place(model.base)
    unmerged = load_adapter(_spread(place.path, place.revision), policy.adapter).eval()
    return found, _mean_kl(unmerged, exported, sequences[:MERGE_PROBLEMS]).kl


def _on_trained_base(resources: Resources, adapter: Path) -> nn.Module:
    model = resources.recipe.model
    return load_adapter(to_float32(load_base(model.base, model.quantize, model.dtype)), adapter).eval()


def _spread(path: str, revision: str | None = None) -> nn.Module:
    """A model in float32; what this process's GPU has no room for is computed with from main memory."""
    from transformers import AutoModelForCausalLM

    room: dict[str, object] = {}
    if torch.cuda.is_available():
        own = torch.cuda.current_device()
        free = torch.cuda.mem_get_info(own)[0]
        room = {"device_map": "auto", "max_memory": {own: max(0, free - GPU_RESERVE), "cpu": 2**50}}
    return AutoModelForCausalLM.from_pretrained(path, revision=revision or "main", dtype=torch.float32, **room).eval()


def _mean_kl(policy: nn.Module, other: nn.Module, sequences: Sequences) -> Divergence:
    return mean_kl(policy, other, sequences, rows=rows_at_once(policy, sequences), device=policy.device)
