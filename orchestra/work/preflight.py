"""Preflight: whether data fits the policy that is to imitate it, before it does.

Text in another format than the policy's own teaches the format first and costs accuracy while perplexity falls. So each
source is read under the very prompt of evaluation, on the same problems under which the policy writes answers of its
own: how likely are the source's answer tokens, how many of them are rare, how much likelier would the text be under
another prompt (the template gap: below 0 the source was written for the other one), are there answers to be found, do
the texts end where completions end, and how does their perplexity compare with that of the policy's own.

Which texts are read, and what their tokens are, is in orchestra/work/texts.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evals.perplexity import PerplexityRatio, Scored, perplexity, perplexity_ratio
from models.base import end_tokens
from models.engines.protocol import Completion, Sampling
from models.prompts import prompt_tokens, render_prompt
from orchestra.config.faults import UserError
from orchestra.run.ledger import write_json
from orchestra.work.alignment import Alignment, Preflight, Rates
from orchestra.work.own_prompts import as_text, prompt_mismatches
from orchestra.work.policies import serve
from orchestra.work.resources import Resources, stage_seed
from orchestra.work.settings import PREFLIGHT, QUESTION, PreflightLimits
from orchestra.work.texts import Text, as_trained, by_chance, scored, shown_names
from rewards.formats import with_opening

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from orchestra.work.context import StageContext
    from sft.distill import Trace

ROWS_OWN = "the rows' own prompts"


@dataclass(frozen=True)
class Twice:
    """A text, and tokens of the second prompt that it is read under."""

    text: Text
    asked_otherwise: tuple[int, ...]


@dataclass(frozen=True)
class Read:
    """A text with the policy's own answer to the same problem, and both as the policy finds them: the text under either
    prompt, and that answer."""

    text: Text
    own: Completion
    of_text: Scored
    of_otherwise: Scored
    of_own: Scored


def run_preflight(
    context: StageContext,
    policy: PeftModel,
    sources: Mapping[str, Sequence[Trace]],
    limits: PreflightLimits,
    *,
    max_length: int,
) -> Preflight:
    """The preflight of a stage, told and kept in its folder: one that a killed run left there, begun with the same
    settings, or else a new one. Takes and raises what `preflight` does."""
    found = context.once(lambda: _kept(context.folder / PREFLIGHT))
    if found is None:
        found = preflight(context, policy, sources, limits, max_length=max_length)
        context.once(lambda: write_json(context.folder / PREFLIGHT, found.as_tree()))
    for line in found.lines():
        context.progress.say(f"    {line}")
    return found


def _kept(path: Path) -> Preflight | None:
    try:
        return Preflight.from_tree(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):  # no JSON of a preflight: it is measured anew
        return None


def preflight(
    context: StageContext,
    policy: PeftModel,
    sources: Mapping[str, Sequence[Trace]],
    limits: PreflightLimits,
    *,
    max_length: int,
) -> Preflight:
    """Measure every source under the policy, which the run's engine serves from then on.

    Args:
        policy: that training would start from.
        sources: their traces (orchestra/work/traces.py) by their names: earlier stages, and files.
        max_length: tokens; longer examples are not trained on.

    Raises:
        UserError: rows of a file have another prompt than evaluation, and `limits.mismatch` is not `warn`; or no text
            of a source is short enough.
    """
    mismatches = prompt_mismatches(context.resources, list(sources), frozenset(context.earlier))
    if mismatches and limits.mismatch == "fail":
        raise UserError("; ".join(mismatches.values()))
    chosen = [_texts(context, source, traces, limits, max_length) for source, traces in sources.items()]
    every = [text for texts, _ in chosen for text in texts]
    serve(context, policy)
    own = _own_answers(context, list(dict.fromkeys(twice.text.asked for twice in every)))
    scores = scored(
        context,
        policy,
        [
            *((twice.text.asked, twice.text.answer) for twice in every),
            *((twice.asked_otherwise, twice.text.answer) for twice in every),
            *((prompt, completion.token_ids) for prompt, completion in own.items()),
        ],
        rare_below=limits.rare_below,
    )
    of_own = dict(zip(own, scores[2 * len(every) :], strict=True))
    reads = iter(
        Read(twice.text, own[twice.text.asked], *found, of_own[twice.text.asked])
        for twice, *found in zip(every, scores[: len(every)], scores[len(every) : 2 * len(every)], strict=True)
    )
    alignments = [
        _alignment(context, limits, name, [next(reads) for _ in texts], left_out, mismatches.get(source))
        for source, name, (texts, left_out) in zip(sources, shown_names(list(sources)), chosen, strict=True)
    ]
    tokens = sum(len(completion.token_ids) for completion in own.values())
    return Preflight(context.start_name, tuple(alignments), tokens)


def _texts(
    context: StageContext, source: str, traces: Sequence[Trace], limits: PreflightLimits, max_length: int
) -> tuple[list[Twice], int]:
    """The first text of each of so many problems, and how many texts are too long to be trained on."""
    resources, rollouts = context.resources, context.recipe.rollouts
    tokenizer = resources.tokenizer()
    problems = [] if source in context.earlier else resources.problems(source, "train")
    prompts = {problem.id: problem.prompt for problem in problems}
    found: dict[str, Text] = {}
    too_long = 0
    for trace in traces:
        text = as_trained(resources, trace)
        if len(text.asked) > rollouts.max_prompt_tokens or text.length > max_length:
            too_long += 1
            continue
        found.setdefault(trace.question, text)
    if not found:
        raise UserError(
            f"{source}: none of its {len(traces)} texts fits: with its prompt the shortest is longer than {max_length} "
            f"tokens, or the prompt longer than {rollouts.max_prompt_tokens} (rollouts.max_prompt_tokens); leave it "
            "out of `data`, or raise these limits"
        )

    def twice(text: Text) -> Twice:
        prompt = render_prompt(tokenizer, resources.format.messages(text.trace.question))
        own = prompts.get(text.trace.problem_id)
        second = prompt if own is None else as_text(tokenizer, own)
        if second == prompt:
            second = limits.template.replace(QUESTION, text.trace.question)
        return Twice(text, _begun_alike(tokenizer, prompt_tokens(tokenizer, second), text.asked))

    taken = set(by_chance(found)[: limits.problems])
    return [twice(text) for question, text in found.items() if question in taken], too_long


def _begun_alike(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], asked: Sequence[int]) -> tuple[int, ...]:
    """A bare prompt with the token that begins every text, where the base's prompts begin with it."""
    begin = tokenizer.bos_token_id
    missing = begin is not None and asked[:1] == [begin] and list(tokens[:1]) != [begin]
    return (begin, *tokens) if missing else tuple(tokens)


def _own_answers(context: StageContext, asked: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], Completion]:
    """The policy's own answers: one sample of its distribution as it is, for each prompt under a seed of its own."""
    resources, recipe = context.resources, context.recipe
    sampling = Sampling(
        recipe.rollouts.max_completion_tokens,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        stop_token_ids=resources.stops(),
    )
    seeds = [stage_seed(recipe, f"own {prompt}") for prompt in asked]
    with context.progress.bar(f"{context.stage.name}: sample", len(asked), "problems") as bar:
        groups = resources.engine().generate(asked, sampling, seeds, progress=bar.advance)
    return {prompt: group[0] for prompt, group in zip(asked, groups, strict=True)}


def _alignment(
    context: StageContext,
    limits: PreflightLimits,
    name: str,
    reads: Sequence[Read],
    left_out: int,
    mismatch: str | None,
) -> Alignment:
    recipe, resources = context.recipe, context.resources
    measure = {"confidence": recipe.evaluate.confidence, "seed": recipe.seed}
    text = perplexity([read.of_text for read in reads], **measure)
    otherwise = perplexity([read.of_otherwise for read in reads], **measure)
    own = perplexity([read.of_own for read in reads], **measure)
    ends = end_tokens(recipe.model.base, resources.tokenizer()) | set(resources.stops())
    # a trace has its think tag in any case, an answer may have it in its prompt
    prompt = render_prompt(resources.tokenizer(), resources.format.messages(reads[0].text.trace.question))
    answers = [(with_opening(prompt, read.own.text), read.own.token_ids) for read in reads]
    rates = _rates(resources, [(read.text.trace.completion, read.text.answer) for read in reads], ends)
    ratio = perplexity_ratio(text, own, **measure)
    return Alignment(
        source=name,
        left_out=left_out,
        problem_ids=tuple(read.text.trace.problem_id for read in reads),
        text=text,
        rates=rates,
        own=own,
        own_rates=_rates(resources, answers, ends),
        second=ROWS_OWN if mismatch else limits.template,
        otherwise=otherwise,
        ratio=ratio,
        template=perplexity_ratio(otherwise, text, **measure),
        warnings=(*([mismatch] if mismatch else []), *_warnings(limits, rates, ratio)),
    )


def _rates(resources: Resources, texts: Sequence[tuple[str, Sequence[int]]], ends: frozenset[int]) -> Rates:
    """Of texts, each with its tokens."""
    ended = [bool(ids) and ids[-1] in ends and ends.isdisjoint(ids[:-1]) for _, ids in texts]
    return Rates(
        answers=sum(bool(resources.domain.answer(text)) for text, _ in texts) / len(texts),
        format=sum(resources.format.follows(text) for text, _ in texts) / len(texts),
        ended=sum(ended) / len(texts),
    )


def _warnings(limits: PreflightLimits, rates: Rates, ratio: PerplexityRatio) -> Iterator[str]:
    if ratio.ratio > limits.max_ratio:
        yield (
            f"its perplexity is {ratio.ratio:.3g} times that of the policy's own answers, above {limits.max_ratio:g} "
            "(max_ratio): it is written in other words than the policy's, whose own traces a distill stage with "
            "`teacher: self` gives"
        )
    if rates.answers < limits.min_answer_rate:
        yield (
            f"an answer is found in {rates.answers:.1%} of its texts, below {limits.min_answer_rate:.1%} "
            "(min_answer_rate): see problems.format for how answers are to be written"
        )
    if rates.ended < limits.min_end_rate:
        yield (
            f"{rates.ended:.1%} of its texts end as the base's completions do, below {limits.min_end_rate:.1%} "
            "(min_end_rate): an end token stands within the others"
        )
