"""The planner: shapes against published counts, formulas against hand-worked numbers, verdicts, speed."""

import dataclasses
import json
import re

import pytest
from rich.console import Console

from models.sizes import activation_bytes
from models.training import checkpoints_activations
from orchestra.config.experiment import load_experiment
from orchestra.config.loading import load_recipe
from orchestra.plan import estimate as planning
from orchestra.plan import shapes
from orchestra.plan.devices import GIB, device_of
from orchestra.plan.estimate import Estimator, estimate
from orchestra.plan.machine import Gpu, Machine
from orchestra.plan.table import beside, show
from orchestra.run.ledger import StageResult

LAPTOP = Machine(cores=2, memory=24 * GIB, gpus=())
SMALL = Machine(cores=2, memory=2 * GIB, gpus=())
H100 = Machine(cores=16, memory=128 * GIB, gpus=(Gpu("NVIDIA H100 80GB HBM3", 80 * GIB),))
LITTLE_GPU = Machine(cores=8, memory=32 * GIB, gpus=(Gpu("NVIDIA GeForce RTX 3090", 24 * GIB),))


@pytest.mark.parametrize(
    ("model", "billions"),
    [
        ("Qwen/Qwen2.5-0.5B", 0.494),
        ("Qwen/Qwen2.5-1.5B-Instruct", 1.54),
        ("Qwen/Qwen2.5-3B", 3.09),
        ("Qwen/Qwen2.5-7B", 7.62),
        ("Qwen/Qwen2.5-14B-Instruct", 14.8),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", 1.78),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", 7.62),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", 8.03),
        ("Qwen/Qwen3-0.6B-Base", 0.596),
        ("Qwen/Qwen3-1.7B", 1.72),
        ("Qwen/Qwen3-4B", 4.02),
        ("Qwen/Qwen3-8B", 8.19),
        ("Qwen/Qwen3-14B", 14.77),
        ("meta-llama/Llama-3.2-1B-Instruct", 1.24),
        ("meta-llama/Llama-3.2-3B", 3.21),
        ("meta-llama/Llama-3.1-8B", 8.03),
        ("mistralai/Mistral-7B-v0.3", 7.25),
        ("microsoft/Phi-3-mini-4k-instruct", 3.82),
        ("microsoft/Phi-4-mini-instruct", 3.84),
        ("google/gemma-3-270m", 0.268),
        ("google/gemma-3-1b-it", 1.0),
        ("allenai/OLMo-2-0425-1B", 1.48),
        ("allenai/OLMo-2-1124-7B", 7.3),
        ("HuggingFaceTB/SmolLM2-135M", 0.1345),
        ("HuggingFaceTB/SmolLM2-360M-Instruct", 0.362),
        ("HuggingFaceTB/SmolLM2-1.7B", 1.71),
    ],
)
def test_known_shapes_have_their_published_size(model, billions):
    assert shapes.shape_of(model).parameters / 1e9 == pytest.approx(billions, rel=0.01)


def test_shapes_from_a_config_at_hand(tmp_path, monkeypatch):
    config = {"model_type": "qwen2", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
              "num_key_value_heads": 1, "intermediate_size": 16, "vocab_size": 100,
              "tie_word_embeddings": True}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = shapes.shape_of(str(tmp_path))
    # q 8x8, k and v 8x4, o 8x8, three times 8x16, in 2 blocks; a tied embedding
    assert shape.block_parameters == 2 * (64 + 2 * 32 + 64 + 3 * 128) and shape.parameters == 2 * 576 + 800
    assert shape.adapter_parameters(2, ["q_proj", "down_proj"]) == 2 * (2 * 16 + 2 * 24)
    # q, o of 8 and 8; k, v of 8 and 4; three of 8 and 16
    assert shape.adapter_parameters(2, ["all-linear"]) == 2 * 2 * (2 * 16 + 2 * 12 + 3 * 24)
    cached = tmp_path / "hub" / "models--some--model" / "snapshots" / "abc"
    cached.mkdir(parents=True)
    (cached / "config.json").write_text(json.dumps(config))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert shapes.shape_of("some/model") == shape
    # the same numbers in three matrices less: q, k and v are 8 x 16 together, gate and up 8 x 32
    (cached / "config.json").write_text(json.dumps(config | {"model_type": "phi3", "tie_word_embeddings": False}))
    fused = shapes.shape_of("some/model")
    assert fused.block_parameters == shape.block_parameters and fused.parameters == shape.parameters + 800
    assert fused.adapter_parameters(2, ["all-linear"]) == 2 * 2 * (24 + 16 + 40 + 24)
    # Gemma's config.json does not say that its embeddings are tied
    del config["tie_word_embeddings"]
    for kind, tied in (("gemma3_text", True), ("llama", False)):
        (cached / "config.json").write_text(json.dumps(config | {"model_type": kind}))
        assert shapes.shape_of("some/model").tied == tied


@pytest.mark.parametrize(
    "change, said",
    [
        ({"model_type": None}, "(None) are not those of a dense family"),
        ({"model_type": "mamba2"}, "(mamba2)"),
        ({"num_local_experts": 8}, "mixture of experts"),
        ({"hidden_size": None}, "its config.json has no 'hidden_size'"),
    ],
)
def test_what_cannot_be_counted_is_not(tmp_path, change, said):
    config = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
              "intermediate_size": 16, "vocab_size": 100} | change  # fmt: skip
    config = {key: value for key, value in config.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(shapes.Unknown, match=re.escape(said)):
        shapes.shape_of(str(tmp_path))
    made = estimate(load_recipe("40d", "gpu", [f"stages.traces.teacher={tmp_path}"]), H100, "gpu")
    assert not made.fits and made.stages == () and said in made.reason


@pytest.mark.parametrize(
    "model", ["someone/unknown-70b", "Qwen/Qwen2.5-999B", "gpt2", "Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-VL-4B-Instruct"]
)
def test_an_unknown_model_is_said_to_be_unknown(model):
    recipe = load_recipe("40d", "gpu", [f"model.base={model}"])
    made = estimate(recipe, H100, "gpu")
    assert not made.fits and made.stages == () and model in made.reason


def test_every_stage_is_planned():
    made = estimate(load_recipe("40d", "embedded"), LAPTOP, "embedded")
    assert [stage.name for stage in made.stages] == [
        "base",
        "traces",
        "imitate",
        "explore",
        "consolidate",
        "polish",
        "release",
    ]
    explore = made.stages[3]
    assert (explore.parent, explore.beta, explore.reference, explore.steps) == ("imitate", 0.0, "start", 30)
    assert made.fits and made.seconds < 480 and made.peak < 6 * GIB
    assert json.loads(json.dumps(made.to_json()))["stages"][3]["seconds"] == pytest.approx(explore.seconds, abs=0.1)


def test_tokens_by_hand():
    recipe = load_recipe(
        "40d", "embedded", ["stages.traces.problems=100", "stages.traces.samples=3", "stages.traces.max_tokens=50"]
    )
    traces = estimate(recipe, LAPTOP).stages[1]
    assert traces.tokens == 100 * 3 * 50 * planning.EMBEDDED_LENGTH_SHARE


@pytest.mark.parametrize("stage", ["imitate", "explore"])
def test_evaluations_on_the_way_by_hand(stage):
    """60 or 30 steps, every 8 and the last, so 8 or 4 times 50 problems, with 4 samples and a greedy answer each."""
    alone = load_recipe("40d", "embedded", ["problems.validation=50"])
    asked = load_recipe("40d", "embedded", ["problems.validation=50", f"stages.{stage}.evaluate_every=8"])
    before, after = (recipe.stage(stage).plan(Estimator(recipe, device_of(LAPTOP, "embedded")))
                     for recipe in (alone, asked))  # fmt: skip
    times = {"imitate": 8, "explore": 4}[stage]
    assert after.tokens - before.tokens == times * int(50 * 5 * 96 * planning.EMBEDDED_LENGTH_SHARE)
    assert after.seconds > before.seconds and after.memory == before.memory


def test_logits_by_hand():
    recipe = load_recipe("40d", "gpu", ["stages.explore.micro_batch_size=2"])
    parts = recipe.stage("explore").plan(Estimator(recipe, device_of(H100, "gpu"))).memory
    # 2 x 2048 tokens, of the vocabulary 32,768 words at once, 12 bytes each
    assert parts["logits"] == 4096 * 32768 * 12
    assert parts["optimizer"] == 8 * shapes.QWEN2["3b"].adapter_parameters(32, recipe.model.lora.targets)


def test_more_of_everything_takes_more():
    def seconds(*sets):
        return estimate(load_recipe("40d", "embedded", sets), LAPTOP).stages[4].seconds

    base = seconds()
    for setting in ("stages.consolidate.steps=60", "rollouts.group_size=16", "evaluate.samples=16",
                    "rollouts.max_completion_tokens=200", "stages.consolidate.num_iterations=2"):  # fmt: skip
        assert seconds(setting) > base, setting


def said_to_fit(made):
    """The `--set` options that a plan names."""
    assert not made.fits
    return re.findall(r"--set (\S+)", made.reason)


def test_what_does_not_fit_is_told_what_would():
    """The largest pass that fits: 4 rows of 2,560 tokens keep 48.5 GB, that is 45 GiB (see below), which with 28 for
    the engine, 3 for libraries and 5 for base, adapter and logits are just too many for 80; 2 rows keep 23."""
    sets = ["stages.imitate.micro_batch_size=32", "stages.imitate.gradient_checkpointing=false"]
    made = estimate(load_recipe("40d", "gpu", sets), H100, "gpu")
    assert "in stage 'imitate': activations takes most; it fits with" in made.reason
    assert said_to_fit(made) == ["stages.imitate.micro_batch_size=2"]
    assert estimate(load_recipe("40d", "gpu", [*sets, *said_to_fit(made)]), H100, "gpu").fits


@pytest.mark.parametrize("memory", range(16, 80, 8))
@pytest.mark.parametrize("sets", [[], ["stages.*.micro_batch_size=16"], ["rollouts.gpu_memory_utilization=0.9"]])
def test_what_is_said_to_fit_fits(memory, sets):
    """Whatever the GPU: taken literally, the advice makes a valid recipe that fits; or none is given."""
    machine = Machine(16, 128 * GIB, (Gpu("NVIDIA H100", memory * GIB),))
    made = estimate(load_recipe("40d", "gpu", sets), machine, "gpu")
    if not made.fits and "do not make it fit" not in made.reason:
        assert estimate(load_recipe("40d", "gpu", [*sets, *said_to_fit(made)]), machine, "gpu").fits, made.reason
    assert made.fits or memory < 48 or sets


def test_where_nothing_helps_the_memory_needed_is_told():
    """On a CPU the engine's share is no share of a GPU, and 2 GiB are less than two engines' caches and libraries."""
    made = estimate(load_recipe("40d", "embedded"), SMALL, "embedded")
    assert not made.fits and "gpu_memory_utilization" not in made.reason
    assert made.reason.endswith("do not make it fit; a smaller model does, or 3.4 GiB")


def test_several_processes_share_work_and_main_memory():
    """Each on its own GPU: half the rollouts and half the passes. On a CPU half the memory, and no time is won."""
    recipe = load_recipe("40d", "gpu")
    one, two = (estimate(recipe, dataclasses.replace(H100, processes=n), "gpu") for n in (1, 2))
    assert [stage.tokens for stage in one.stages] == [stage.tokens for stage in two.stages]
    assert 0.4 * one.stages[3].seconds < two.stages[3].seconds < 0.8 * one.stages[3].seconds
    assert two.fits and two.peak == one.peak
    small = Machine(cores=2, memory=6 * GIB, gpus=(), processes=2, processes_here=2)
    made = estimate(load_recipe("40d", "embedded"), small, "embedded")
    assert not made.fits and "of 3 GiB" in made.reason and "GiB for each process" in made.reason
    for alone in ({"processes": 1, "processes_here": 1}, {"processes_here": 1}):  # or on a machine each
        assert estimate(load_recipe("40d", "embedded"), dataclasses.replace(small, **alone), "embedded").fits


def test_an_engine_needs_room_for_its_cache():
    """The 7B teacher has 7.62e9 parameters of 2 bytes, 14.2 GiB; 0.35 of 40 GiB is 14.0."""
    machine = Machine(16, 128 * GIB, (Gpu("NVIDIA A100", 40 * GIB),))
    made = estimate(load_recipe("40d", "gpu"), machine, "gpu")
    assert not made.fits and "Qwen-7B takes 14.2 GiB in vLLM, whose share is 14.0" in made.reason
    assert "(rollouts.gpu_memory_utilization: 0.35)" in made.reason
    # 14.2 GiB are 0.9 of 15.8, and that is 0.39 of 40
    assert said_to_fit(made) == ["rollouts.gpu_memory_utilization=0.4"]
    assert estimate(load_recipe("40d", "gpu", said_to_fit(made)), machine, "gpu").fits


def test_a_teacher_stands_beside_the_bases_engine():
    traces = estimate(load_recipe("40d", "gpu"), H100, "gpu").stages[1].memory
    assert traces["other engines"] == int(0.35 * 80 * GIB) == traces["engine weights"] + traces["KV"]
    # a teacher of the base's own shape is a teacher all the same; a `self` teacher is the base's engine
    for teacher, others in (("Qwen/Qwen2.5-3B-Instruct", int(0.35 * 80 * GIB)), ("self", 0)):
        made = estimate(load_recipe("40d", "gpu", [f"stages.traces.teacher={teacher}"]), H100, "gpu")
        assert made.stages[1].memory["other engines"] == others


def test_verdicts():
    assert estimate(load_recipe("40d", "gpu"), H100, "gpu").fits
    assert not estimate(load_recipe("40d", "gpu"), LITTLE_GPU, "gpu").fits
    here = estimate(load_recipe("40d", "gpu"), LAPTOP, "gpu")
    assert not here.fits and "no CUDA device here" in here.reason and here.stages
    assert not estimate(load_recipe("40d", "embedded"), SMALL, "embedded").fits


def test_activations_by_hand():
    """3B: a block keeps 16 x 2048 + 3 x 11008 = 65,792 numbers of 2 bytes a token, 36 blocks 4.7 MB; the block's input
    alone is 2048. A pass of 4 x 2,560 tokens takes 48.5 GB, with checkpointing 2.9 GB."""
    per_token = 36 * 65_792 * 2
    assert activation_bytes(1, hidden=2048, mlp=11008, layers=36, number=2, checkpointing=False) == per_token
    again = activation_bytes(1, hidden=2048, mlp=11008, layers=36, number=2, checkpointing=True)
    assert again == (36 * 2048 + 65_792) * 2

    def stage(memory, setting=None):
        recipe = load_recipe("40d", "gpu", [f"stages.explore.gradient_checkpointing={setting}"] if setting else [])
        machine = Machine(16, 128 * GIB, (Gpu("NVIDIA H200", memory * GIB),))
        made = recipe.stage("explore").plan(Estimator(recipe, device_of(machine, "gpu")))
        tokens = 4 * (512 + 2048)
        return made.memory["activations"] // tokens, made.seconds

    assert stage(141)[0] == per_token  # of 141 GiB the engine leaves 92
    assert stage(48)[0] == again  # of 48 GiB it leaves 31
    assert stage(141, "true")[0] == again and stage(48, "false")[0] == per_token
    # a further forward pass: 8 FLOPs per parameter and token instead of 6
    assert stage(141, "true")[1] > stage(141)[1]


def test_on_a_cpu_activations_are_kept_unless_asked():
    assert not checkpoints_activations(None, None, 10**9) and checkpoints_activations(True, None, 1)


def test_a_plan_is_shown_with_its_numbers(tmp_path):
    made = estimate(load_recipe("40d", "gpu"), LAPTOP, "gpu")
    with open(tmp_path / "out", "w", encoding="utf-8") as file:
        show(made, Console(file=file, width=200))
    text = (tmp_path / "out").read_text()
    for word in ("consolidate", "0.001", "logits", "KV", "optim", "params", "does not fit this machine"):
        assert word in text


def test_planned_beside_measured():
    results = (StageResult("a", "sft", seconds=120.0), StageResult("b", "grpo", seconds=30.0))
    line = beside({"a": 100.0, "b": 50.0, "c": 1000.0}, results, 2 * GIB, 3 * GIB)
    assert line == "time: planned 2:30, measured 2:30 (+0%); memory: planned 2.0 GiB, measured 3.0 GiB"


@pytest.mark.parametrize(
    ("recipe", "scale", "said"),
    [
        ("ssd", "gpu", "nlile/hendrycks-MATH-benchmark (500)"),
        ("21", "gpu", "openai/gsm8k (1,319)"),
        # the scale's own limit; the generator has as many of a part as are asked for
        ("ssd", "embedded", "embedded:formal (500)"),
    ],
)
def test_how_many_problems_a_source_has(recipe, scale, said):
    plan = estimate(load_experiment(recipe, scale).recipe, Machine(2, 24 * 2**30, ()), scale)
    assert plan.stages[0].data == said
