"""Every key of every settings model, with a value that is not its default, arrives where it is used.

The keys are walked, not listed: one without a rule fails here. A rule gives the value and says how it is seen in a run
of all stages (tests/recorded.py): in TRL's arguments, in what the engine is asked, in the adapter, in what is written.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import recorded
import torch
from peft import LoraConfig, get_peft_model
from pydantic import BaseModel
from recorded import Observed
from transformers import AutoModelForCausalLM

from models.base import arithmetic_of, quantized_layers
from models.engines.protocol import Sampling
from orchestra.config.recipe import Recipe
from orchestra.config.stage import Gate
from orchestra.run.gates import judge
from orchestra.run.ledger import StageResult
from orchestra.stages import kinds
from orchestra.work.publishing import target_of
from orchestra.work.resources import stage_seed
from settings import node_in

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

# of the stages below
STAGE_OF = {"distill": "traces", "preflight": "fit", "sft": "imitate", "grpo": "polish", "evaluate": "look",
            "export": "release", "probe": "moved", "solutions": "written", "merge": "one", "mixture": "inside",
            "route": "choose", "grow": "wider", "panel": "brought"}  # fmt: skip
ARMS = 8
"""Of the panel that is routed: the base and seven experts."""
SAME = object()


@dataclass(frozen=True)
class Rule:
    """`value` stands in the recipe; `seen` finds in a run what became of it: the same, or `arrives`."""

    value: object
    seen: Callable[[Observed], object]
    arrives: object = SAME


def trains(stage: str, rate: float, decay: float, norm: float, micro: Rule, save: tuple[int, int]) -> dict[str, Rule]:
    """The keys of all trainers."""
    return {
        "learning_rate": Rule(rate, lambda o: max(lr for lr, _, _ in o.run.of[stage].optimizer)),
        "weight_decay": Rule(decay, lambda o: o.run.of[stage].optimizer[0][1]),
        "max_grad_norm": Rule(norm, lambda o: round(o.run.of[stage].optimizer[-1][2], 5)),
        "micro_batch_size": micro,
        "gradient_checkpointing": Rule(True, lambda o: o.policy(stage).is_gradient_checkpointing),
        "save_steps": Rule(save[0], lambda o: o.args(stage).save_steps, save[1]),
        "evaluate_every": Rule(2, lambda o: [line["step"] for line in o.run.of[stage].lines("sweep.jsonl")], [2]),
        # among the checkpoints, which the command line deletes
        "keep": Rule("best", lambda o: "best" if [*o.run.of[stage].folder.glob("checkpoints/sweep/step-2")] else ""),
        # half of two steps: the first one is the warm-up
        "warmup_ratio": Rule(0.5, lambda o: [lr for lr, _, _ in o.run.of[stage].optimizer], [0.0, rate]),
    }


def evaluates(stage: str, samples: int, temperature: float, top_p: float, limit: int, *, greedy: bool) -> dict:
    """The keys of all evaluations."""
    shaped = {"top_k": limit, "min_p": top_p / 4, "presence_penalty": -temperature, "repetition_penalty": 1 + top_p}
    return {
        **{
            name: Rule(value, lambda o, name=name: getattr(o.evaluated(stage).sampling, name))
            for name, value in shaped.items()
        },
        "samples": Rule(samples, lambda o: o.evaluated(stage).sampling.n),
        "temperature": Rule(temperature, lambda o: o.evaluated(stage).sampling.temperature),
        "top_p": Rule(top_p, lambda o: o.evaluated(stage).sampling.top_p),
        "greedy": Rule(greedy, lambda o: o.evaluation(stage)["greedy"] is not None),
        "pass_at_k": Rule([samples], lambda o: [int(k) for k in o.evaluation(stage)["pass_at_k"]]),
        "max_completion_tokens": Rule(limit, lambda o: o.evaluated(stage).sampling.max_tokens),
    }


def probes() -> dict[str, Rule]:
    """The keys of a probe: where and how it looks as `evals/probe.py` and `evals/carriers.py` are told it, the rest as
    it is seen in probe.json."""
    nodes = {
        "places": ("Places", {"every": 3, "near_box": 1, "corrections": ["so"], "declarations": ["or"], "random": 2}),
        "classes": (
            "TokenClasses",
            {"nucleus": 0.8, "tail_beyond": 7, "lock_top1": 0.7, "lock_nucleus": 3, "lock_tail": 0.2, "fork_top1": 0.5,
             "fork_ratio": 0.4, "fork_tokens": 3, "fork_tail": 0.3},
        ),
        "truncation": ("Truncation", {"temperature": 1.2, "min_p": 0.01, "top_k": 11, "top_p": 0.75}),
    }  # fmt: skip

    def told(o: Observed, node: str, key: str) -> object:
        value = getattr(o.moved.told[node], key)
        return list(value) if isinstance(value, tuple) else value

    def strata(o: Observed) -> Counter:
        return Counter((one["writer"], one["correct"], one["band"]) for one in o.moved.read("probe.json")["carriers"])

    return {
        "parent": Rule("explore", lambda o: o.parent(o.moved.pushed[1][1])),
        "against": Rule("imitate", lambda o: o.parent(o.moved.pushed[0][1])),
        "problems": Rule(4, lambda o: len(o.moved.calls[0].prompts)),
        # all four answers of a policy are right, and of different lengths
        "carriers": Rule(3, lambda o: max(strata(o).values())),
        "length_bands": Rule(1, lambda o: len({band for _, _, band in strata(o)})),
        **{
            f"{section}.{key}": Rule(value, lambda o, node=node, key=key: told(o, node, key))
            for section, (node, values) in nodes.items()
            for key, value in values.items()
        },
    }


def fits(stage: str, problems: int) -> dict[str, Rule]:
    """The keys of a preflight that goes before imitation, as it is told them; what becomes of each is in the rules of
    the stage that is one."""
    values = {"problems": problems, "template": "A: {question}", "mismatch": "warn", "rare_below": 0.5,
              "max_ratio": 1.5, "min_answer_rate": 0.75, "min_end_rate": 0.25}  # fmt: skip
    return {name: Rule(value, lambda o, name=name: getattr(o.run.of[stage].told["PreflightLimits"], name))
            for name, value in values.items()}  # fmt: skip


def experts(stage: str, first: str, name: str, domain: str, lora: Mapping[str, object]) -> dict[str, Rule]:
    """The keys of all that trains experts: `first` makes one with an adapter of its own, `stage` one from another."""
    config = {"rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout", "targets": "target_modules"}

    def adapter(o: Observed, key: str) -> object:
        value = getattr(o.policy(first).peft_config["default"], config[key])
        return sorted(value) if isinstance(value, set) else value

    return {
        "expert": Rule(name, lambda o: o.trained_expert(stage)["name"]),
        "from": Rule("old", lambda o: "old" if o.run.of[stage].start == o.old.result.adapter_sha256 else ""),
        "domains": Rule([domain], lambda o: o.domains(stage)),
        # one step of the expert that it starts from, and one of its own
        "optimizer": Rule("kept", lambda o: "kept" if o.steps_of_optimizer(stage) == 2 else ""),
        **{f"lora.{key}": Rule(value, lambda o, key=key: adapter(o, key)) for key, value in lora.items()},
    }


def routes() -> dict[str, Rule]:
    """The keys of a router: what is asked, what it is learned with, as it is told that, and what it then is."""
    fitted = {"set_aside": 0.4, "l2": 0.1, "patience": 4, "max_steps": 30}

    def choices(o: Observed) -> list[str]:
        return [way["choice"] for way in o.choose.read("panel-evaluation.json")["ways"]]

    return {
        # the panel is what it takes up
        "parent": Rule(None, lambda o: None),
        "problems": Rule(6, lambda o: len(o.choose.calls[0].prompts)),
        "samples": Rule(3, lambda o: {call.sampling.n for call in o.choose.calls[:ARMS]}, {3}),
        "oracle_samples": Rule(6, lambda o: {call.sampling.n for call in o.choose.calls[ARMS : 2 * ARMS]}, {6}),
        # no expert has all problems
        "min_load": Rule(1.0, lambda o: float(o.run.recipe.stage("choose").verdict(o.choose.result) is not None)),
        "generalist": Rule("imitate", lambda o: "imitate" if "generalist" in choices(o) else ""),
        "layer": Rule(2, lambda o: o.choose.read("router/router.json")["layer"]),
        "threshold": Rule(0.05, lambda o: o.choose.read("router/router.json")["threshold"]),
        **{key: Rule(value, lambda o, key=key: getattr(o.choose.told["RouteStage"], key))
           for key, value in fitted.items()},
    }  # fmt: skip


def grows() -> dict[str, Rule]:
    """The keys of a panel that grows: what is asked, what decides, and the training of the expert that comes, one of
    the domain that a controller of random labels says."""
    fitted = {"layer": 2, "threshold": 0.05, "set_aside": 0.4, "l2": 0.1, "patience": 4, "max_steps": 30}
    growth = {"unsolved_above": 0.01, "entropy_above": 0.5, "loss_above": 0.2, "load_below": 0.0, "windows": 1,
              "cooldown": 1, "at_most": 12, "at_least": 2}  # fmt: skip
    audit = {"folds": 3, "l2": 0.2, "permutations": 50, "significance": 0.05}
    lora = {"rank": ("r", 2), "alpha": ("lora_alpha", 7.0), "dropout": ("lora_dropout", 0.15),
            "targets": ("target_modules", ["k_proj", "o_proj"])}  # fmt: skip

    def grown(o: Observed) -> Path:
        (folder,) = (o.wider.folder / "grown").iterdir()
        return folder

    def drawn(o: Observed, draw: str) -> Mapping[str, object]:
        return o.wider.read(f"answers/{draw}-base.json")

    def adapter(o: Observed, key: str) -> object:
        value = getattr(o.policy("wider").peft_config["default"], key)
        return sorted(value) if isinstance(value, set) else value

    def told(node: str, values: Mapping[str, object]) -> dict[str, Rule]:
        return {key: Rule(value, lambda o, key=key: getattr(o.wider.told[node], key)) for key, value in values.items()}

    rows = Rule(1, lambda o: o.args("wider").per_device_train_batch_size)
    # each is of its own, and the panel's experts have others
    nothing = dict.fromkeys(("parent", "expert", "domains", "from", "optimizer"), Rule(None, lambda o: None))
    return {
        **nothing,
        **trains("wider", 3e-3, 0.02, 0.004, rows, (7, 7)),
        "evaluate_every": Rule(2, lambda o: json.loads((grown(o) / "sweep.jsonl").read_text())["step"]),
        "keep": Rule("best", lambda o: "best" if "last_validation_accuracy" in extra_of(grown(o)) else ""),
        # what has been measured with the same limits is not measured again
        **under("preflight", fits("wider", 4)),
        **under("lora", {key: Rule(value, lambda o, at=at: adapter(o, at)) for key, (at, value) in lora.items()}),
        **under("growth", told("GrowthSettings", growth)),
        **under("audit", told("AuditSettings", audit)),
        **under("router", told("RouterSettings", fitted)),
        "data": Rule({"traces": 2.0}, lambda o: re.findall(r"traces of (\w+)", o.wider.said), ["traces"]),
        "pass_rate": Rule([0.3, 0.5], lambda o: list(o.run.recipe.stage("wider").pass_rate)),
        "at_most": Rule(3, lambda o: extra_of(grown(o))["examples"] + extra_of(grown(o))["too_long"]),
        "steps": Rule(2, lambda o: len(o.wider.optimizer)),
        "batch_size": Rule(
            2, lambda o: o.args("wider").train_batch_size * o.args("wider").gradient_accumulation_steps
        ),
        "lr_scheduler_type": Rule("constant_with_warmup", lambda o: o.args("wider").lr_scheduler_type),
        "max_length": Rule(74, lambda o: o.args("wider").max_length),
        "memorisation_above": Rule(
            1.5, lambda o: float(re.search(r"memorisation_above \(([\d.]+)\)", o.wider.said).group(1))
        ),
        "packing": Rule(True, lambda o: o.args("wider").packing),
        "samples": Rule(3, lambda o: len(drawn(o, "learn")["sampled"]["correct"][0])),
        "oracle_samples": Rule(5, lambda o: len(drawn(o, "first")["sampled"]["correct"][0])),
        "rounds": Rule(1, lambda o: len(o.wider.read("growth.json")["windows"])),
        "window": Rule(4, lambda o: o.wider.read("growth.json")["windows"][0]["problems"]),
        "learn": Rule(3, lambda o: len(drawn(o, "learn")["problem_ids"])),
        "gain": Rule(2, lambda o: o.wider.read("growth.json")["changes"][0]["difference"]["n"]),
        # nothing is removed here (tests/orchestra/work/test_growing.py)
        "may_cost": Rule(0.2, lambda o: o.run.recipe.stage("wider").may_cost),
        "controller": Rule("learned", lambda o: "learned" if not [*o.wider.folder.glob("answers/window-*")] else ""),
        # by outcome they would all be the same: the base answers as every expert does
        "labels": Rule("random", lambda o: "random" if set(o.wider.told["labels"]) - {"prune"} else ""),
    }  # fmt: skip


def extra_of(folder: Path) -> Mapping[str, float]:
    """What the training of one expert had to say."""
    return json.loads((folder / "result.json").read_text())["extra"]


def under(prefix: str, rules: dict[str, Rule]) -> dict[str, Rule]:
    return {f"{prefix}.{name}": rule for name, rule in rules.items()}


def read_by(o: Observed, source: int) -> dict:
    """What a preflight found of one of its sources."""
    return o.fit.read("preflight.json")["sources"][source]


def bound_told(o: Observed, key: str) -> float:
    """That a warning of the preflight names."""
    return float(re.search(rf"(?:above|below) ([\d.]+)%? \({key}\)", o.fit.said).group(1))


def changes(folder: str) -> dict[str, Rule]:
    """The keys of a change of the panel; those of other changes in stages of their own, `twice` and `less`."""

    def verdict(o: Observed) -> str:
        costly = o.less.result.extra | {"removal: low": -1.0}
        return o.run.recipe.stage("less").verdict(replace(o.less.result, extra=costly)).reason

    return {
        "parent": Rule(None, lambda o: None),
        "change": Rule("add", lambda o: o.brought.said.split()[0], "added"),
        "expert": Rule("theirs", lambda o: o.brought.panel.names[-1]),
        "folder": Rule(folder, lambda o: o.brought.panel.expert("theirs").rank, 1),
        "domains": Rule(["cities"], lambda o: list(o.brought.panel.expert("theirs").domains)),
        "to": Rule("twin", lambda o: o.twice.panel.names[-1]),
        "may_cost": Rule(0.25, lambda o: float(verdict(o).split()[-2]) / 100),
    }


def rules(base: str, reward_file: str, solved: str, brought: str) -> dict[str, Rule]:
    """By key: `section.key`, or `kind.key` for stages."""
    serving = 0  # of (serving, capacity), as start_engine takes them
    rows = Rule(1, lambda o: o.args("imitate").per_device_train_batch_size)
    # a pass has room for so many of the longest prompt with the longest completion
    room = Rule(5, lambda o: o.polish.tokens_at_once / (o.longest_prompt() + o.sampling("polish").max_tokens))
    return {
        # an evaluation has the recipe's own, a stage that trains one of its own
        "seed": Rule(
            5, lambda o: [o.evaluation("base")["seed"], o.own_seeds("imitate"), o.own_seeds("polish")], [5, True, True]
        ),
        "report_to": Rule("tensorboard", lambda o: "tensorboard" if [*o.polish.folder.glob("tensorboard/*")] else ""),
        "model.base": Rule(base, lambda o: o.policy().get_base_model().config._name_or_path),
        "model.quantize": Rule("none", lambda o: "nf4" if [*quantized_layers(o.policy())] else "none"),
        "model.dtype": Rule(
            "bfloat16", lambda o: [arithmetic_of(o.policy()), o.args("polish").bf16], [torch.bfloat16, True]
        ),
        "model.prompt": Rule("plain", lambda o: "plain" if "Answer:" in o.asked("imitate") else "chat"),
        "model.lora.rank": Rule(3, lambda o: o.lora().r),
        "model.lora.alpha": Rule(5.0, lambda o: o.lora().lora_alpha),
        # in the layers, while TRL computes its loss
        "model.lora.dropout": Rule(0.25, lambda o: [o.imitate.dropout, o.polish.dropout], [{0.25}, {0.25}]),
        "model.lora.targets": Rule(["down_proj", "q_proj"], lambda o: sorted(o.lora().target_modules)),
        "problems.domain": Rule("reverse", lambda o: o.polish.trainer.reward_funcs[0].domain.name),
        "problems.train": Rule("words", lambda o: o.polish.trainer.train_dataset["problem_id"][0], "abcd"),
        "problems.test": Rule("others", lambda o: o.evaluation("base")["problem_ids"][0], "efgh"),
        "problems.format": Rule("boxed", lambda o: "think" if "<think>" in o.kept()[0]["completion"] else "boxed"),
        # one of them is too long
        "problems.train_limit": Rule(10, lambda o: len(o.polish.trainer.train_dataset) + 1),
        "problems.test_limit": Rule(5, lambda o: len(o.evaluated("base").prompts)),
        "problems.validation": Rule("between", lambda o: o.validated("polish"), ["qrst", "rstqr", "stqrst"]),
        **under("reward", {
            name: Rule(weight, lambda o, name=name: o.weight(name))
            for name, weight in {"correct": 2.0, "format": 0.3, "length": 0.2, "cosine": 0.15, "repetition": 0.25,
                                 "brevity": 0.1}.items()
        }),
        "reward.file": Rule(reward_file, lambda o: o.polish.metrics[0]["rewards/brevity"], 0.5),
        "reward.ungradable_limit": Rule(0.25, lambda o: o.polish.trainer.reward_funcs[0].ungradable_limit),
        "rollouts.engine": Rule("vllm", lambda o: o.run.started[base][serving].engine),
        "rollouts.sync": Rule("adapter", lambda o: o.polish.pushed[0][0]),
        "rollouts.dtype": Rule("bfloat16", lambda o: o.llm["dtype"]),
        "rollouts.gpu_memory_utilization": Rule(0.5, lambda o: o.llm["gpu_memory_utilization"]),
        "rollouts.top_p": Rule(0.9, lambda o: {o.sampling(stage).top_p for stage in ("explore", "polish")}, {0.9}),
        "rollouts.group_size": Rule(4, lambda o: o.sampling("explore").n),
        "rollouts.prompts_per_step": Rule(3, lambda o: len(o.rolled_out("explore")[0].prompts)),
        "rollouts.temperature": Rule(
            0.7, lambda o: [o.sampling("explore").temperature, o.explore.trainer.temperature], [0.7, 0.7]
        ),
        "rollouts.max_completion_tokens": Rule(40, lambda o: o.sampling("explore").max_tokens),
        "rollouts.max_prompt_tokens": Rule(63, Observed.longest_prompt),
        # one group never has variance: every round is taken
        "rollouts.dynamic_sampling.max_resamples": Rule(2, lambda o: len(o.rolled_out("explore")) - 1),
        **under("evaluate", evaluates("explore", 3, 0.8, 0.85, 36, greedy=False)),
        "evaluate.perplexity": Rule(
            2, lambda o: len(o.imitate.read("perplexity.json")["sources"]["traces"]["after"]["tokens_by_text"])
        ),
        "evaluate.confidence": Rule(0.9, lambda o: o.evaluation("explore")["sampled"]["accuracy"]["confidence"]),
        **{f"{prefix_of(kind)}.kind": Rule(kind, lambda o, at=at: o.run.of[at].result.kind)
           for kind, at in STAGE_OF.items()},
        **{f"{prefix_of(kind)}.name": Rule(at, lambda o, at=at: o.run.of[at].result.name)
           for kind, at in STAGE_OF.items()},
        # the teacher is asked by itself, so the parent counts in another stage, `own`
        "distill.parent": Rule(None, lambda o: o.parent(o.own.pushed[0][1]), "imitate"),
        "distill.teacher": Rule("embedded/teacher", lambda o: o.traces.calls[0].model),
        "distill.problems": Rule(7, lambda o: o.traces.read("statistics.json")["problems"]),
        "distill.samples": Rule(5, lambda o: o.traces.calls[0].sampling.n),
        "distill.temperature": Rule(0.5, lambda o: o.traces.calls[0].sampling.temperature),
        "distill.top_p": Rule(0.8, lambda o: o.traces.calls[0].sampling.top_p),
        "distill.top_k": Rule(9, lambda o: o.traces.calls[0].sampling.top_k),
        "distill.max_tokens": Rule(38, lambda o: o.traces.calls[0].sampling.max_tokens),
        "distill.keep": Rule("all", lambda o: {one["verdict"] for one in o.kept()}, {"correct", "wrong"}),
        # of five problems with two right of five: the third is one too many, the fourth short, the fifth cut off;
        # one with five right and one with one are outside the bounds
        "distill.max_per_problem": Rule(2, lambda o: o.dropped("enough_for_problem"), 5),
        "distill.min_tokens": Rule(7, lambda o: o.dropped("too_short"), 5),
        "distill.pass_rate": Rule([0.3, 0.9], lambda o: o.dropped("pass_rate"), 10),
        # no policy has a part in it
        "solutions.parent": Rule(None, lambda o: None),
        "solutions.same_problems_as": Rule(
            "traces",
            lambda o: {one["problem_id"] for one in o.written.lines("traces.jsonl")}
            == {one["problem_id"] for one in o.kept()},
            True,
        ),
        # after a stage whose policy it would take otherwise
        "preflight.parent": Rule("base", lambda o: o.parent(o.fit.pushed[0][1])),
        "preflight.data": Rule(
            ["traces", solved],
            lambda o: [read_by(o, source)["source"] for source in (0, 1)], ["traces", "solved.jsonl"],
        ),
        "preflight.problems": Rule(2, lambda o: len(read_by(o, 0)["problem_ids"])),
        "preflight.template": Rule("Q: {question} A:", lambda o: read_by(o, 0)["second"]),
        # rows of the file say another prompt
        "preflight.mismatch": Rule("warn", lambda o: "warn" if "is not what evaluation asks" in o.fit.said else "fail"),
        "preflight.rare_below": Rule(0.9999, lambda o: read_by(o, 0)["text"]["rare"], 1.0),
        # the file's solutions are of a kind that the script does not write; in one of them no answer is found, and an
        # end stands in the midst of another
        "preflight.max_ratio": Rule(1.0001, lambda o: bound_told(o, "max_ratio")),
        "preflight.min_answer_rate": Rule(0.99, lambda o: bound_told(o, "min_answer_rate"), 99.0),
        "preflight.min_end_rate": Rule(0.98, lambda o: bound_told(o, "min_end_rate"), 98.0),
        **under("sft.preflight", fits("imitate", 3)),
        **under("sft", trains("imitate", 3e-3, 0.02, 0.004, rows, (7, 7))),
        "sft.parent": Rule("base", lambda o: o.parent(o.imitate.start)),
        "sft.data": Rule({"traces": 2.0}, lambda o: re.findall(r"traces of (\w+)", o.imitate.said), ["traces"]),
        # of ten traces; the two of one problem, three times of five right, are above it
        "sft.pass_rate": Rule([0.3, 0.5], lambda o: re.findall(r"(\d+) outside", o.imitate.said), ["2"]),
        "sft.at_most": Rule(7, lambda o: o.imitate.result.extra["examples"] + o.imitate.result.extra["too_long"]),
        "sft.steps": Rule(2, lambda o: len(o.imitate.optimizer)),
        "sft.batch_size": Rule(
            2, lambda o: o.args("imitate").train_batch_size * o.args("imitate").gradient_accumulation_steps
        ),
        "sft.lr_scheduler_type": Rule("constant_with_warmup", lambda o: o.args("imitate").lr_scheduler_type),
        # and one of the traces is longer
        "sft.max_length": Rule(
            74, lambda o: [o.args("imitate").max_length, o.imitate.result.extra["too_long"]], [74, 1]
        ),
        # of fewer than ten problems none is set aside
        "sft.memorisation_above": Rule(
            1.5, lambda o: float(re.search(r"memorisation_above \(([\d.]+)\)", o.imitate.said).group(1))
        ),
        "sft.packing": Rule(True, lambda o: o.args("imitate").packing),
        **under("sft", experts("learn", "old", "new", "even",
                               {"rank": 2, "alpha": 7.0, "dropout": 0.15, "targets": ["k_proj", "o_proj"]})),
        **under("grpo", experts("reward", "third", "fourth", "odd",
                                {"rank": 4, "alpha": 9.0, "dropout": 0.35, "targets": ["v_proj"]})),
        **under("route", routes()),
        **under("grow", grows()),
        **under("panel", changes(brought)),
        # with two iterations over a batch, a checkpoint is only written after the second
        **under("grpo", trains("polish", 2e-3, 0.03, 0.003, room, (3, 4))),
        "grpo.parent": Rule("explore", lambda o: o.parent(o.polish.start)),
        "grpo.steps": Rule(2, lambda o: len(o.polish.optimizer)),
        "grpo.beta": Rule(0.02, lambda o: o.polish.trainer.beta),
        "grpo.reference": Rule("imitate", lambda o: o.parent(o.polish.reference)),
        "grpo.epsilon": Rule(0.1, lambda o: o.polish.trainer.epsilon_low),
        "grpo.epsilon_high": Rule(0.4, lambda o: o.polish.trainer.epsilon_high),
        "grpo.num_iterations": Rule(2, lambda o: 2 * 3 / len(o.rolled_out("polish"))),
        "grpo.loss_type": Rule("grpo", lambda o: o.polish.trainer.loss_type),
        "grpo.scale_rewards": Rule("none", Observed.scale),
        "grpo.mask_truncated_completions": Rule(False, lambda o: not any(n == 44 for *_, n in o.rows())),
        "grpo.mask_zero_variance_kl": Rule(False, lambda o: not any(n and a == 0 for *_, a, n in o.rows())),
        "grpo.lr_scheduler_type": Rule("cosine", lambda o: o.args("polish").lr_scheduler_type),
        "grpo.group_size": Rule(5, lambda o: o.sampling("polish").n),
        "grpo.prompts_per_step": Rule(2, lambda o: len(o.rolled_out("polish")[0].prompts)),
        "grpo.temperature": Rule(
            0.9, lambda o: [o.sampling("polish").temperature, o.polish.trainer.temperature], [0.9, 0.9]
        ),
        # the rewards for length are told, too
        "grpo.max_completion_tokens": Rule(44, lambda o: [o.sampling("polish").max_tokens, *o.longest()], [44, 44, 44]),
        **under("evaluate stage", evaluates("look", 2, 0.6, 0.7, 30, greedy=True)),
        "evaluate stage.parent": Rule("imitate", lambda o: o.parent(o.look.pushed[0][1])),
        "evaluate stage.problems": Rule(
            {"one": "more", "two": "others"},
            lambda o: [o.look.read(f"evaluation{two}.json")["problem_ids"][0] for two in ("", "-two")],
            ["ijkl", "efgh"],
        ),
        "evaluate stage.limit": Rule(3, lambda o: len(o.evaluated("look").prompts)),
        "export.parent": Rule("imitate", lambda o: o.parent(o.release.result.adapter_sha256)),
        # a stage of its own, since it leaves nothing for the others to be seen in
        "export.what": Rule("adapter", lambda o: [path.name for path in sorted((o.alone.folder / "model").iterdir())],
                            ["adapters", "export.json"]),
        "export.base": Rule("original", lambda o: o.release.read("model/export.json")["merge_base"]),
        "export.dtype": Rule("float16", lambda o: o.release.read("model/config.json")["dtype"]),
        "export.hub": Rule("a/b@c", lambda o: str(target_of(o.release.published))),
        "export.private": Rule(False, lambda o: target_of(o.release.published).private),
        "export.tag": Rule("v1", lambda o: target_of(o.release.published).tag),
        "export.check.problems": Rule(3, lambda o: len(o.release.calls[0].prompts)),
        "export.check.max_kl": Rule(0.5, lambda o: o.release.limits.max_kl),
        "export.check.min_agreement": Rule(0.25, lambda o: o.release.limits.min_agreement),
        "export.check.max_accuracy_loss": Rule(0.5, lambda o: o.release.limits.max_accuracy_loss),
        **under("probe", probes()),
        # neither takes up a stage's policy
        "merge.parent": Rule(None, lambda o: None),
        "merge.merge": Rule("ties", lambda o: re.search(r"(\w+): [\d.]+ first", o.one.said).group(1)),
        "merge.rank": Rule(2, lambda o: o.one.result.extra["rank"]),
        "merge.density": Rule(0.25, lambda o: o.one.told["MergeStage"].density),
        "mixture.parent": Rule(None, lambda o: None),
        "mixture.layers": Rule("all", lambda o: o.inside.told["MixtureStage"].layers),
        "mixture.top_k": Rule(1, lambda o: o.inside.told["MixtureStage"].top_k),
        "mixture.temperature": Rule(0.5, lambda o: o.inside.told["MixtureStage"].temperature),
        # on `polish`, whose numbers are those of every other stage
        "gate.metric": Rule("format_rate", lambda o: gate_sentence(o).split()[1]),
        "gate.against": Rule("base", lambda o: re.search("of '(.*)'", gate_sentence(o)).group(1)),
        "gate.min_difference": Rule(-0.25, lambda o: float(gate_sentence(o).split()[-1])),
    }  # fmt: skip


def gate_sentence(o: Observed) -> str:
    results = {name: StageResult(name, "grpo", accuracy=0.5, format_rate=0.5) for name in ("base", "imitate", "polish")}
    return judge(o.run.recipe, o.run.recipe.stage("polish"), results).sentence


def keys(model: type[BaseModel], prefix: str = "") -> "Iterator[tuple[str, FieldInfo]]":
    """(dotted key, field) of everything that may be set; stages and gates stand by themselves."""
    for name, field in model.model_fields.items():
        inner = node_in(field.annotation)
        if name in ("stages", "gate"):
            continue
        if inner is not None:
            yield from keys(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def every_key() -> "dict[str, FieldInfo]":
    found = dict(keys(Recipe)) | dict(keys(Gate, "gate."))
    for kind, model in kinds().items():
        found |= keys(model, f"{prefix_of(kind)}.")
    return found


def prefix_of(kind: str) -> str:
    """`evaluate` is a section, too."""
    return f"{kind} stage" if kind in Recipe.model_fields else kind


# the run's folder, which the command line makes (tests/test_end_to_end.py)
ELSEWHERE = {"name"}
# functions of a user's file may have any name
FREE_NAMES = {"reward.brevity"}


def tree(rules: Mapping[str, Rule]) -> dict[str, object]:
    """The values as a recipe nests them; those of the kinds stand under their names."""
    made: dict[str, object] = {}
    for key, rule in rules.items():
        *path, name = key.split(".")
        place = made
        for part in path:
            place = place.setdefault(part, {})
        if rule.value is not None:
            place[name] = rule.value
    return made


def recipe_of(rules: Mapping[str, Rule]) -> Recipe:
    """The stage of each kind, and more: a GRPO stage that says nothing of its own, a distillation from a parent, an
    export of the adapter alone, and stages that train experts, of which policies know nothing."""
    made = tree(rules)
    stages = {kind: made.pop(prefix_of(kind)) for kind in STAGE_OF}
    stages["grpo"]["gate"] = made.pop("gate")
    explore = {"name": "explore", "kind": "grpo", "steps": 1, "learning_rate": 1e-3}
    own = {"name": "own", "kind": "distill", "teacher": "self", "parent": "imitate", "problems": 2, "samples": 1,
           "max_tokens": 30}  # fmt: skip
    alone = {"name": "alone", "kind": "export", "parent": "imitate", "what": stages["export"].pop("what")}
    sft = {"kind": "sft", "data": "traces", "steps": 1, "batch_size": 2, "learning_rate": 1e-3, "preflight": False}
    grpo = {"kind": "grpo", "steps": 1, "learning_rate": 1e-3}
    panel = []
    for first, second, plain in (("old", "learn", sft), ("third", "reward", grpo)):
        keys = stages[plain["kind"]]
        panel.append({"name": first, **plain, "expert": first, "lora": keys.pop("lora")})
        panel.append(
            {"name": second, **plain, **{key: keys.pop(key) for key in ("expert", "from", "domains", "optimizer")}}
        )
    changed = [
        {"name": "less", "change": "remove", "expert": "first", "may_cost": stages["panel"].pop("may_cost")},
        {"name": "twice", "change": "clone", "expert": "old", "to": stages["panel"].pop("to")},
    ]
    expert = {"kind": "sft", "data": ["traces"], "steps": 1, "learning_rate": 1e-3, "preflight": False}
    order = [
        stages["distill"],
        stages["solutions"],
        explore,
        stages["preflight"],
        stages["sft"],
        stages["grpo"],
        own,
        stages["evaluate"],
        stages["probe"],
        stages["export"],
        alone,
        {"name": "first", "expert": "first", **expert},
        {"name": "experts", "expert": "each", **expert},
        stages["merge"],
        stages["mixture"],
        *panel,
        stages["route"],
        stages["grow"],
        *({"kind": "panel", **one} for one in changed),
        stages["panel"],
    ]
    return Recipe.model_validate({"name": "other", **made, "stages": order})


@pytest.fixture(scope="module")
def made(tiny_path, tmp_path_factory):
    """(the rules, the recipe made from them, the folder it may run in); the domain `reverse` is there."""
    folder = tmp_path_factory.mktemp("arrive")
    (folder / "mine.py").write_text("def brevity(completions, **columns):\n    return [0.5] * len(completions)\n")
    with recorded.reversing(folder / "domains"):
        rows = [
            {"question": f"Spell {word} backwards.", "answer": word[::-1], "solution": how, "prompt": f"{word}:"}
            for word, how in (("mnop", r"so \boxed{"), ("nopm", "<|assistant|> <|user|> <|end|> 1234567890"))
        ]
        (folder / "solved.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        bare = AutoModelForCausalLM.from_pretrained(tiny_path)
        get_peft_model(bare, LoraConfig(r=1, target_modules=["q_proj"])).save_pretrained(folder / "brought")
        found = rules(str(tiny_path), *(str(folder / name) for name in ("mine.py", "solved.jsonl", "brought")))
        yield found, recipe_of(found), folder


@pytest.fixture(scope="module")
def observed(made, tokenizer):
    _, recipe, folder = made
    return Observed(recorded.Run(recipe, folder / "run").start(), recorded.llm_arguments(recipe), tokenizer)


def test_every_key_has_a_rule_with_a_value_that_is_not_its_default(made):
    found = made[0]
    known = every_key()
    assert found.keys() - FREE_NAMES == known.keys() - ELSEWHERE
    for key, rule in found.items():
        if key not in FREE_NAMES and rule.value is not None:
            default = known[key].default
            assert rule.value != (list(default) if isinstance(default, tuple) else default), key


@pytest.mark.parametrize("key", rules(*[""] * 4))
def test_every_key_arrives(made, observed, key):
    rule = made[0][key]
    arrives = rule.value if rule.arrives is SAME else rule.arrives
    assert rule.seen(observed) == (pytest.approx(arrives) if isinstance(arrives, float) else arrives)


def test_what_no_key_says_of_a_sampling(observed, tokenizer):
    """Completions end at the tokenizer's end token, in rollouts at the model's others too; rollouts are never truncated
    to the likeliest tokens, nor penalised; KL between policies is measured on samples of the policy itself."""
    end = tokenizer.eos_token_id
    for stage in ("base", "imitate", "polish", "look"):
        *evaluations, _ = calls = [call for call in observed.run.of[stage].calls if not call.sampling.logprobs]
        for call in evaluations if stage in ("imitate", "polish") else calls:
            assert call.sampling.stop_token_ids == (end,)
    for stage in ("imitate", "polish"):
        sampling, longest = observed.run.of[stage].calls[-1].sampling, 36
        assert sampling == Sampling(longest, temperature=1.0, top_p=1.0, top_k=0, stop_token_ids=(end,))
    greedy, penalties = observed.look.calls[-1].sampling, {"presence_penalty": -0.6, "repetition_penalty": 1.7}
    assert greedy == Sampling(30, temperature=0.0, top_p=1.0, top_k=0, stop_token_ids=(end,), **penalties)
    for call in [*observed.rolled_out("polish"), *observed.traces.calls]:
        sampling = call.sampling
        assert (sampling.min_p, sampling.presence_penalty, sampling.repetition_penalty) == (None, None, None)
    for call in observed.rolled_out("polish"):
        assert end in call.sampling.stop_token_ids and call.sampling.top_k == 0


def test_vllm_is_started_with_room_for_all_of_it(observed):
    """On a GPU. The longest test prompt has 20 tokens, training prompts 25 and the longest completion 44; of the ranks
    that vLLM serves 8 is the first that holds 3."""
    wanted = {
        "max_model_len": 63 + 44, "max_lora_rank": 8, "enable_lora": True, "enable_prefix_caching": True,
        "logprobs_mode": "processed_logprobs", "generation_config": "vllm",
    }  # fmt: skip
    assert {name: observed.llm[name] for name in wanted} == wanted


def test_the_teacher_is_sampled_under_a_seed_for_each_problem(observed):
    own = stage_seed(observed.run.recipe, "traces")
    assert observed.traces.calls[0].seeds == [own + 1000 * i for i in range(7)]
