"""An export is reloaded and compared with the trained policy before it counts."""

import json

import pytest
import tiny
import torch

from models.adapters import adapter_sha256, load_adapter, read_adapter, save_adapter
from models.base import base_sha256, load_base, load_tokenizer, to_float32
from models.training import TrainingError
from orchestra.cli_export import export_run
from orchestra.config.faults import UserError
from orchestra.config.recipe import Recipe
from orchestra.run.ledger import Fingerprint, Ledger, LedgerEntry, StageResult
from orchestra.work import exporting
from orchestra.work.exporting import KL_LIMIT, export_policy
from orchestra.work.resources import Resources


@pytest.fixture(scope="module")
def recipe(tiny_path, tmp_path_factory):
    file = tmp_path_factory.mktemp("problems") / "test.jsonl"
    file.write_text("".join(json.dumps({"question": q, "answer": "1"}) + "\n" for q in tiny.QUESTIONS))
    return Recipe.model_validate(
        {
            "name": "small",
            "model": {"base": str(tiny_path), "lora": {"rank": 4, "alpha": 8}},
            "problems": {"train": str(file), "test": str(file)},
            "rollouts": {"max_completion_tokens": 16, "max_prompt_tokens": 60, "group_size": 2},
            "stages": [{"name": "explore", "kind": "grpo", "steps": 1, "learning_rate": 1e-3}],
        }
    )


@pytest.fixture(scope="module")
def adapter(tiny_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(tiny.policy(tiny_path), folder)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_is_exported_is_the_policy(recipe, adapter, tiny_path, tmp_path, dtype):
    from transformers import AutoModelForCausalLM

    report = export_policy(Resources(recipe), adapter, tmp_path, dtype, None)
    assert 0 <= report.kl <= KL_LIMIT[dtype] and report.agreement > 0.9
    assert report.adapter_sha256 == adapter_sha256(read_adapter(tmp_path / "adapter"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.dtype == getattr(torch, dtype)
    ids = list(range(60, 100))
    ours = tiny.next_token_logprobs(merged.float(), ids)
    policy = tiny.next_token_logprobs(tiny.policy(tiny_path), ids)
    assert float((policy.exp() * (policy - ours)).sum(-1).mean()) < KL_LIMIT[dtype]
    assert load_tokenizer(str(tmp_path / "merged")).chat_template == load_tokenizer(str(tiny_path)).chat_template
    config = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    assert set(tiny.MORE_ENDS) < set(config["eos_token_id"])


def test_the_base_is_the_one_that_was_trained_on(recipe, adapter, tiny_path, tmp_path):
    """A checkpoint is cast before it is quantised: trained in bfloat16, it has other 4-bit codes than in float32."""
    from transformers import AutoModelForCausalLM

    coarse = recipe.model_copy(update={"model": recipe.model.model_copy(update={"dtype": "bfloat16"})})
    export_policy(Resources(coarse), adapter, tmp_path, "float32", None)
    ids = list(range(60, 100))
    ours = tiny.next_token_logprobs(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), ids)

    def kl(base):
        policy = tiny.next_token_logprobs(load_adapter(to_float32(base), adapter), ids)
        return float((policy.exp() * (policy - ours)).sum(-1).mean())

    assert abs(kl(load_base(str(tiny_path), "nf4", "bfloat16"))) < 1e-6
    assert kl(load_base(str(tiny_path), "nf4", "float32")) > 1e-5


def test_a_wrong_merge_is_not_called_done(recipe, adapter, tmp_path, monkeypatch):
    """Merged into the unquantised checkpoint: the mistake that everybody makes."""
    right = exporting.merged_model
    monkeypatch.setattr(
        exporting, "merged_model", lambda model, *rest: right(model.model_copy(update={"quantize": "none"}), *rest)
    )
    with pytest.raises(TrainingError, match=r"is not the trained policy: KL .* nats a token \(allowed for bfloat16"):
        export_policy(Resources(recipe), adapter, tmp_path, "bfloat16", None)


def test_exporting_again_takes_the_place_of_the_old(recipe, adapter, tmp_path):
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "leftover").write_text("of another export")
    export_policy(Resources(recipe), adapter, tmp_path, "float16", None)
    assert not (tmp_path / "merged" / "leftover").exists()


def entry(folder, kind="grpo"):
    return LedgerEntry(folder, Fingerprint({}, {}, {}), {}, StageResult(name=folder[3:], kind=kind))


def test_a_runs_newest_policy(recipe, adapter, tiny_path, tmp_path, capfd):
    run = tmp_path / "run"
    run.mkdir()
    ledger = Ledger(run)
    with pytest.raises(UserError, match="no trained policy yet"):
        export_run(run, None)
    (run / "run.json").write_text(json.dumps({"recipe": recipe.model_dump(mode="json")}))
    for index, name in enumerate(("explore", "polish"), start=1):
        folder = run / f"{index:02}-{name}"
        folder.mkdir()
        save_adapter(tiny.policy(tiny_path, seed=index), folder / "adapter")
        ledger.record(entry(folder.name))
    capfd.readouterr()
    said = export_run(run, tmp_path / "here")
    assert capfd.readouterr() == ("", ""), "the libraries' bars go to the log"
    assert "polish" in said and str(tmp_path / "here" / "merged") in said
    exported = adapter_sha256(read_adapter(tmp_path / "here" / "adapter"))
    assert exported == adapter_sha256(read_adapter(run / "02-polish" / "adapter"))


def test_the_stages_own_record_counts_not_what_was_asked_for_later(recipe, adapter, tiny_path, tmp_path):
    """A refused `--set model.quantize=none` once got into run.json, and the export merged onto another base."""
    run = tmp_path / "run"
    (run / "01-explore").mkdir(parents=True)
    policy = tiny.policy(tiny_path)
    save_adapter(policy, run / "01-explore" / "adapter")
    asked = {"base": str(tiny_path), "quantize": "none", "lora": {"rank": 4, "alpha": 8}}
    (run / "run.json").write_text(json.dumps({"recipe": recipe.model_dump(mode="json") | {"model": asked}}))
    trained = {f"model.{key}": getattr(recipe.model, key) for key in ("base", "quantize", "dtype")}

    def finished(base_hash):
        result = StageResult(name="explore", kind="grpo", extra={"base_sha256": base_hash})
        Ledger(run).record(LedgerEntry("01-explore", Fingerprint(trained, {}, {}), {}, result))

    finished(base_sha256(policy))
    assert "explore" in export_run(run, tmp_path / "here")
    finished("of another base")
    with pytest.raises(TrainingError, match=r"is not the one that the policy was trained on"):
        export_run(run, tmp_path / "there")
    assert not (tmp_path / "there" / "merged").exists()
