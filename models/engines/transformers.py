"""transformers' own generate as the engine: for machines without vLLM (macOS), slower but the same protocol."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from models.base import arithmetic, arithmetic_of, end_tokens, load_tokenizer
from models.engines.protocol import AdapterFiles, Completion, EngineError, Sampling, Tokens, Weights
from models.engines.shaping import shaping
from models.engines.start import Capacity
from models.paths import model_place
from models.settings import Serving


class TransformersEngine:
    """A plain, unquantised copy of the model, fed with folded weights; see protocol.py."""

    kind = "transformers"
    serves_adapters = False

    def __init__(self, model: str, serving: Serving, capacity: Capacity) -> None:
        from transformers import AutoModelForCausalLM

        place, dtype = model_place(model), arithmetic(serving.dtype)
        loaded = AutoModelForCausalLM.from_pretrained(place.path, revision=place.revision, dtype=dtype)
        loaded.to("cuda" if torch.cuda.is_available() else "cpu")
        self._take(loaded, model, dtype, capacity.max_num_seqs)

    @classmethod
    def around(cls, loaded: nn.Module, model: str, sequences: int) -> "TransformersEngine":
        """One that generates with a model that is there, adapters and all, wherever and in whatever it computes.

        Args:
            model: the name of its base, whose tokenizer and ends it has.
            sequences: at once.
        """
        engine = cls.__new__(cls)
        engine._take(loaded, model, arithmetic_of(loaded), sequences)
        return engine

    def _take(self, loaded: nn.Module, model: str, dtype: torch.dtype, sequences: int) -> None:
        from transformers import GenerationConfig

        self.dtype = dtype
        self._model = loaded.eval()
        self._tokenizer = load_tokenizer(model)
        self._batch = sequences
        self._eos = end_tokens(model, self._tokenizer)
        # a checkpoint's own habits (repetition_penalty, top_k) would make it another policy than the one that trains
        self._model.generation_config = GenerationConfig()

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Tokens],
        sampling: Sampling,
        seeds: Sequence[int] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        per_batch = max(1, self._batch // sampling.n)
        completions: list[list[Completion]] = []
        for start in range(0, len(prompts), per_batch):
            batch = prompts[start : start + per_batch]
            with torch.random.fork_rng(devices=[], enabled=seeds is not None):
                # one seed for a batch: its completions follow from all of the batch's seeds
                if seeds is not None:
                    torch.manual_seed(hash(tuple(seeds[start : start + per_batch])) % 2**63)
                completions += self._generate_batch(batch, sampling)
            if progress is not None:
                progress(len(batch))
        return completions

    def _generate_batch(self, prompts: Sequence[Tokens], sampling: Sampling) -> list[list[Completion]]:
        ids, mask = self._left_padded(prompts)
        greedy = sampling.temperature == 0
        options = (
            {} if greedy else {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
        )
        output = self._model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=not greedy,
            num_return_sequences=sampling.n,
            max_new_tokens=sampling.max_tokens,
            eos_token_id=[*self._eos, *sampling.stop_token_ids],
            pad_token_id=self._tokenizer.pad_token_id,
            return_dict_in_generate=True,
            logits_processor=shaping(prompts, ids.shape[1], sampling),
            output_scores=sampling.logprobs,
            **options,
        )
        sequences = output.sequences[:, ids.shape[1] :].tolist()
        logprobs = None
        if sampling.logprobs:
            steps = torch.stack(output.scores, dim=1).float().log_softmax(-1)
            logprobs = steps.gather(-1, output.sequences[:, ids.shape[1] :, None])[..., 0].tolist()
        flat = [self._completion(row, logprobs[i] if logprobs else None, sampling) for i, row in enumerate(sequences)]
        return [flat[i : i + sampling.n] for i in range(0, len(flat), sampling.n)]

    def _completion(self, row: list[int], logprobs: list[float] | None, sampling: Sampling) -> Completion:
        stops = self._eos | set(sampling.stop_token_ids)
        end = next((i + 1 for i, token in enumerate(row) if token in stops), None)
        ids = row[: end or sampling.max_tokens]
        text = self._tokenizer.decode(ids, skip_special_tokens=True)
        return Completion(ids, text, "stop" if end else "length", logprobs[: len(ids)] if logprobs else None)

    def _left_padded(self, rows: Sequence[Tokens]) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(len(row) for row in rows)
        pad = self._tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=self._model.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=self._model.device)
        return ids, mask

    @torch.inference_mode()
    def score(self, prompts: Sequence[Tokens], completions: Sequence[Tokens]) -> list[list[float]]:
        scored = []
        for prompt, completion in zip(prompts, completions, strict=True):
            ids = torch.tensor([[*prompt, *completion]], device=self._model.device)
            logits = self._model(ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
            scored.append(logits.gather(-1, ids[0, len(prompt) :, None])[:, 0].tolist())
        return scored

    @torch.no_grad()
    def sync_folded(self, weights: Weights) -> None:
        own = dict(self._model.named_parameters())
        for name, tensor in weights:
            if name not in own:
                raise EngineError(f"the engine's model has no weight '{name}'; it is not the base that is trained")
            own[name].copy_(tensor)

    def sync_adapter(self, adapter: AdapterFiles | None) -> None:
        raise EngineError("rollouts.sync: 'adapter' needs vLLM; the transformers engine takes 'folded'")

    def rest(self) -> None:
        self._model.to("meta")

    def close(self) -> None:
        self.rest()
