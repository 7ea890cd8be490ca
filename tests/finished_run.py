"""A run of two finished stages on the tiny model, whose policies were trained on its base and evaluated."""

import json
from pathlib import Path

import tiny

from evals.evaluate import evaluate
from models.adapters import save_adapter
from models.base import base_sha256
from models.folding import folded_weights
from orchestra.config.recipe import Recipe
from orchestra.run.ledger import Fingerprint, Ledger, LedgerEntry, StageResult
from orchestra.work.resources import Resources


def recipe(base: Path, folder: Path) -> Recipe:
    """Six problems, answered by transformers' generate."""
    file = folder / "test.jsonl"
    file.write_text("".join(json.dumps({"question": q, "answer": "1"}) + "\n" for q in tiny.QUESTIONS))
    return Recipe.model_validate(
        {
            "name": "small",
            "model": {"base": str(base), "lora": {"rank": 4, "alpha": 8}},
            "problems": {"train": str(file), "test": str(file)},
            "rollouts": {"max_completion_tokens": 16, "max_prompt_tokens": 60, "group_size": 2,
                         "engine": "transformers"},
            "stages": [
                {"name": "explore", "kind": "grpo", "steps": 1, "learning_rate": 1e-3},
                {"name": "polish", "kind": "grpo", "steps": 1, "learning_rate": 1e-3},
            ],
        }
    )  # fmt: skip


def write(recipe: Recipe, run: Path) -> Path:
    """The run's folder; accuracies in the ledger are made up (0.1, 0.2), evaluations are not."""
    run.mkdir()
    about = {"recipe": recipe.model_dump(mode="json"), "scale": "embedded", "seed": recipe.seed}
    (run / "run.json").write_text(json.dumps(about))
    ledger, resources = Ledger(run), Resources(recipe)
    for index, name in enumerate(("explore", "polish"), start=1):
        folder = run / f"{index:02}-{name}"
        folder.mkdir()
        policy = tiny.policy(recipe.model.base, seed=index)
        save_adapter(policy, folder / "adapter")
        engine, stage = resources.engine(), recipe.stage(name)
        engine.sync_folded(folded_weights(policy))
        evaluation = evaluate(
            engine, resources.test(stage), stage.evaluation(recipe), resources.domain, resources.format,
            seed=recipe.seed, stop_token_ids=resources.stops(),
        )  # fmt: skip
        (folder / "evaluation.json").write_text(evaluation.to_json())
        config = {f"model.{key}": getattr(recipe.model, key) for key in ("base", "quantize", "dtype")}
        result = StageResult(name, "grpo", accuracy=index / 10, beta=0.01, extra={"base_sha256": base_sha256(policy)})
        (folder / "result.json").write_text(json.dumps(result.to_json()))
        ledger.record(LedgerEntry(folder.name, Fingerprint(config, {}, {}), {}, result))
    return run
