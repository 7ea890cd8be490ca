"""What a plan says of panels of experts: memory and work by hand, and time beside what runs took."""

from pathlib import Path

import pytest
from rich.console import Console

from models.sizes import automatic_sync
from orchestra.config.loading import load_recipe
from orchestra.plan.devices import GIB, device_of
from orchestra.plan.estimate import EMBEDDED_LENGTH_SHARE, EMBEDDED_PROMPT, Estimator, estimate
from orchestra.plan.machine import Gpu, Machine
from orchestra.plan.panels import each_trained, experts_before, experts_grown, experts_kept
from orchestra.plan.table import show

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
FOUR = str(BENCHMARKS / "experts_gpu.yaml")
H100 = Machine(cores=16, memory=128 * GIB, gpus=(Gpu("NVIDIA H100 80GB HBM3", 80 * GIB),))
ONE_CORE, TWO_CORES = (Machine(cores=cores, memory=24 * GIB, gpus=()) for cores in (1, 2))

# Qwen2.5-3B, an adapter of rank 1: q and o 2048 + 2048, k and v 2048 + 256, gate, up and down 2048 + 11008, 36 blocks
PER_RANK = 36 * (2 * 4096 + 2 * 2304 + 3 * 13056)


def stages(recipe, *sets, scale="gpu", machine=H100):
    made = estimate(load_recipe(recipe, scale, sets), machine, scale)
    return {stage.name: stage for stage in made.stages}


def test_the_engine_makes_room_for_eight_adapters_of_the_largest_rank():
    """59,867,136 numbers of rank 32, 2 bytes each, 8 times: 957,874,176 bytes, 0.89 GiB of vLLM's share."""
    assert PER_RANK * 32 == 59_867_136
    for row in stages(FOUR, "rollouts.sync=adapter").values():
        assert row.memory["engine adapters"] == 957_874_176 == 8 * 2 * 32 * PER_RANK, row.name
    adapter, folded = (stages(FOUR, f"rollouts.sync={sync}")["route"].memory for sync in ("adapter", "folded"))
    assert folded["engine adapters"] == 0 and folded["engine weights"] == adapter["engine weights"]
    assert folded["KV"] - adapter["KV"] == 957_874_176 and sum(folded.values()) == sum(adapter.values())
    # rank 33 is served as 64, whatever layers are adapted, in the engine's own arithmetic
    wide = stages(FOUR, "rollouts.sync=adapter", "model.lora.rank=33", "model.lora.targets=[q_proj]")["route"].memory
    assert wide["engine adapters"] == 8 * 2 * 64 * PER_RANK
    exact = stages(FOUR, "rollouts.sync=adapter", "rollouts.dtype=float32", "rollouts.gpu_memory_utilization=0.5")
    assert exact["route"].memory["engine adapters"] == 8 * 4 * 32 * PER_RANK
    assert stages(FOUR, "rollouts.sync=adapter", "rollouts.engine=transformers")["route"].memory["engine adapters"] == 0
    # a single policy is one adapter
    assert stages("40d", "rollouts.sync=adapter")["explore"].memory["engine adapters"] == 2 * 32 * PER_RANK


def test_a_teacher_stands_beside_the_share_that_the_adapters_are_in():
    traces = stages("40d", "rollouts.sync=adapter")["traces"].memory
    assert traces["engine adapters"] == 0 and traces["other engines"] == int(0.35 * 80 * GIB)


def test_adapters_may_be_what_vllms_share_has_no_room_for():
    """Weights of 3.09e9 numbers are 5.75 GiB, 8 adapters of rank 512 14.27; nine tenths of 28 GiB hold both, of 0.27
    of 80 not."""
    sets = ("model.lora.rank=512", "model.lora.alpha=1", "rollouts.sync=adapter")
    for share, fits in ((0.35, True), (0.27, False)):
        recipe = load_recipe(FOUR, "gpu", (*sets, f"rollouts.gpu_memory_utilization={share}"))
        told = Estimator(recipe, device_of(H100, "gpu")).large_engine()
        assert (told is None) == fits


@pytest.mark.parametrize(
    ("dtype", "quantize", "vllm", "means"),
    [
        ("bfloat16", "none", True, "adapter"),
        ("bfloat16", "nf4", True, "folded"),
        ("float32", "none", True, "folded"),
        ("bfloat16", "none", False, "folded"),
    ],
)
def test_what_auto_means(dtype, quantize, vllm, means):
    assert automatic_sync(dtype, quantize, vllm=vllm) == means
    engine = "vllm" if vllm else "transformers"
    sets = (f"rollouts.dtype={dtype}", f"model.quantize={quantize}", f"rollouts.engine={engine}")
    assert Estimator(load_recipe(FOUR, "gpu", sets), device_of(H100, "gpu")).sync == means


def test_the_trainer_holds_every_expert_while_it_routes():
    """Four experts of 59,867,136 numbers in float32, on the base in 4 bits: 957,874,176 bytes. A policy that is trained
    has 12 bytes a number, and AdamW 8."""
    found = stages(FOUR)
    for name in ("route", "again", "merged"):
        assert found[name].memory["experts"] == 4 * 4 * 32 * PER_RANK == 957_874_176, name
        assert found[name].memory["parameters"] == found["explore"].memory["parameters"] > 1.9 * GIB
    # and the merged adapter beside them, of the rank that it is cut to or of all of them together
    assert found["merged"].memory["adapter and gradient"] == 4 * 32 * PER_RANK
    whole = stages(FOUR, "stages.merged.merge=linear", "stages.merged.rank=null")["merged"].memory
    assert whole["adapter and gradient"] == 4 * 4 * 32 * PER_RANK
    # one expert at a time is trained, which needs more than all of them asked
    assert "experts" not in found["experts"].memory
    assert found["experts"].memory["adapter and gradient"] == 12 * 32 * PER_RANK
    assert found["experts"].steps == 4 * 500 and found["explore"].steps == 4 * 50
    # a panel so large that asking it is what needs most
    sets = ("stages.experts.lora.rank=512", "stages.experts.micro_batch_size=1",
            "stages.experts.gradient_checkpointing=true")  # fmt: skip
    large = stages(FOUR, *sets, "stages.experts.batch_size=1")["experts"].memory
    assert large["optimizer"] == 8 * 512 * PER_RANK and "experts" not in large
    domains = "stages.experts.domains=[" + ",".join(f"d{at}" for at in range(12)) + "]"
    larger = stages(FOUR, *sets, "stages.experts.batch_size=1", domains)["experts"].memory
    assert larger["experts"] == 12 * 4 * 512 * PER_RANK and "optimizer" not in larger


def test_a_stages_own_rank_counts():
    """7a's dense adapter has rank 56, its experts rank 8; MATH has seven domains."""
    found = stages("7a")
    assert found["dense"].memory["optimizer"] == 8 * 56 * PER_RANK
    assert found["experts"].memory["optimizer"] == 8 * 8 * PER_RANK
    assert found["experts"].data == "own, 7 experts" and found["experts"].steps == 7 * 500
    assert found["route"].memory["experts"] == 7 * 4 * 8 * PER_RANK
    assert all(row.peak < 80 * GIB for row in found.values())


def test_an_expert_that_goes_on_is_asked_before():
    """Its held-out problems, as often as it is sampled, greedy pass and all left out; a new one is not asked. Of four
    experts each is."""
    recipe, device = load_recipe(FOUR, "gpu", ()), device_of(H100, "gpu")
    made = Estimator(recipe, device)
    stage = recipe.stage("explore")
    checked = made.held_out_asked(stage, stage.evaluation(recipe).samples)
    greedy = made.evaluation(stage)[0] // (stage.evaluation(recipe).samples + 1)
    assert checked[0] == pytest.approx(made.evaluation(stage)[0] - greedy)
    anew = load_recipe(FOUR, "gpu", ("stages.explore.expert=fifth",))
    one, four = (Estimator(own, device).recipe.stage("explore").plan(Estimator(own, device)) for own in (anew, recipe))
    alone = each_trained(made, recipe.stage("explore"), (0, 0.0))
    asked = made.evaluation(stage)
    assert alone == (4 * checked[0] + asked[0], pytest.approx(4 * checked[1] + asked[1]))
    assert four.tokens == 4 * (one.tokens + checked[0]) + asked[0]
    assert each_trained(made, recipe.stage("experts"), (0, 0.0)) == asked


def test_the_table_is_what_the_command_prints():
    """benchmarks/experts_gpu_plan.md, table by table."""
    text = (BENCHMARKS / "experts_gpu_plan.md").read_text()
    for sync in ("adapter", "folded"):
        sets = (f"rollouts.sync={sync}",)
        console = Console(width=120, record=True)
        show(estimate(load_recipe(FOUR, "gpu", sets), H100, "gpu"), console)
        lines = [line.rstrip() for line in console.export_text().splitlines() if line.strip()]
        assert f"orchestra plan benchmarks/experts_gpu.yaml --scale gpu --set rollouts.sync={sync}" in text
        assert "\n".join(lines[1:-1]) in text, sync
        assert lines[-1].startswith("fits this machine: ")


def growing(*sets, recipe="7b-2", scale="embedded"):
    made = load_recipe(recipe, scale, sets)
    return made, made.stage("grow")


@pytest.mark.parametrize(
    ("rounds", "windows", "cooldown", "at_most", "there", "trained", "kept"),
    [
        # of 10 windows 2 are needed first, then 2 each (a cooldown of one window is among them): up to 5 changes; the
        # panel has room for one, and one more may win nothing
        (10, 2, 1, 4, 3, 2, 1),
        (10, 2, 1, 8, 3, 5, 5),  # as often as the windows allow
        (10, 2, 4, 8, 3, 2, 2),  # five windows from one change to the next: after the second and the seventh
        (6, 2, 4, 8, 3, 1, 1),
        (7, 2, 4, 8, 3, 2, 2),
        (1, 2, 0, 8, 3, 0, 0),  # never two in a row
        (10, 1, 0, 3, 3, 0, 0),  # no room
        (10, 1, 0, 3, 5, 0, 0),
    ],
)
def test_how_often_a_panel_is_planned_to_grow(rounds, windows, cooldown, at_most, there, trained, kept):
    growth = {"windows": windows, "cooldown": cooldown, "at_most": at_most}
    _, stage = growing(f"stages.grow.rounds={rounds}", *(f"stages.grow.growth.{k}={v}" for k, v in growth.items()))
    assert (experts_grown(stage, there), experts_kept(stage, there, trained)) == (trained, kept)


def test_a_growing_panel_by_hand():
    """7b-2: 2 domains and a spare make 3 experts, 2 more are trained and 1 stays. 5 arms answer 600 + 500 + 10 x 100
    problems 4 times to learn from, and 500 held-out ones 8 and 4 times; the one that does not stay answers 1,100
    problems 4 times; and each is trained and evaluated as in sft."""
    asked = {"samples": 4, "oracle_samples": 8, "learn": 600, "gain": 500, "rounds": 10, "window": 100, "steps": 480,
             "growth.windows": 2, "growth.cooldown": 1, "growth.at_most": 4}  # fmt: skip
    sets = [f"stages.grow.{key}={value}" for key, value in asked.items()]
    recipe, stage = growing(*sets)
    estimator = Estimator(recipe, device_of(ONE_CORE, "embedded"))
    row = stage.plan(estimator)
    assert len(experts_before(recipe, stage)) == 3 and row.data == "own, 2 new experts assumed"
    write = EMBEDDED_LENGTH_SHARE * 96
    asked = 5 * int((4 * 2100 + 500 * 12) * write) + int(4 * 1100 * write)
    evaluation = int(500 * 5 * write)
    trained = int(stage.steps * 16 * (EMBEDDED_PROMPT + write)) + evaluation
    assert row.tokens == asked + evaluation + 2 * trained and row.steps == 2 * stage.steps
    # three panels' bases: as it was, as it is now, and the trainer's
    alone = estimator.training(stage, 1)[0]
    assert row.memory["parameters"] == 3 * alone["parameters"]
    assert row.memory["experts"] == 4 * 2 * 3 * estimator.base.adapter_parameters(8, recipe.model.lora.targets)
    # a learned controller reads its windows, and one that has no room trains nobody
    _, learned = growing(recipe="7b-1")
    assert learned.rounds * learned.window > 0 and learned.controller == "learned"
    quiet, full = growing(*sets[:-1], "stages.grow.growth.at_most=3")
    none = full.plan(Estimator(quiet, device_of(ONE_CORE, "embedded")))
    assert none.steps == 0 and none.data == "own, 0 new experts assumed" and "optimizer" not in none.memory
    # what comes after takes up the panel as it is planned to be
    assert len(experts_before(recipe, recipe.stages[-1])) == 3


def test_parts_of_the_generators_problems_have_its_short_prompts():
    """`embedded:formal` was once planned with 256 tokens each, half of the limit."""
    for source in ("embedded", "embedded:formal", "embedded:stories"):
        made = Estimator(load_recipe("40d", "embedded", [f"problems.train={source}"]), device_of(ONE_CORE, "embedded"))
        assert (made.prompt, made.longest_prompt) == (EMBEDDED_PROMPT, 48), source


@pytest.mark.parametrize(
    ("recipe", "machine", "sets", "measured"),
    [
        # a whole run on one core, which planned prompts of 256 tokens had made 1,422
        ("7a", ONE_CORE, ("stages.route.problems=600", "stages.route.samples=4"), 386),
        # benchmarks/recipe_seeds.json: 299, 364 and 365 s
        ("40d", TWO_CORES, (), 343),
    ],
)
def test_time_is_about_what_runs_took(recipe, machine, sets, measured):
    planned = estimate(load_recipe(recipe, "embedded", sets), machine, "embedded").seconds
    assert planned == pytest.approx(measured, rel=0.25)
