"""A recipe's stages, run for real on the tiny model with an engine that follows a script, and what they ask of others.

What is noted is noted where the libraries take over: samplings that reach an engine, TRL's trainers with their
arguments and the inputs of their losses, torch's optimizer as it steps, the adapters that are served.
"""

import contextlib
import io
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_pre_hook
from toy_domain import add_toy_domain
from trl import GRPOTrainer, SFTTrainer

from evals.audit import LabelAudit
from evals.fidelity import Fidelity
from models.adapters import POLICY, REFERENCE, adapter_sha256, adapter_tensors
from models.base import load_tokenizer
from models.engines.protocol import Completion, Sampling, Tokens
from models.engines.serving import Served
from models.experts import Panel, read_panel
from models.router import Router
from orchestra.config.recipe import Recipe
from orchestra.run.ledger import StageResult
from orchestra.run.progress import Progress
from orchestra.work import growing, merging, mixture, preflight, probing, publishing, resources
from orchestra.work.context import StageContext
from rl import trainer
from settings import Node

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

DOMAIN = """
from rewards.domain import Domain
from rewards.problems import Problem

def parity(word):
    return "odd" if len(word) % 2 else "even"

def drawn(alphabet):
    def draw(split, limit, seed):
        # words of 4 to 13 letters and again, but the eighth is longer than all others
        lengths = [40 if i == 7 else 4 + i % 10 for i in range(limit or 20)]
        words = ["".join(alphabet[(i + k) % 4] for k in range(length)) for i, length in enumerate(lengths)]
        return [
            Problem(word, f"Spell {word} backwards.", word[::-1], f"turned round: {word}", domain=parity(word))
            for word in words
        ]
    return draw

class Reverse(Domain):
    name = "reverse"
    sources = {"words": drawn("abcd"), "others": drawn("efgh"), "more": drawn("ijkl"),
               "between": lambda split, limit, seed: drawn("qrst")(split, 3, seed)}

DOMAIN = Reverse()
"""
# none of its tokens ends a completion of the tiny model
# none of its tokens is an end of the tiny model
LONG = "so on " * 40


@dataclass(frozen=True)
class Call:
    """One `generate`: of which model's engine, and what was asked."""

    model: str
    prompts: list[tuple[int, ...]]
    sampling: Sampling
    seeds: list[int]


@dataclass
class Seen:
    """What one stage did.

    Fields:
        pushed: (how, adapter's hash) of each policy that was served; routed: for each call that goes to a panel, who
            answers which prompt.
        losses: inputs of TRL's GRPO loss, as they came.
        optimizer: at each step (learning rate, weight decay, norm of the clipped gradient).
        dropout: of the adapter, while training.
        tokens_at_once: for which a GRPO pass has room.
        start, reference: hashes of the adapters that training began with and was held to, "" where there is none.
        limits: that an export was held to; published: its settings.
        told: settings that the parts of a probe, a preflight, a merge, a mixture and of growing were given, by class.
    """

    calls: list[Call] = field(default_factory=list)
    pushed: list[tuple[str, str]] = field(default_factory=list)
    routed: list[tuple[str | None, ...]] = field(default_factory=list)
    losses: list[Mapping[str, torch.Tensor]] = field(default_factory=list)
    optimizer: list[tuple[float, float, float]] = field(default_factory=list)
    dropout: set[float] = field(default_factory=set)
    tokens_at_once: int = 0
    trainer: object = None
    start: str = ""
    reference: str = ""
    limits: object = None
    published: object = None
    told: dict[str, object] = field(default_factory=dict)
    folder: Path = Path()
    result: StageResult | None = None
    said: str = ""

    @property
    def metrics(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    def read(self, name: str) -> dict:
        return json.loads((self.folder / name).read_text())

    @property
    def panel(self) -> Panel:
        return read_panel(self.folder / "panel")

    def lines(self, name: str) -> list[dict]:
        return [json.loads(line) for line in (self.folder / name).read_text().splitlines()]

    def note_trainer(self, trainer: object) -> None:
        if self.trainer is None:
            self.trainer, self.start = trainer, adapter_sha256(adapter_tensors(trainer.model))
            if REFERENCE in trainer.model.peft_config:
                self.reference = adapter_sha256(adapter_tensors(trainer.model, REFERENCE))
        model = trainer.model
        self.dropout |= {m.p if m.training else 0.0 for m in model.modules() if isinstance(m, torch.nn.Dropout)}


@dataclass
class Script:
    """An engine that knows the word it is asked for, and answers stage by stage what the test needs.

    In `traces` the first problem is answered rightly five times, the second once; the others rightly the first and the
    third time (the third problem the second time too), else wrongly, then shortly and without an end. Elsewhere the
    first prompt of a call is answered rightly each time, so its group has no variance; the others rightly, wrongly,
    without an end, and in bad form.
    """

    model: str
    run: "Run"
    kind: str = "vllm"
    dtype: torch.dtype = torch.bfloat16
    serves_adapters: bool = False

    def __post_init__(self) -> None:
        self._tokenizer = load_tokenizer(self.model)

    def generate(
        self, prompts: Sequence[Tokens], sampling: Sampling, seeds: Sequence[int] | None = None, progress: object = None
    ) -> list[list[Completion]]:
        asked = [tuple(prompt) for prompt in prompts]
        self.run.now.calls.append(Call(self.model, asked, sampling, list(seeds)))
        words = [re.search(r"Spell (\w+) backwards", self._tokenizer.decode(prompt)).group(1) for prompt in prompts]
        return [
            [self._complete(self._text(word, at, k), sampling) for k in range(sampling.n)]
            for at, word in enumerate(words)
        ]

    def generate_routed(
        self, prompts: Sequence[Tokens], experts: Sequence[str | None], *asked: object
    ) -> list[list[Completion]]:
        self.run.now.routed.append(tuple(experts))
        return self.generate(prompts, *asked)

    def _text(self, word: str, at: int, k: int) -> str:
        right, wrong = f"so: \n\\boxed{{{word[::-1]}}}", "or: \n\\boxed{zz}"
        if self.run.stage == "traces":
            if len(word) == 4:
                return right.replace("so", "so" + " so" * k)
            if len(word) == 5:
                return [right, *[wrong] * 4][k]
            if len(word) == 6:
                wrong = right.replace("so", "thus")
            return [right, wrong, right.replace("so", "well"), "a\n\\boxed{b}", LONG][k]
        if at == 0:
            return right
        return [right, wrong, LONG, right + " and so on", wrong][k % 5]

    def _complete(self, text: str, sampling: Sampling) -> Completion:
        ids = [*self._tokenizer(text, add_special_tokens=False).input_ids, self._tokenizer.eos_token_id]
        ended = len(ids) <= sampling.max_tokens
        ids = ids[: sampling.max_tokens]
        logprobs = [-1.0] * len(ids) if sampling.logprobs else None
        text = self._tokenizer.decode(ids, skip_special_tokens=True)
        return Completion(ids, text, "stop" if ended else "length", logprobs)

    def score(self, prompts: Sequence[Tokens], completions: Sequence[Tokens]) -> list[list[float]]:
        return [[0.0] * len(completion) for completion in completions]

    def rest(self) -> None: ...

    def close(self) -> None: ...


@dataclass
class Run:
    """Stages of a recipe, in order, and what was seen of each.

    Fields:
        started: arguments of `start_engine` by model.
    """

    recipe: Recipe
    folder: Path
    started: dict[str, tuple] = field(default_factory=dict)
    of: dict[str, Seen] = field(default_factory=lambda: defaultdict(Seen))
    stage: str = ""

    @property
    def now(self) -> Seen:
        return self.of[self.stage]

    def start(self) -> "Run":
        shared = resources.Resources(self.recipe)
        earlier: dict[str, Path] = {}
        with self._noting():
            for stage in self.recipe.all_stages:
                self.stage = stage.name
                self.now.folder = self.folder / stage.name
                self.now.folder.mkdir(parents=True)
                told = io.StringIO()
                context = StageContext(
                    self.recipe, stage, self.now.folder, self.folder, dict(earlier),
                    self.recipe.parents_of(stage.name), shared, Progress(Console(file=told, width=400)),
                    panel=self.recipe.panel_of(stage.name), expert=stage.trains,
                )  # fmt: skip
                self.now.result = stage.run(context)
                self.now.said = told.getvalue()
                (self.now.folder / "result.json").write_text(json.dumps(asdict(self.now.result)))
                earlier[stage.name] = self.now.folder
        return self

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        def start_engine(model: str, *asked: object) -> Script:
            self.started[model] = asked
            return Script(model, self)

        def push(served: Served, model: object, step: int | None = None, adapter: str | None = POLICY) -> None:
            served.mismatch = 0.0
            self.now.pushed.append((served.sync, adapter_sha256(adapter_tensors(model, adapter or ""))))

        def misses(fidelity: Fidelity, limits: object, **_: float) -> tuple[str, ...]:
            self.now.limits = limits
            return ()

        def publish(folder: Path, run_dir: Path, recipe: Recipe, settings: object, **_: object) -> str:
            self.now.published = settings
            return "published"

        def noting_settings(work: Callable[..., object]) -> Callable[..., object]:
            def noted(*args: object, **named: object) -> object:
                self.now.told |= {type(one).__name__: one for one in args if isinstance(one, Node)}
                return work(*args, **named)

            return noted

        def audited(features: object, labels: Sequence[str], stage: Node, seed: int) -> LabelAudit:
            """Of a few labels, drawn by chance, no audit says GO."""
            self.now.told |= {type(stage.audit).__name__: stage.audit, "labels": list(labels)}
            return LabelAudit(0.5, 0.5, 0.5, 0.5, 0.5, "GO", {}, 1, "GO: whatever the labels")

        grpo_loss, sft_loss, cut = GRPOTrainer._compute_loss, SFTTrainer.compute_loss, trainer.micro_batches

        def of_rows(rows: Sequence[object], budget: int, *args: object, **kwargs: object) -> list:
            self.now.tokens_at_once = budget
            return cut(rows, budget, *args, **kwargs)

        def of_grpo(trainer: GRPOTrainer, model: object, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
            self.now.note_trainer(trainer)
            self.now.losses.append(dict(inputs))
            return grpo_loss(trainer, model, inputs)

        def of_sft(trainer: SFTTrainer, *args: object, **kwargs: object) -> torch.Tensor:
            self.now.note_trainer(trainer)
            return sft_loss(trainer, *args, **kwargs)

        def stepping(optimizer: torch.optim.Optimizer, *_: object) -> None:
            if isinstance(optimizer, torch.optim.LBFGS):  # a router's
                return
            rates, decays = ({group[name] for group in optimizer.param_groups if group["params"]}
                             for name in ("lr", "weight_decay"))  # fmt: skip
            moved = [p.grad.flatten() for group in optimizer.param_groups for p in group["params"]]
            ((rate,), (decay,)) = rates, decays
            self.now.optimizer.append((rate, decay, float(torch.cat(moved).norm())))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(resources, "start_engine", start_engine)
            patch.setattr(resources, "ApartEngine", start_engine)
            patch.setattr(Served, "push", push)
            patch.setattr(Served, "push_panel", lambda *_: None)
            patch.setattr(Router, "fit", noting_settings(Router.fit))
            patch.setattr(merging, "merged_model", noting_settings(merging.merged_model))
            patch.setattr(mixture, "mixture_model", noting_settings(mixture.mixture_model))
            patch.setattr(growing, "audited", audited)
            patch.setattr(growing, "decide", noting_settings(growing.decide))
            patch.setattr(Fidelity, "misses", misses)
            patch.setattr(publishing, "publish", publish)
            patch.setattr(publishing, "write_card", lambda *_: None)
            for name in ("choose_places", "read_places"):
                patch.setattr(probing, name, noting_settings(getattr(probing, name)))
            patch.setattr(preflight, "preflight", noting_settings(preflight.preflight))
            patch.setattr(trainer, "micro_batches", of_rows)
            patch.setattr(GRPOTrainer, "_compute_loss", of_grpo)
            patch.setattr(SFTTrainer, "compute_loss", of_sft)
            hook = register_optimizer_step_pre_hook(stepping)
            try:
                yield
            finally:
                hook.remove()


@dataclass
class Observed:
    """The run, and what is asked of it often."""

    run: Run
    llm: dict[str, object]
    tokenizer: "PreTrainedTokenizerBase"

    def __getattr__(self, stage: str) -> Seen:
        return self.run.of[stage]

    def args(self, stage: str) -> object:
        return self.run.of[stage].trainer.args

    def policy(self, stage: str = "imitate") -> "PeftModel":
        return self.run.of[stage].trainer.model

    def lora(self) -> object:
        return self.policy().peft_config["default"]

    def rolled_out(self, stage: str) -> list[Call]:
        """What the engine was asked while a GRPO stage trained."""
        return [call for call in self.run.of[stage].calls if call.sampling.logprobs]

    def own_seeds(self, stage: str) -> bool:
        """Whether a trainer's seeds are the stage's own."""
        args, own = self.args(stage), resources.stage_seed(self.run.recipe, stage)
        return args.seed == args.data_seed == own

    def asked(self, stage: str) -> str:
        """The first example that a stage imitates, prompt and answer."""
        return self.tokenizer.decode(self.run.of[stage].trainer.train_dataset["input_ids"][0])

    def longest(self) -> list[int]:
        """What the rewards hold for the longest completion."""
        return [one.longest for one in self.run.of["polish"].trainer.reward_funcs if hasattr(one, "longest")]

    def sampling(self, stage: str) -> Sampling:
        return self.rolled_out(stage)[0].sampling

    def evaluated(self, stage: str) -> Call:
        """What the engine was asked first when the stage was evaluated."""
        return next(call for call in self.run.of[stage].calls if not call.sampling.logprobs)

    def validated(self, stage: str) -> list[str]:
        """The words that a stage is asked first on its way."""
        asked = map(self.tokenizer.decode, self.evaluated(stage).prompts)
        return [re.search(r"Spell (\w+) backwards", prompt).group(1) for prompt in asked]

    def evaluation(self, stage: str) -> dict:
        return self.run.of[stage].read("evaluation.json")

    def kept(self) -> list[dict]:
        return self.run.of["traces"].lines("traces.jsonl")

    def dropped(self, reason: str) -> int:
        return self.run.of["traces"].read("statistics.json")["dropped"][reason]

    def weight(self, name: str) -> float:
        """Of a reward: what the total leaves for it beside the others, by the first step's means."""
        step, weights = self.run.of["polish"].metrics[0], self.run.recipe.reward.weights
        rest = sum(weight * step[f"rewards/{other}"] for other, weight in weights.items() if other != name)
        return round((step["reward"] - rest) / step[f"rewards/{name}"], 4)

    def trained_expert(self, stage: str) -> dict:
        """What the panel says of the expert that a stage has trained, a new one."""
        return self.run.of[stage].read("panel/panel.json")["experts"][-1]

    def steps_of_optimizer(self, stage: str) -> float:
        """Taken since it was fresh, by the moments of the expert that a stage has trained."""
        name = self.trained_expert(stage)["name"]
        found = load_file(self.run.of[stage].folder / "panel" / "experts" / name / "optimizer.safetensors")
        (steps,) = {float(x) for key, x in found.items() if key.endswith(".step")}
        return steps

    def domains(self, stage: str) -> list[str]:
        """Those of the problems that a stage trains on, whose words have an odd or an even number of letters."""
        rows = self.run.of[stage].trainer.train_dataset
        key = "input_ids" if "input_ids" in rows.column_names else "prompt_ids"
        asked = [self.tokenizer.decode(row[key]) for row in rows]
        words = [re.search(r"Spell (\w+) backwards", one).group(1) for one in asked]
        return sorted({"odd" if len(word) % 2 else "even" for word in words})

    def longest_prompt(self) -> int:
        """Tokens of the longest prompt that is trained on."""
        return max(map(len, self.run.of["polish"].trainer.train_dataset["prompt_ids"]))

    def parent(self, start: str) -> str:
        """The stage that an adapter is from."""
        names = [n for n in ("imitate", "explore", "polish") if self.run.of[n].result.adapter_sha256 == start]
        return names[0] if names else "base"

    def rows(self) -> list[tuple[str, list[int], float, int]]:
        """(prompt, completion, advantage, how many of its tokens are in the loss) of the first step of `polish`."""
        return [
            (self.tokenizer.decode(prompt[on.bool()]), ids[:44].tolist(), float(advantage), int(mask.sum()))
            for batch in self.run.of["polish"].losses[:2]
            for prompt, on, ids, advantage, mask in zip(
                batch["prompt_ids"], batch["prompt_mask"], batch["completion_ids"], batch["advantages"],
                batch["completion_mask"], strict=True,
            )
        ]  # fmt: skip

    def scale(self) -> str:
        """`none` where the advantages are the rewards less the mean of their group."""
        functions, weights = self.run.of["polish"].trainer.reward_funcs, self.run.recipe.reward.weights.values()
        totals, advantages = defaultdict(list), defaultdict(list)
        for prompt, ids, advantage, _ in self.rows():
            while ids[-1] == self.tokenizer.pad_token_id:
                ids.pop()
            gold = re.search(r"Spell (\w+) ", prompt).group(1)[::-1]
            text = self.tokenizer.decode(ids, skip_special_tokens=True)
            asked = {"prompts": [prompt], "completions": [text], "completion_ids": [ids], "gold": [gold]}
            parts = [function(**asked)[0] for function in functions]
            totals[prompt].append(sum(weight * part for weight, part in zip(weights, parts, strict=True)))
            advantages[prompt].append(advantage)
        centred = [total - sum(group) / len(group) for group in totals.values() for total in group]
        found = [advantage for group in advantages.values() for advantage in group]
        return "none" if any(found) and found == pytest.approx(centred, abs=1e-5) else "another"


@contextlib.contextmanager
def reversing(folder: Path) -> Iterator[None]:
    """Inside, there is the domain `reverse`."""
    with pytest.MonkeyPatch.context() as patch:
        add_toy_domain(folder, patch, DOMAIN)
        yield


def llm_arguments(recipe: Recipe) -> dict[str, object]:
    """What vLLM is started with on a GPU for this recipe, without starting it."""
    import vllm

    asked: dict[str, object] = {}

    class Started:
        def __init__(self, model: str, **arguments: object) -> None:
            asked.update(arguments | {"model": model})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vllm, "LLM", Started)
        patch.setattr(torch.cuda, "is_available", lambda: True)
        engine = resources.Resources(recipe).engine()
    assert engine.kind == "vllm"
    return asked
