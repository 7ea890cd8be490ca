"""The plan's formulas on a device and a model of round numbers, worked out by hand."""

import dataclasses
import json

import pytest

from orchestra.config.loading import load_recipe
from orchestra.plan import devices
from orchestra.plan.devices import GIB, OTHER_GPU, PEAKS, Device, device_of
from orchestra.plan.estimate import Estimator, StagePlan, estimate
from orchestra.plan.machine import Gpu, Machine
from orchestra.plan.memory import NF4_BYTES
from orchestra.plan.shapes import QWEN2, Unknown, shape_of

# four layers of 576 weights (q 8x8, k and v 8x4, o 8x8, three times 8x16) and a tied embedding of 800
CONFIG = {"model_type": "qwen2", "hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2,
          "num_key_value_heads": 1, "intermediate_size": 16, "vocab_size": 100,
          "tie_word_embeddings": True}  # fmt: skip
N, BLOCKS, EMBEDDING = 3_104, 2_304, 800
# prompts of 20 of 40 tokens, completions of 60 of 100
RECIPE = """\
name: round
model: {{base: {0}/base, lora: {{rank: 2, alpha: 4, targets: [q_proj, down_proj]}}}}
problems: {{train: {0}/train.jsonl, test: {0}/test.jsonl}}
rollouts: {{max_prompt_tokens: 40, max_completion_tokens: 100, group_size: 2, prompts_per_step: 3}}
evaluate: {{samples: 3, greedy: true, perplexity: 0}}
stages:
  - {{name: traces, kind: distill, teacher: {0}/teacher, samples: 5, max_tokens: 50}}
  - {{name: imitate, kind: sft, data: traces, steps: 4, learning_rate: 1e-3, batch_size: 6, micro_batch_size: 2,
     preflight: false}}
  - {{name: explore, kind: grpo, steps: 7, learning_rate: 1e-4, micro_batch_size: 2}}
  - {{name: release, kind: export}}
"""
SLOW = Device("slow", memory=64 * GIB, train_flops=1e6, decode_flops=1e6, bandwidth=1e12, decode_overhead=0.5,
              train_overhead=2.0, concurrency=8, cuda=False, libraries=GIB, start=11.0, stage=3.0)  # fmt: skip
GPU = dataclasses.replace(SLOW, cuda=True)
BOUND = dataclasses.replace(SLOW, decode_flops=1e18, bandwidth=1e6)


@pytest.fixture
def folder(tmp_path):
    for name, config in (
        ("base", CONFIG),
        ("teacher", CONFIG | {"num_hidden_layers": 8, "tie_word_embeddings": False}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    (tmp_path / "train.jsonl").write_text("{}\n\n{}\n{}\n{}\n")  # four problems: an empty line is none
    (tmp_path / "test.jsonl").write_text("{}\n" * 3)
    (tmp_path / "round.yaml").write_text(RECIPE.format(tmp_path))
    return tmp_path


@pytest.fixture
def estimator(folder):
    return lambda *sets, device=SLOW: Estimator(load_recipe(str(folder / "round.yaml"), None, sets), device)


def plan(made, name):
    return made.recipe.stage(name).plan(made)


def test_decoding(estimator):
    made = estimator()
    assert (made.base.parameters, made.base.active_parameters, made.prompt, made.longest_prompt) == (N, N, 20, 40)
    # 4 sequences of 60 tokens on average, the longest 100: 100 steps of 0.5 s, and 240 x 2 N operations
    assert made.generate(made.base, 4, 100) == (240, pytest.approx(100 * 0.5 + 240 * 2 * N / 1e6))
    # 40 sequences, 8 at once: 2,400 tokens are 300 steps
    assert made.generate(made.base, 40, 100) == (2400, pytest.approx(300 * 0.5 + 2400 * 2 * N / 1e6))
    # where reading the weights takes longer: 4 bytes each, every step
    bound = estimator(device=BOUND)
    assert bound.generate(bound.base, 4, 100)[1] == pytest.approx(100 * 0.5 + 100 * N * 4 / 1e6)
    half = estimator("rollouts.dtype=bfloat16", device=BOUND)
    assert half.generate(half.base, 4, 100)[1] == pytest.approx(100 * 0.5 + 100 * N * 2 / 1e6)
    assert made.generate(made.base, 0, 100) == (0, 0.0)


def test_training_time(estimator):
    # 1,000 tokens of N parameters at 4 operations each, and 5 passes that cost 2 s whatever they hold
    assert estimator().train(1000, 5, 4.0) == pytest.approx(1000 * N * 4 / 1e6 + 5 * 2)


def test_an_evaluation_samples_and_decodes_greedily(estimator):
    """3 problems, 3 samples and a greedy one: 12 completions of 60 tokens; 8 at once, 720 tokens are 90 steps, but the
    longest takes 100."""
    made = estimator()
    base = made.recipe.stage("base")
    assert made.evaluation(base) == (720, pytest.approx(100 * 0.5 + 720 * 2 * N / 1e6))
    # stage 00 also waits for the libraries
    row = plan(made, "base")
    assert (row.tokens, row.data) == (720, f"{made.recipe.problems.test} (3)")
    assert row.seconds == pytest.approx(made.evaluation(base)[1] + 11 + 3)
    assert plan(estimator("evaluate.greedy=false"), "base").tokens == 540
    assert plan(estimator("problems.test_limit=2"), "base").tokens == 480
    assert made.evaluation(made.recipe.stage("traces")) == (0, 0.0)
    assert plan(estimator("evaluate.max_completion_tokens=50"), "base").tokens == 360


def test_a_teacher_asks_each_training_problem(estimator, folder):
    """4 problems, 5 samples of 30 of 50 tokens, by a model of twice the blocks; its head is a matrix of its own, and
    the embedding multiplies nothing."""
    made = estimator()
    row = plan(made, "traces")
    teacher = 2 * BLOCKS + EMBEDDING
    assert row.tokens == 4 * 5 * 30 and row.parent == f"{folder}/teacher"
    assert row.seconds == pytest.approx(75 * 0.5 + 600 * 2 * teacher / 1e6 + 3)  # 600 tokens, 8 at once
    assert plan(estimator("stages.traces.problems=2"), "traces").tokens == 2 * 5 * 30
    assert plan(estimator("problems.train_limit=3"), "traces").tokens == 3 * 5 * 30
    own = plan(estimator("stages.traces.teacher=self"), "traces")
    assert own.parent == "base" and own.seconds == pytest.approx(75 * 0.5 + 600 * 2 * N / 1e6 + 3)


def test_sft_time(estimator):
    """4 steps of 6 traces of 20 + 60 tokens, 2 at once."""
    made = estimator()
    row = plan(made, "imitate")
    tokens, evaluation = made.evaluation(made.recipe.stage("imitate"))
    assert row.tokens == 4 * 6 * 80 + tokens
    assert row.seconds == pytest.approx(1920 * N * 4 / 1e6 + 4 * 3 * 2 + evaluation + 3)


def test_what_is_read_before_and_after_training(estimator):
    """A preflight of 5 problems: 5 answers of 60 tokens, then 5 texts under two prompts and the answers, each with a
    prompt of 20, which are 3 x (100 + 300) tokens in 2 passes of 8 texts. Perplexity of 6 texts of the traces and 6 of
    the held-out problems, under two policies: 24 of 80 tokens in 3 passes."""
    bare = plan(estimator(), "imitate")
    made = estimator("stages.imitate.preflight={problems: 5}")
    row = plan(made, "imitate")
    tokens, sampling = made.generate(made.base, 5, 100)
    assert tokens == 300 == row.tokens - bare.tokens
    assert row.seconds - bare.seconds == pytest.approx(sampling + 1200 * N * 2 / 1e6 + 2 * 2)
    for stage in ("imitate", "explore"):
        more = plan(estimator("evaluate.perplexity=6"), stage).seconds - plan(estimator(), stage).seconds
        assert more == pytest.approx(24 * 80 * N * 2 / 1e6 + 3 * 2)


def test_grpo_time_and_the_references_pass(estimator):
    """7 steps of 6 completions of 60 tokens, each with its prompt of 20: 480 tokens a step, which are 2 passes where
    one holds two rows of 40 + 100."""
    made = estimator()
    _, evaluation = made.evaluation(made.recipe.stage("explore"))
    sampling = made.generate(made.base, 6, 100)[1]
    row = plan(made, "explore")
    assert row.tokens == 7 * 360 + 720 and (row.steps, row.beta, row.reference) == (7, 0.0, "start")
    assert row.seconds == pytest.approx(7 * (sampling + 480 * N * 4 / 1e6 + 2 * 2) + evaluation + 3)
    # with a penalty the reference scores every token once, a forward pass of 2 operations
    assert plan(estimator("stages.explore.beta=0.01"), "explore").seconds - row.seconds == pytest.approx(
        7 * 480 * N * 2 / 1e6
    )
    # a second iteration over the same rollouts trains again, and the reference is not asked again
    twice = plan(estimator("stages.explore.beta=0.01", "stages.explore.num_iterations=2"), "explore")
    assert twice.seconds == pytest.approx(7 * (sampling + 480 * N * (2 * 4 + 2) / 1e6 + 2 * 2 * 2) + evaluation + 3)
    again = plan(estimator("stages.explore.gradient_checkpointing=true"), "explore")
    assert again.seconds - row.seconds == pytest.approx(7 * 480 * N * 2 / 1e6)


def test_nf4_takes_what_4_bits_and_their_scales_take(estimator):
    """A scale of 8 bits for 64 weights, and one of 32 for 256 of those: 4 + 8 / 64 + 32 / (64 x 256) bits."""
    assert abs(NF4_BYTES - (4 + 8 / 64 + 32 / (64 * 256)) / 8) < 5e-4
    made = estimator()
    assert made.frozen(4) == int(BLOCKS * NF4_BYTES + EMBEDDING * 4) == 4388
    assert made.frozen(2) == int(BLOCKS * NF4_BYTES + EMBEDDING * 2) == 2788
    assert estimator("model.quantize=none").frozen(2) == N * 2
    # of Qwen2.5-3B: 2.775e9 weights in blocks and 0.311e9 embedded in bfloat16 are 1.91 GiB
    assert (QWEN2["3b"].block_parameters * NF4_BYTES + QWEN2["3b"].embedding_parameters * 2) / GIB == pytest.approx(
        1.91, abs=0.01
    )


def test_memory_of_a_trained_stage_on_a_cpu(estimator):
    made = estimator()
    parts = plan(made, "explore").memory
    # q_proj 8 -> 8 and down_proj 16 -> 8 of rank 2 in 4 layers: 4 x 2 x (16 + 24)
    adapter = 320
    assert parts["adapter and gradient"] == adapter * 12 and parts["optimizer"] == adapter * 8
    assert parts["parameters"] == 4388
    assert parts["logits"] == 2 * 140 * 100 * 12  # 2 rows of 40 + 100 tokens, 100 words
    # per token and layer 16 x 8 + 3 x 16 numbers of 4 bytes
    assert parts["activations"] == 280 * 4 * 4 * (16 * 8 + 3 * 16)
    # two engines stay until the end, each with a cache of a GiB
    teacher = 2 * (BLOCKS + EMBEDDING) * 4
    assert (parts["libraries"], parts["KV"]) == (GIB, 2 * GIB)
    assert (parts["engine weights"], parts["other engines"]) == (N * 4, teacher)
    assert plan(made, "traces").memory["engine weights"] == teacher
    assert plan(made, "traces").memory["other engines"] == N * 4
    assert plan(estimator("stages.traces.teacher=self"), "explore").memory["KV"] == GIB
    assert plan(estimator("stages.imitate.max_length=70"), "imitate").memory["logits"] == 2 * 70 * 100 * 12
    # bfloat16 is cast to beside the float32 that stays
    assert plan(estimator("model.dtype=bfloat16"), "explore").memory["parameters"] == 4388


def test_memory_on_a_gpu(estimator):
    share = int(0.25 * 64 * GIB)
    made = estimator("rollouts.gpu_memory_utilization=0.25", device=GPU)
    explore, traces = plan(made, "explore").memory, plan(made, "traces").memory
    teacher = 2 * (BLOCKS + EMBEDDING) * 2
    assert (explore["engine weights"], explore["KV"], explore["other engines"]) == (N * 2, share - N * 2, 0)
    assert (traces["engine weights"], traces["KV"], traces["other engines"]) == (teacher, share - teacher, share)
    assert explore["parameters"] == 2788 and explore["activations"] == 280 * 2 * 4 * (16 * 8 + 3 * 16)


def test_an_export_holds_the_merged_model(estimator):
    """In transformers' engine, and in float32 beside the policy: on a CPU both stay, twice 4 bytes a parameter; on a
    GPU the engine's 2, and what it has no room for is in main memory."""
    for device, size in ((SLOW, 8), (GPU, 2)):
        parts = plan(estimator(device=device), "release").memory
        assert parts["merged model"] == size * N and parts["parameters"] == 4388


def stage_plan(**memory):
    return StagePlan("a", "grpo", "", "", None, "", None, 0, 1.0, memory)


def test_what_takes_most_can_be_lowered():
    """The libraries' share is nobody's to lower."""
    row = stage_plan(libraries=9, logits=2, KV=3)
    assert (row.peak, row.dominant, stage_plan().dominant) == (14, "KV", "")


def test_a_plan_is_as_large_as_its_largest_stage_and_as_long_as_all(folder):
    recipe = load_recipe(str(folder / "round.yaml"), None)
    made = estimate(recipe, Machine(2, 64 * GIB, ()))
    assert made.seconds == pytest.approx(sum(stage.seconds for stage in made.stages))
    assert made.peak == max(stage.peak for stage in made.stages) and len(made.stages) == 5
    peak = made.peak
    assert estimate(recipe, Machine(2, peak, ())).fits and not estimate(recipe, Machine(2, peak - 1, ())).fits
    told = made.to_json()
    assert told["peak_bytes"] == peak and told["stages"][2]["peak_bytes"] == made.stages[2].peak
    json.dumps(told, allow_nan=False)


def test_the_engines_share_must_hold_weights_and_a_cache(folder):
    """The teacher's 6,208 parameters of 2 bytes take nine tenths of a share of 13,796 bytes, and more of half a byte
    less. That the rest does not fit so small a GPU is told where the engine does. Without vLLM there is no share."""
    teacher = 2 * (BLOCKS + EMBEDDING) * 2
    assert 0.9 * 13_795.5 < teacher <= 0.9 * 13_796

    def told(memory, *sets):
        sets = ("rollouts.gpu_memory_utilization=0.5", *sets)
        machine = Machine(2, GIB, (Gpu("small", memory),))
        return estimate(load_recipe(str(folder / "round.yaml"), None, sets), machine).reason

    assert "in vLLM" not in told(2 * 13_796) and "teacher takes 0.0 GiB in vLLM" in told(2 * 13_796 - 1)
    assert "in vLLM" not in told(2 * 13_796 - 1, "rollouts.engine=transformers")
    here = estimate(load_recipe(str(folder / "round.yaml"), None), Machine(2, 1000, ()))
    assert not here.fits and "in vLLM" not in here.reason


@pytest.mark.parametrize(
    ("name", "peaks"),
    [("NVIDIA H200", PEAKS["H200"]), ("H20", PEAKS["H20"]), ("A100-SXM4-40GB", PEAKS["A100"]), ("Quadro", OTHER_GPU)],
)
def test_a_gpu_is_known_by_its_name(name, peaks):
    """H200 is not taken for an H20."""
    made = device_of(Machine(4, 8 * GIB, (Gpu(name, 7 * GIB), Gpu("another", GIB))), "none")
    assert (made.name, made.memory, made.cuda) == (name, 7 * GIB, True)
    assert (made.train_flops, made.decode_flops) == (0.25 * peaks[0], 0.30 * peaks[0])
    assert made.bandwidth == 0.6 * peaks[1]


def test_without_a_gpu_one_is_assumed_for_its_scale_alone():
    machine = Machine(3, 8 * GIB, ())
    assumed, here = device_of(machine, "gpu"), device_of(machine, "embedded")
    assert assumed.cuda and assumed.name.endswith("(assumed)") and assumed.memory == 80 * GIB
    assert (here.cuda, here.memory, here.train_flops) == (False, 8 * GIB, 3 * devices.CPU_CORE_FLOPS)
    assert here.decode_flops == 2 * here.train_flops


def test_a_known_name_is_a_whole_word():
    """`7b` in `1.7b` or in a word is no size; R1's 1.5B has a head of its own, Qwen's has not."""
    assert shape_of("Qwen/Qwen2.5-7B") == shape_of("Qwen/Qwen2.5-7B@main") == QWEN2["7b"]
    for name in ("Qwen/Qwen2.5-7Bx", "Qwen/Qwen2.5-17B", "Qwen/Qwen3-7B", "Qwen/Qwen1.5-7B"):
        with pytest.raises(Unknown):
            shape_of(name)
    assert not shape_of("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B").tied and QWEN2["1.5b"].tied
    assert QWEN2["7b"].embedding_parameters == 2 * 152064 * 3584
    assert QWEN2["7b"].active_parameters == QWEN2["7b"].block_parameters + 152064 * 3584


def test_a_head_may_be_larger_than_its_part_of_the_hidden_size(folder):
    """Two query heads and one key head of 16 instead of 4: q 8 x 32, k and v 8 x 16, o 32 x 8."""
    (folder / "base" / "config.json").write_text(json.dumps(CONFIG | {"head_dim": 16}))
    shape = shape_of(str(folder / "base"))
    assert shape.block_parameters == 4 * (2 * 8 * 32 + 2 * 8 * 16 + 3 * 128)
