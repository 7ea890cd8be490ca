"""vLLM as the engine, in this process (no worker process to lose, weights pushed by reference)."""

import gc
import io
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from models.adapters import linear_names
from models.base import arithmetic, end_tokens, free_memory, load_tokenizer
from models.engines.protocol import (
    LORA_RANKS,
    AdapterFiles,
    Completion,
    EngineError,
    Sampling,
    Tokens,
    Weights,
    last_line,
)
from models.engines.start import Capacity
from models.paths import model_place
from models.processes import count
from models.settings import Serving

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams
    from vllm.lora.request import LoRARequest

# KV cache on a CPU
CPU_CACHE_GIB = 1


def prepare_process() -> None:
    """Set what vLLM reads at its import or at an engine's start."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(CPU_CACHE_GIB))
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")


class VllmEngine:
    """An in-process vLLM engine; see protocol.py."""

    kind = "vllm"

    def __init__(self, model: str, serving: Serving, capacity: Capacity) -> None:
        prepare_process()
        import vllm

        cuda = torch.cuda.is_available()
        free_memory()
        threads = torch.get_num_threads()
        self.dtype = arithmetic(serving.dtype)
        place = model_place(model)
        lora = _lora(model, capacity) if capacity.lora_rank else {}
        self._llm = vllm.LLM(
            place.path,
            revision=place.revision,
            tokenizer_revision=place.revision,
            dtype=str(self.dtype).removeprefix("torch."),
            max_model_len=capacity.max_model_len,
            max_num_seqs=capacity.max_num_seqs,
            # compiling costs 40 s on a CPU, more than an embedded run would win back
            enforce_eager=not cuda,
            gpu_memory_utilization=serving.gpu_memory_utilization if cuda else 0.92,
            enable_prefix_caching=True,
            # a prompt cut into chunks makes vLLM rewind the seeded generators, which a CPU's cannot
            enable_chunked_prefill=cuda,
            max_num_batched_tokens=None if cuda else max(8192, capacity.max_model_len),
            # log-probabilities as drawn: after temperature and truncation
            logprobs_mode="processed_logprobs",
            generation_config="vllm",
            seed=0,
            # several processes: each has an engine of its own, beside a process group that is not vLLM's
            distributed_executor_backend="external_launcher" if count() > 1 else None,
            disable_log_stats=True,
            enable_sleep_mode=cuda and capacity.temporary,
            **lora,
        )
        # vLLM freezes all that lives when it starts, a trainer's policy too, which then could never be freed
        gc.unfreeze()
        # vLLM changes torch's own thread count on a CPU
        torch.set_num_threads(threads)
        self._tokenizer = load_tokenizer(model)
        self._ends = end_tokens(model, self._tokenizer)
        self._adapter: LoRARequest | None = None
        self._panel: dict[str, LoRARequest] = {}
        self._versions = 0
        self._broken: str | None = None
        self._temporary = capacity.temporary

    def generate(
        self,
        prompts: Sequence[Tokens],
        sampling: Sampling,
        seeds: Sequence[int] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        return self._generate(prompts, self._adapter, sampling, seeds, progress)

    def _generate(
        self,
        prompts: Sequence[Tokens],
        adapter: "LoRARequest | list[LoRARequest | None] | None",
        sampling: Sampling,
        seeds: Sequence[int] | None,
        progress: Callable[[int], None] | None,
    ) -> list[list[Completion]]:
        from vllm import SamplingParams

        self._llm.reset_prefix_cache()
        params = [
            SamplingParams(
                n=sampling.n,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                min_p=sampling.min_p or 0.0,
                presence_penalty=sampling.presence_penalty or 0.0,
                repetition_penalty=sampling.repetition_penalty or 1.0,
                max_tokens=sampling.max_tokens,
                logprobs=0 if sampling.logprobs else None,
                seed=None if seeds is None else seeds[i] % 2**63,
                # vLLM's own end is that of the tokenizer as it lies on the disk, which the base may never have learned
                ignore_eos=True,
                stop_token_ids=sorted({*self._ends, *sampling.stop_token_ids}),
                detokenize=False,
            )
            for i in range(len(prompts))
        ]
        # on a CPU vLLM draws from torch's own random numbers beside the seeded ones; a trainer's dropout needs them as
        # they were
        with torch.random.fork_rng(devices=[], enabled=seeds is not None):
            outputs = self._run(prompts, params, adapter, progress)
        return [[self._completion(choice) for choice in output.outputs] for output in outputs]

    def _run(
        self,
        prompts: Sequence[Tokens],
        params: "list[SamplingParams]",
        adapter: "LoRARequest | list[LoRARequest | None] | None",
        progress: Callable[[int], None] | None = None,
    ) -> "list[RequestOutput]":
        from vllm.exceptions import VLLMValidationError

        self._must_be_sound()
        requests = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        use_tqdm = _progress_bar(progress) if progress is not None else False
        try:
            outputs = self._llm.generate(requests, params, use_tqdm=use_tqdm, lora_request=adapter)
        except VLLMValidationError as error:
            # refused; what was queued before it is taken back
            raise EngineError(f"vLLM could not generate: {last_line(error)}") from error
        except Exception as error:
            self._broken = f"vLLM could not generate: {last_line(error)}"
            raise EngineError(self._broken) from error
        if len(outputs) != len(prompts):
            raise EngineError(f"vLLM returned {len(outputs)} outputs for {len(prompts)} prompts")
        return outputs

    def _must_be_sound(self) -> None:
        """After a failed step vLLM keeps its unfinished requests, and waits for them forever at the next call."""
        if self._broken is not None:
            raise EngineError(f"{self._broken} (this engine serves nothing more)")

    def _completion(self, choice: object) -> Completion:
        ids = list(choice.token_ids)
        logprobs = None
        if choice.logprobs is not None:
            logprobs = [step[token].logprob for token, step in zip(ids, choice.logprobs, strict=True)]
        text = self._tokenizer.decode(ids, skip_special_tokens=True)
        return Completion(ids, text, "stop" if choice.finish_reason == "stop" else "length", logprobs)

    def score(self, prompts: Sequence[Tokens], completions: Sequence[Tokens]) -> list[list[float]]:
        return self._score(prompts, completions, self._adapter)

    def _score(
        self, prompts: Sequence[Tokens], completions: Sequence[Tokens], adapter: "LoRARequest | None"
    ) -> list[list[float]]:
        from vllm import SamplingParams

        self._llm.reset_prefix_cache()
        whole = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
        # a prompt's log-probabilities know no temperature; at 0 the one token after it is not drawn
        params = [SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)] * len(whole)
        scored = []
        for ids, prompt, output in zip(whole, prompts, self._run(whole, params, adapter), strict=True):
            steps = list(zip(ids, output.prompt_logprobs, strict=True))[len(prompt) :]
            scored.append([step[token].logprob for token, step in steps])
        return scored

    def sync_folded(self, weights: Weights) -> None:
        self._must_be_sound()
        cast = ((name, tensor.to(self.dtype)) for name, tensor in weights)
        try:
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": cast})
        except Exception as error:
            self._broken = f"vLLM could not take the policy's weights: {last_line(error)}"
            raise EngineError(self._broken) from error
        self._llm.reset_prefix_cache()

    def sync_adapter(self, adapter: AdapterFiles | None) -> None:
        """Each time under a fresh name and id: a reloaded adapter of the same id may be served from the prefix cache
        (vllm#42125)."""
        previous, self._adapter = self._adapter, None if adapter is None else self._loaded(adapter)
        if previous is not None:
            self._llm.llm_engine.remove_lora(previous.lora_int_id)
        self._llm.reset_prefix_cache()

    def _loaded(self, adapter: AdapterFiles) -> "LoRARequest":
        """Loaded now, not at the next request, so that its folder may be deleted."""
        from vllm.lora.request import LoRARequest

        self._versions += 1
        memory = Path("/dev/shm")
        with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
            adapter.write(Path(folder))
            request = LoRARequest(f"policy-{self._versions}", self._versions, folder)
            self._llm.llm_engine.add_lora(request)
        return request

    def sync_panel(self, adapters: Mapping[str, Path]) -> None:
        """Ids go on from the policies', so that none is served from another's cache. vLLM reads an adapter again when
        it has put it away for others: the folders stay."""
        from vllm.lora.request import LoRARequest

        self._panel = {}
        for name, folder in adapters.items():
            self._versions += 1
            self._panel[name] = LoRARequest(f"{name}-{self._versions}", self._versions, str(folder))
        self._llm.reset_prefix_cache()

    def generate_routed(
        self,
        prompts: Sequence[Tokens],
        experts: Sequence[str | None],
        sampling: Sampling,
        seeds: Sequence[int] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        # a CPU's LoRA kernels take the index -1 of a request without an adapter for the last adapter's, unless no
        # request of the batch has one
        bare = [at for at, name in enumerate(experts) if name is None and not torch.cuda.is_available()]
        rest = [at for at in range(len(prompts)) if at not in set(bare)]
        answered: dict[int, list[Completion]] = {}
        for own in filter(None, (bare, rest)):
            adapters = None if own is bare else [self._request(experts[at]) for at in own]
            own_seeds = None if seeds is None else [seeds[at] for at in own]
            groups = self._generate([prompts[at] for at in own], adapters, sampling, own_seeds, progress)
            answered |= zip(own, groups, strict=True)
        return [answered[at] for at in range(len(prompts))]

    def score_routed(
        self, prompts: Sequence[Tokens], completions: Sequence[Tokens], expert: str | None
    ) -> list[list[float]]:
        return self._score(prompts, completions, self._request(expert))

    def _request(self, expert: str | None) -> "LoRARequest | None":
        return None if expert is None else self._panel[expert]

    @property
    def serves_adapters(self) -> bool:
        return self._adapter is not None

    def rest(self) -> None:
        """Give the GPU's memory back for good; the engine serves nothing after this.

        vLLM's own shutdown would take the process-wide groups away from the other engines.
        """
        if torch.cuda.is_available() and self._temporary:
            self._llm.sleep(level=2)

    def close(self) -> None:
        self._llm.llm_engine.engine_core.shutdown()


def _lora(model: str, capacity: Capacity) -> dict[str, object]:
    """What vLLM is told of adapters. Left to itself it makes ready for one on the output head, too, which no policy has
    and which fails on a CPU when log-probabilities of prompts are asked for (Llama, Phi-3, Qwen3)."""
    return {
        "enable_lora": True,
        "max_lora_rank": _lora_rank(capacity.lora_rank),
        "max_loras": capacity.loras,
        "lora_target_modules": linear_names(model),
    }


def _lora_rank(rank: int) -> int:
    """The smallest rank vLLM can serve that holds this one."""
    for candidate in LORA_RANKS:
        if candidate >= rank:
            return candidate
    raise EngineError(f"model.lora.rank: {rank} is more than vLLM serves ({LORA_RANKS[-1]}); use rollouts.sync: folded")


def _progress_bar(progress: Callable[[int], None]) -> Callable[..., object]:
    """vLLM reports finished prompts to a tqdm bar; this one is not drawn and passes the count on."""
    from tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **{**kwargs, "file": io.StringIO()})
            # the other bars, while requests are added, wrap an iterable
            self._counts = self.iterable is None

        def update(self, n: float = 1) -> bool | None:
            if self._counts:
                # called once for each finished prompt, with its number of completions
                progress(1)
            return super().update(n)

    return Bar
