"""An export is loaded again from its files and compared with the trained policy before it counts."""

import json
import shutil
from collections import namedtuple

import finished_run
import pytest
import tiny
import torch

from models import merge
from models.adapters import adapter_sha256, load_adapter, read_adapter
from models.base import load_base, load_tokenizer, to_float32
from models.engines.start import start_engine
from models.training import TrainingError
from orchestra.cli_export import export_run
from orchestra.config.faults import UserError
from orchestra.run.ledger import Ledger
from orchestra.run.progress import Progress
from orchestra.work import exporting, resources
from orchestra.work.exported import ExportRecord, TrainedPolicy
from orchestra.work.exporting import ROUNDING, export_policy
from orchestra.work.publishing import write_card
from orchestra.work.resources import Resources
from orchestra.work.settings import ExportSettings

IDS = list(range(60, 100))


@pytest.fixture(scope="module")
def recipe(tiny_path, tmp_path_factory):
    return finished_run.recipe(tiny_path, tmp_path_factory.mktemp("problems"))


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    return finished_run.write(recipe, tmp_path_factory.mktemp("runs") / "small-embedded")


@pytest.fixture(autouse=True)
def near(request, monkeypatch):
    """The engine of the files in this process, which starts at once; where it is another's is tested below."""
    if "a_process_of_its_own" not in request.node.name:
        monkeypatch.setattr(resources, "ApartEngine", start_engine)


@pytest.fixture
def run(finished, tmp_path):
    """A copy of one's own."""
    return shutil.copytree(finished, tmp_path / finished.name)


@pytest.fixture
def export(recipe, run, tmp_path):
    """export(recipe, base_sha256, ...): of the last policy into a folder."""

    def go(recipe=recipe, trained_on=None, to=tmp_path / "there", replace=False, **settings):
        policy = TrainedPolicy("polish", run / "02-polish", trained_on)
        stage = ExportSettings.model_validate(settings)
        return export_policy(Resources(recipe), policy, to, stage, Progress(quiet=True), replace=replace)

    return go


def divergence(policy, exported):
    ours, theirs = tiny.next_token_logprobs(policy, IDS), tiny.next_token_logprobs(exported, IDS)
    return float((ours.exp() * (ours - theirs)).sum(-1).mean())


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_is_exported_is_the_policy(export, tiny_path, run, tmp_path, dtype):
    from transformers import AutoModelForCausalLM

    record = export(dtype=dtype)
    there = tmp_path / "there"
    assert 0 <= record.fidelity.kl <= ROUNDING[dtype] and record.fidelity.agreement > 0.9
    (reloaded,) = record.fidelity.reloaded
    assert (reloaded.engine, reloaded.of, reloaded.difference.n) == ("transformers", "greedy", len(tiny.QUESTIONS))
    assert dtype != "float32" or (reloaded.changed, reloaded.difference.difference) == (0, 0.0)
    assert record.not_reloaded == {"vllm": "rollouts.engine is transformers"}
    merged = AutoModelForCausalLM.from_pretrained(there)
    assert merged.dtype == getattr(torch, dtype)
    assert divergence(tiny.policy(tiny_path, seed=2), merged.float()) < ROUNDING[dtype]
    assert load_tokenizer(str(there)).chat_template == load_tokenizer(str(tiny_path)).chat_template
    config = json.loads((there / "generation_config.json").read_text())
    assert set(tiny.MORE_ENDS) < set(config["eos_token_id"])
    beside = there / "adapters" / "polish"
    assert record.policies == {"polish": adapter_sha256(read_adapter(beside))}
    assert ExportRecord.read(there) == record and record.intact(there)


def test_the_base_is_the_one_that_was_trained_on(export, recipe, tiny_path, run, tmp_path):
    """A checkpoint is cast before it is quantised: trained in bfloat16, it has other 4-bit codes than in float32."""
    from transformers import AutoModelForCausalLM

    coarse = recipe.model_copy(update={"model": recipe.model.model_copy(update={"dtype": "bfloat16"})})
    export(coarse, dtype="float32", check={"max_accuracy_loss": 1.0})
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "there")

    def kl(dtype):
        base = to_float32(load_base(str(tiny_path), "nf4", dtype))
        return divergence(load_adapter(base, run / "02-polish" / "adapter"), merged)

    assert abs(kl("bfloat16")) < 1e-6
    assert kl("float32") > 1e-5


def test_the_original_base_is_another_model_and_is_measured(export):
    """Rounding to 4 bits is undone in the base, to which the adapter was fitted."""
    found = export(base="original", dtype="float32", check={"max_kl": 10.0, "min_agreement": 0.0})
    assert found.fidelity.kl > 1e-3 and found.merge_base == "original"
    assert found.fidelity.merge_kl < 1e-9, "and it is exactly the adapter on that base"


@pytest.mark.slow
def test_a_process_of_its_own_loads_the_files(export):
    found = export(dtype="float32").fidelity
    assert [(one.engine, one.of, one.changed) for one in found.reloaded] == [("transformers", "greedy", 0)]


def test_the_adapter_alone(export, run, tmp_path):
    record = export(what="adapter")
    there = tmp_path / "there"
    assert record.merged is None and record.fidelity.kl < 1e-9 and record.fidelity.reloaded == ()
    assert {path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file()} == {
        "export.json", "adapters/polish/adapter_config.json", "adapters/polish/adapter_model.safetensors",
    }  # fmt: skip
    assert adapter_sha256(read_adapter(there / "adapters" / "polish")) == record.policies["polish"]


def test_a_wrong_merge_is_not_called_done(export, monkeypatch, tmp_path):
    """Merged into the unquantised checkpoint: the mistake that everybody makes."""
    right = merge.merged_shards
    monkeypatch.setattr(
        exporting, "merged_shards", lambda model, adapter, dtype, base: right(model, adapter, dtype, "original")
    )
    with pytest.raises(
        TrainingError,
        match=r"is not the policy that was trained: KL .* is [\d.e-]+ nats a token, 0.005 is allowed.*Nothing was",
    ):
        export()
    assert not (tmp_path / "there").exists() and not list(tmp_path.glob(".there*"))


def test_a_wrong_merge_into_the_original_base_is_not_called_another_base(export, monkeypatch):
    """Without its adapter: the limit for another base would let that pass."""
    right = merge.merged_shards
    monkeypatch.setattr(exporting, "merged_shards", lambda model, adapter, dtype, base: right(model, None, dtype, base))
    with pytest.raises(TrainingError, match="which rounding does not explain"):
        export(base="original", check={"max_kl": 10.0, "min_agreement": 0.0, "max_accuracy_loss": 1.0})


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ({"max_kl": 1e-9}, "nats a token, 1e-09 is allowed"),
        ({"min_agreement": 1.0}, "the likeliest token is the same in"),
    ],
)
def test_the_recipe_says_what_must_hold(export, tmp_path, limit, said):
    with pytest.raises(TrainingError, match=said):
        export(base="original", check={"max_kl": 10.0, "min_agreement": 0.0} | limit)
    assert not (tmp_path / "there").exists()


def test_what_asks_otherwise_is_not_the_policy(export, monkeypatch):
    """A chat template that got lost or changed on the way would not show in a divergence."""
    real = merge.load_tokenizer

    def other(*args):
        tokenizer = real(*args)
        tokenizer.chat_template = tokenizer.chat_template.replace("{", "Hello {", 1)
        return tokenizer

    monkeypatch.setattr(merge, "load_tokenizer", other)
    with pytest.raises(UserError, match="asks problems otherwise than in training"):
        export()


@pytest.mark.slow
def test_the_same_again_is_left_as_it_is_and_another_kind_takes_its_place(export, tmp_path, monkeypatch):
    first = export(dtype="float16")
    monkeypatch.setattr(exporting, "_write", lambda *_: pytest.fail("it is there already"))
    assert export(dtype="float16") == first
    monkeypatch.undo()
    assert export(dtype="float32").dtype == "float32"
    # and one whose files were touched is made again
    (tmp_path / "there" / "config.json").write_text("{}")
    assert export(dtype="float32").intact(tmp_path / "there")
    assert not list(tmp_path.glob(".there*"))


def test_another_policys_export_is_not_replaced_unasked(run, tmp_path):
    there = str(tmp_path / "there")
    export_run(run, there, "explore", {"what": "adapter"})
    with pytest.raises(UserError, match=r"holds the export of another policy \(explore\); --replace"):
        export_run(run, there, None, {"what": "adapter"})
    export_run(run, there, None, {"what": "adapter"}, replace=True)
    assert list(ExportRecord.read(tmp_path / "there").policies) == ["polish"]


def test_what_a_user_put_beside_an_export_is_neither_published_nor_deleted(export, tmp_path):
    export(what="adapter")
    (tmp_path / "there" / ".env").write_text("SECRET=1")
    for settings in ({"what": "adapter"}, {"dtype": "float32"}):
        with pytest.raises(UserError, match=r"files that are not of its export, '\.env' say; move them away"):
            export(**settings)
    assert (tmp_path / "there" / ".env").exists()


def test_two_exports_into_one_folder_do_not_mix(export, tmp_path):
    with exporting._alone(tmp_path / "there"), pytest.raises(UserError, match="another export works in"):
        export(what="adapter")


def test_a_folder_with_something_else_is_not_replaced(export, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "thesis.tex").write_text("dear")
    with pytest.raises(UserError, match="holds something else than an export"):
        export()
    assert (tmp_path / "there" / "thesis.tex").read_text() == "dear"
    (tmp_path / "file").write_text("dear")
    with pytest.raises(UserError, match="is no folder"):
        export(to=tmp_path / "file")


def test_no_room_is_known_before_anything_is_merged(export, monkeypatch, tmp_path):
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(exporting.shutil, "disk_usage", lambda path: Usage(1, 1, 1000))
    monkeypatch.setattr(exporting, "write_merged", lambda *_: pytest.fail("there is no room"))
    with pytest.raises(UserError, match=r"the merged model takes .* and the disk with .* has .*; make room"):
        export()
    assert not list(tmp_path.glob(".there*"))


def test_a_disk_that_is_full_halfway_leaves_nothing(export, run, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    first = export(dtype="float16")
    monkeypatch.setattr(exporting, "write_merged", full)
    with pytest.raises(OSError, match="No space left"):
        export(dtype="float32")
    assert not list(tmp_path.glob(".there*")) and ExportRecord.read(tmp_path / "there") == first
    with pytest.raises(UserError, match=r"^the disk with .* is full; make room and run the same command"):
        export_run(run, str(tmp_path / "there"))


def test_the_newest_policy_of_a_run(run, tmp_path, capfd):
    capfd.readouterr()
    said = export_run(run, str(tmp_path / "here"))
    assert capfd.readouterr().err == "", "the libraries' bars go to the log"
    assert "stage 'polish'" in said and "convert_hf_to_gguf.py" in said
    assert said.count("  reloaded by") == 1 and "not reloaded by vllm: rollouts.engine is transformers" in said
    exported = adapter_sha256(read_adapter(tmp_path / "here" / "adapters" / "polish"))
    assert exported == adapter_sha256(read_adapter(run / "02-polish" / "adapter"))
    assert "stage 'explore'" in export_run(run, str(tmp_path / "first"), "explore", {"what": "adapter"})
    with pytest.raises(UserError, match=r"--stage explor: trains no policy .*did you mean 'explore'"):
        export_run(run, None, "explor")


def test_a_run_that_is_not_finished(run, tmp_path):
    ledger = Ledger(run)
    ledger.forget(["polish"])
    with pytest.raises(UserError, match=r"stage 'polish' is not finished; .*--stage explore"):
        export_run(run)
    ledger.forget(["explore"])
    with pytest.raises(UserError, match=r"stage 'polish' is not finished; run its recipe to the end$"):
        export_run(run)
    with pytest.raises(UserError, match=r"has no run\.json yet"):
        export_run(tmp_path)
    with pytest.raises(UserError, match="--dry-run shows what would be published"):
        export_run(run, str(tmp_path / "here"), dry_run=True)


def test_a_gate_that_said_no_is_not_passed_over(run, recipe, tmp_path):
    """Accuracies are 0.1 and 0.2; the gate asks for half a point more than that difference."""
    gate = {"metric": "accuracy", "against": "explore", "min_difference": 0.105}
    stages = [one.model_dump(mode="json") for one in recipe.stages]
    stages[1]["gate"] = gate
    (run / "run.json").write_text(json.dumps({"recipe": recipe.model_dump(mode="json") | {"stages": stages}}))
    with pytest.raises(UserError, match=r"the gate of stage 'polish' said NO-GO: .*--force exports it all the same"):
        export_run(run, str(tmp_path / "here"))
    assert not (tmp_path / "here").exists()
    export_run(run, str(tmp_path / "here"), force=True)
    assert "**NO-GO.**" in (tmp_path / "here" / "README.md").read_text()
    # the stage before it was not judged
    export_run(run, str(tmp_path / "first"), "explore", {"what": "adapter"})
    assert "NO-GO" not in (tmp_path / "first" / "README.md").read_text()


def test_the_stages_own_record_counts_not_what_was_asked_for_later(run, recipe, tiny_path, tmp_path):
    """A refused `--set model.quantize=none` once got into run.json, and the export merged onto another base."""
    asked = {"base": str(tiny_path), "quantize": "none", "lora": {"rank": 4, "alpha": 8}}
    (run / "run.json").write_text(json.dumps({"recipe": recipe.model_dump(mode="json") | {"model": asked}}))
    assert "polish" in export_run(run, str(tmp_path / "here"))
    ledger = Ledger(run)
    entry = ledger.entries["polish"]
    entry.result.extra["base_sha256"] = "of another base"
    ledger.record(entry)
    with pytest.raises(TrainingError, match=r"is not the one that the policy was trained on"):
        export_run(run, str(tmp_path / "there"))
    assert not (tmp_path / "there").exists()


def test_nothing_of_this_machine_is_published(run, tmp_path, tiny_path):
    export_run(run, str(tmp_path / "here"))
    files = [path for path in (tmp_path / "here").rglob("*") if path.is_file() and path.suffix != ".safetensors"]
    texts = {path.name: path.read_text() for path in files}
    assert len(texts) > 5
    # the recipe's own words may name a folder, and here its base is one
    texts["README.md"] = texts["README.md"].partition("## Recipe")[0]
    for name, text in texts.items():
        assert str(tmp_path) not in text.replace(str(tiny_path), ""), name


def test_a_card_needs_an_export(run, recipe, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is no export"):
        write_card(tmp_path / "empty", run, recipe)
