"""One GRPO step, ours against stock TRL, alternating step by step in one run: `make bench-grpo`.

    python -m benchmarks.grpo_step [--cases student 25m] [--steps 8] [--out benchmarks]

Both train the same model, LoRA, prompts, group size, KL penalty and lengths, each in a process of its own that waits
for its turn, so nothing runs beside a step. Stock TRL is first tried in several settings (arithmetic, base) and runs in
the fastest. Ratios are per pair of steps; their median and spread are reported.

student  embedded/student on the generator's problems with the recipe's rewards; completions end where it ends them.
25m      a random 25M-parameter Qwen2. 32 of its 4,096 tokens end a completion, and random weights sample nearly
         uniformly, so lengths are geometric with mean 128, cut off at 256. The reward is the parity of the token ids.
3b       Qwen2.5-3B's shape with random weights (GPU): lengths geometric with mean 256, cut off at 1,024.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

BETA = 0.01
LORA = {"rank": 16, "alpha": 32}
KEYS = ("step", "rollout", "sync", "reward", "logprob", "optimise")


@dataclass(frozen=True)
class Case:
    """What is trained. Shape fields are of the random model; None takes embedded/student."""

    name: str
    prompts_per_step: int
    group_size: int
    max_completion_tokens: int
    learning_rate: float = 1e-4
    hidden: int | None = None
    layers: int = 8
    heads: int = 8
    kv_heads: int = 4
    mlp: int = 1408
    vocabulary: int = 4096
    mean_length: int = 128
    tied: bool = False


CASES = {
    "student": Case("student", 32, 8, 96),
    "25m": Case("25m", 8, 8, 256, hidden=512),
    "3b": Case("3b", 8, 16, 1024, hidden=2048, layers=36, heads=16, kv_heads=2, mlp=11008, vocabulary=151936,
               mean_length=256, tied=True),
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """How a trainer runs. `micro` is completions per forward pass; `engine_dtype` is ours alone, `vllm` is stock's."""

    trainer: Literal["ours", "stock"]
    bf16: bool
    micro: int
    quantize: Literal["nf4", "none"] = "nf4"
    engine_dtype: str = "auto"
    vllm: bool = False

    def __str__(self) -> str:
        words = ["bf16" if self.bf16 else "fp32", f"micro-batch {self.micro}", f"base {self.quantize}"]
        words += [f"engine {self.engine_dtype}"] if self.trainer == "ours" else []
        return ", ".join([*words, "vLLM colocate"] if self.vllm else words)


@dataclass(frozen=True)
class Step:
    """Seconds by part, completion tokens sampled, completions and those with a non-zero advantage."""

    seconds: dict[str, float]
    tokens: int
    samples: int
    useful: int


def stock_settings(case: Case, cuda: bool) -> list[Setting]:
    """Settings to try for stock TRL."""
    batch = case.prompts_per_step * case.group_size
    if cuda:
        return [Setting("stock", True, micro, vllm=vllm) for micro in (8, 16) for vllm in (True, False)]
    return [Setting("stock", bf16, min(64, batch), base) for base in ("nf4", "none") for bf16 in (False, True)]


def our_settings(case: Case, cuda: bool) -> list[Setting]:
    """Settings to try for ours."""
    batch = case.prompts_per_step * case.group_size
    if cuda:
        return [Setting("ours", True, 16)]
    # float32 arithmetic is the trainer's own default on a CPU
    return [Setting("ours", False, min(64, batch), engine_dtype=dtype) for dtype in ("float32", "bfloat16")]


# the worker: one trainer that takes a step whenever it is told to


class Clock:
    """Adds up seconds by name around wrapped functions."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def wrap(self, owner: object, attribute: str, name: str, only: Callable[[], bool] = lambda: True) -> None:
        inner = getattr(owner, attribute)

        def timed(*args: object, **kwargs: object) -> object:
            if not only():
                return inner(*args, **kwargs)
            with self.of(name):
                return inner(*args, **kwargs)

        setattr(owner, attribute, timed)


def worker(case: Case, setting: Setting, folder: Path, replies: int) -> None:
    """Train; before each step wait for a line on standard input, after it write a JSON line to the file descriptor."""
    import torch
    from transformers import TrainerCallback

    clock = Clock()
    counts = {"tokens": 0, "samples": 0, "useful": 0}
    out = os.fdopen(replies, "w", buffering=1)

    class Turns(TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            out.write("ready\n")
            if not sys.stdin.readline():
                os._exit(0)
            clock.seconds.clear()
            counts.update(tokens=0, samples=0, useful=0)
            self.start = time.perf_counter()

        def on_step_end(self, *_: object, **__: object) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds = {key: clock.seconds[key] for key in KEYS}
            seconds["step"] = time.perf_counter() - self.start
            seconds["rollout"] -= seconds["sync"]
            seconds["optimise"] = seconds["step"] - sum(seconds[k] for k in ("rollout", "sync", "reward", "logprob"))
            cuda = torch.cuda.is_available()
            peak = torch.cuda.max_memory_allocated() if cuda else _peak_rss()
            out.write(json.dumps({"seconds": seconds, **counts, "peak": peak}) + "\n")

    trainer = (_ours if setting.trainer == "ours" else _stock)(case, setting, folder, Turns(), clock, counts)
    inner = trainer._generate_single_turn

    def rollout(*args: object, **kwargs: object) -> object:
        with clock.of("rollout"):
            ids, logprobs = inner(*args, **kwargs)
        counts["tokens"] += sum(map(len, ids))
        counts["samples"] += len(ids)
        return ids, logprobs

    trainer._generate_single_turn = rollout
    clock.wrap(trainer, "_calculate_rewards", "reward")
    trainer.train()


def _peak_rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _model(case: Case, setting: Setting, folder: Path):
    from models.adapters import new_adapter
    from models.base import load_base, load_tokenizer

    name = model_name(case, folder)
    base = load_base(name, setting.quantize)
    return name, new_adapter(base, **LORA, seed=1), load_tokenizer(name)


def model_name(case: Case, folder: Path) -> str:
    """Name or folder of the case's model, made when it is not there."""
    if case.hidden is None:
        return "embedded/student"
    path = folder / case.name
    if path.is_dir():
        return str(path)
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from models.base import load_tokenizer

    torch.manual_seed(0)
    tokenizer = load_tokenizer("embedded/student")
    ends = case.vocabulary // case.mean_length
    eos = [tokenizer.eos_token_id, *range(case.vocabulary - ends + 1, case.vocabulary)]
    config = Qwen2Config(
        vocab_size=case.vocabulary, hidden_size=case.hidden, num_hidden_layers=case.layers,
        num_attention_heads=case.heads, num_key_value_heads=case.kv_heads, intermediate_size=case.mlp,
        max_position_embeddings=2048, tie_word_embeddings=case.tied, eos_token_id=eos,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=None, initializer_range=0.01,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    model.generation_config.eos_token_id = eos
    model.to(torch.bfloat16).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def _parity(completion_ids: Sequence[Sequence[int]], **_: object) -> list[float]:
    return [float(sum(ids) % 2) for ids in completion_ids]


def _task(case: Case, tokenizer):
    """Problems, prompts and rewards: the recipe's for the student, the same prompts with a cheap reward elsewhere."""
    from models.prompts import render_prompt
    from rewards.formats import get_format
    from rewards.problems import load_problems
    from rewards.scoring import RewardSet, build_rewards

    problems = load_problems("embedded", "train", limit=1024, seed=3)
    prompts = [render_prompt(tokenizer, get_format("think-boxed").messages(one.question)) for one in problems]
    if case.hidden is None:
        rewards = build_rewards({"correct": 1.0, "format": 0.1}, max_completion_tokens=case.max_completion_tokens)
    else:
        rewards = RewardSet([_parity], ["parity"], [1.0])
    return problems, prompts, rewards


def _ours(case: Case, setting: Setting, folder: Path, turns, clock: Clock, counts: dict[str, int]):
    import torch

    import rl.trainer
    from models.adapters import adapter_tensors
    from models.engine import EngineSettings, start_engine
    from rl.kl import Reference
    from rl.train import GrpoSettings, build_trainer
    from rl.trainer import Objective

    name, model, tokenizer = _model(case, setting, folder)
    problems, prompts, rewards = _task(case, tokenizer)
    engine = start_engine(
        "vllm", name, EngineSettings(max_model_len=case.max_completion_tokens + 256, dtype=setting.engine_dtype)
    )
    objective = Objective(BETA, Reference("start", adapter_tensors(model)))
    settings = GrpoSettings(
        steps=10**6, learning_rate=case.learning_rate, prompts_per_step=case.prompts_per_step,
        group_size=case.group_size, max_completion_tokens=case.max_completion_tokens, micro_batch_size=setting.micro,
        save_steps=10**6, bf16=setting.bf16, mask_truncated_completions=False,
    )  # fmt: skip
    trainer = build_trainer(
        model, tokenizer, engine, problems, prompts, rewards, objective, settings, folder / "ours", [turns]
    )
    clock.wrap(trainer.rollouts, "sync_weights", "sync")
    clock.wrap(rl.trainer, "completion_logprobs", "logprob", lambda: not torch.is_grad_enabled())
    sample = trainer._sample

    def counted(inputs: list) -> list:
        rows = sample(inputs)
        counts["useful"] += sum(not row.zero_variance for row in rows)
        return rows

    trainer._sample = counted
    return trainer


def _stock(case: Case, setting: Setting, folder: Path, turns, clock: Clock, counts: dict[str, int]):
    import torch
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    _, model, tokenizer = _model(case, setting, folder)
    problems, prompts, rewards = _task(case, tokenizer)
    cuda = torch.cuda.is_available()
    batch = case.prompts_per_step * case.group_size
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # a policy equal to its reference would make stock's KL, and its cost, no different; but start from the same
            if "lora_B" in name:
                parameter.zero_()
    args = GRPOConfig(
        output_dir=str(folder / "stock"), max_steps=10**6, learning_rate=case.learning_rate,
        lr_scheduler_type="constant", per_device_train_batch_size=setting.micro,
        gradient_accumulation_steps=batch // setting.micro, num_generations=case.group_size,
        max_completion_length=case.max_completion_tokens, beta=BETA, epsilon_high=0.28, bf16=setting.bf16,
        gradient_checkpointing=cuda, logging_steps=1, report_to="none", disable_tqdm=True, save_strategy="no",
        use_cpu=not cuda, dataloader_pin_memory=cuda, reward_weights=rewards.weights, use_vllm=setting.vllm,
        vllm_gpu_memory_utilization=0.35, vllm_max_model_length=case.max_completion_tokens + 256,
    )  # fmt: skip
    dataset = Dataset.from_dict(
        {"prompt": prompts, "gold": [p.gold for p in problems], "problem_id": [p.id for p in problems]}
    )
    trainer = GRPOTrainer(
        model=model, args=args, reward_funcs=list(rewards.functions), train_dataset=dataset,
        processing_class=tokenizer, callbacks=[turns],
    )  # fmt: skip
    clock.wrap(trainer, "_get_per_token_logps_and_entropies", "logprob", lambda: not torch.is_grad_enabled())
    if setting.vllm:
        clock.wrap(trainer.vllm_generation, "sync_weights", "sync")
    score = trainer._generate_and_score_completions

    def counted(inputs: list) -> dict:
        output = score(inputs)
        counts["useful"] += int((output["advantages"].abs() > 0.01).sum())
        return output

    trainer._generate_and_score_completions = counted
    return trainer


# the controller


class Trainer:
    """A worker process, from this side."""

    def __init__(self, case: Case, setting: Setting, folder: Path) -> None:
        read, write = os.pipe()
        self._log = open(folder / f"{setting.trainer}-{case.name}.log", "ab")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.grpo_step", "--worker", case.name, json.dumps(asdict(setting)),
             str(folder), str(write)],
            stdin=subprocess.PIPE, stdout=self._log, stderr=self._log, pass_fds=[write],
        )  # fmt: skip
        os.close(write)
        self._replies = os.fdopen(read)
        self.peak = 0
        self._line()

    def _line(self) -> str:
        line = self._replies.readline()
        if not line:
            raise RuntimeError(f"the worker ended early; see {self._log.name}")
        return line

    def step(self) -> Step:
        self._process.stdin.write(b"go\n")
        self._process.stdin.flush()
        reply = json.loads(self._line())
        self.peak = reply.pop("peak")
        self._line()
        return Step(**reply)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._replies.close()
        self._log.close()


def fastest(case: Case, settings: list[Setting], folder: Path, steps: int = 2) -> tuple[Setting, dict[str, float]]:
    """The setting with the shortest step after one warm-up, and every setting's seconds."""
    seconds = {}
    for setting in settings:
        trainer = Trainer(case, setting, folder)
        trainer.step()
        seconds[setting] = min(trainer.step().seconds["step"] for _ in range(steps))
        trainer.close()
        print(f"  {setting.trainer}: {setting}: {seconds[setting]:.2f} s", flush=True)
    best = min(seconds, key=seconds.__getitem__)
    return best, {str(setting): value for setting, value in seconds.items()}


def run_case(case: Case, steps: int, folder: Path, cuda: bool) -> dict[str, object]:
    """Pick both sides' settings, then alternate."""
    model_name(case, folder)
    ours, our_tried = fastest(case, our_settings(case, cuda), folder)
    stock, stock_tried = fastest(case, stock_settings(case, cuda), folder)
    sides = {"ours": Trainer(case, ours, folder), "stock": Trainer(case, stock, folder)}
    taken: dict[str, list[Step]] = {"ours": [], "stock": []}
    for index in range(steps + 1):
        for name, trainer in sides.items() if index % 2 else reversed(sides.items()):
            step = trainer.step()
            if index:
                taken[name].append(step)
        print(f"  pair {index}/{steps}", flush=True)
    for trainer in sides.values():
        trainer.close()
    return {
        "case": asdict(case),
        "settings": {"ours": str(ours), "stock": str(stock)},
        "tried": {"ours": our_tried, "stock": stock_tried},
        "steps": {name: [asdict(step) for step in values] for name, values in taken.items()},
        "peak_gib": {name: trainer.peak / 2**30 for name, trainer in sides.items()},
        "ratios": ratios(taken["ours"], taken["stock"]),
    }


def ratios(ours: list[Step], stock: list[Step]) -> dict[str, list[float]]:
    """Median, lowest and highest of ours over stock per pair of steps: above 1 ours is faster."""

    def spread(values: list[float]) -> list[float]:
        return [statistics.median(values), min(values), max(values)]

    pairs = list(zip(ours, stock, strict=True))
    return {
        "step time": spread([b.seconds["step"] / a.seconds["step"] for a, b in pairs]),
        "rollout tokens/s": spread(
            [(a.tokens / a.seconds["rollout"]) / (b.tokens / b.seconds["rollout"]) for a, b in pairs]
        ),
        "tokens/s over the step": spread(
            [(a.tokens / a.seconds["step"]) / (b.tokens / b.seconds["step"]) for a, b in pairs]
        ),
        "useful samples/s": spread(
            [(a.useful / a.seconds["step"]) / (max(b.useful, 1) / b.seconds["step"]) for a, b in pairs]
        ),
    }


def report(results: list[dict]) -> str:
    """Markdown of all cases."""
    lines = [
        "# A GRPO step: ours against stock TRL 1.16",
        "",
        "Made by `make bench-grpo`; see benchmarks/grpo_step.py.",
    ]
    for result in results:
        case, steps = result["case"], result["steps"]
        lines += ["", f"## {case['name']}: {case['prompts_per_step']} prompts x {case['group_size']}, "
                  f"up to {case['max_completion_tokens']} tokens"]  # fmt: skip
        lines += ["", f"ours: {result['settings']['ours']}; stock: {result['settings']['stock']} (its fastest of "
                  f"{len(result['tried']['stock'])}). Medians of {len(steps['ours'])} steps each.", ""]  # fmt: skip
        lines += ["| | ours | stock |", "|---|---|---|"]
        for key in KEYS:
            a, b = (statistics.median(s["seconds"][key] for s in steps[side]) for side in ("ours", "stock"))
            lines.append(f"| {key}, s | {a:.3f} | {b:.3f} |")
        for name, value in (
            ("rollout tokens/s", lambda s: s["tokens"] / s["seconds"]["rollout"]),
            ("useful samples", lambda s: s["useful"]),
            ("useful samples/s", lambda s: s["useful"] / s["seconds"]["step"]),
        ):
            a, b = (statistics.median(map(value, steps[side])) for side in ("ours", "stock"))
            lines.append(f"| {name} | {a:,.1f} | {b:,.1f} |")
        peak = result["peak_gib"]
        lines += [f"| peak memory, GiB | {peak['ours']:.2f} | {peak['stock']:.2f} |", ""]
        for name, (median, low, high) in result["ratios"].items():
            lines.append(f"- {name}: {median:.2f} times (pairs from {low:.2f} to {high:.2f})")
        share = [s["seconds"]["sync"] / s["seconds"]["step"] for s in steps["ours"]]
        lines.append(f"- sync is {statistics.median(share):.1%} of our step")
        tried = [(side, *pair) for side in ("ours", "stock") for pair in result["tried"][side].items()]
        tries = "; ".join(f"{side} {name}: {value:.2f}" for side, name, value in tried)
        lines += ["", f"Seconds of a step in every setting tried: {tries}"]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Controller, or worker when called by one."""
    if len(sys.argv) > 1 and sys.argv[1] == "--worker":
        worker(CASES[sys.argv[2]], Setting(**json.loads(sys.argv[3])), Path(sys.argv[4]), int(sys.argv[5]))
        return 0
    import torch

    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["3b"] if cuda else ["student", "25m"])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--prompts-per-step", type=int)
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.cases:
            print(name, flush=True)
            case = CASES[name]
            if arguments.prompts_per_step:
                case = replace(case, prompts_per_step=arguments.prompts_per_step)
            results.append(run_case(case, arguments.steps, Path(folder), cuda))
    (arguments.out / "grpo_step.json").write_text(json.dumps(results, indent=1) + "\n")
    text = report(results)
    (arguments.out / "grpo_step.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
