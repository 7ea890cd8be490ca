"""Preflight: whether data fits the policy that is to imitate it, before it does.

Text in another format than the policy's own teaches the format first and costs accuracy while perplexity falls. So each
source is read under the very prompt of evaluation, on the same problems under which the policy writes answers of its
own: how likely are the source's answer tokens, how many of them are rare, how much likelier would the text be under
another prompt (the template gap: below 0 the source was written for the other one), are there answers to be found, do
the texts end where completions end, and how does their perplexity compare with that of the policy's own.

The tokens are those that training would see. Of a problem with several texts the first counts, so that texts are as
independent as problems; which problems are taken depends on the problems alone, so that sources compare.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import log
from pathlib import Path
from typing import TYPE_CHECKING

from evals.perplexity import Perplexity, PerplexityRatio, Scored, perplexity, perplexity_ratio, score
from models.base import end_tokens, trained_arithmetic
from models.engines.protocol import Completion, Sampling
from models.prompts import prompt_tokens, render_prompt
from orchestra.config.faults import UserError
from orchestra.work.own_prompts import as_text, prompt_mismatches
from orchestra.work.policies import rows_at_once, serve
from orchestra.work.resources import Resources, stage_seed
from orchestra.work.settings import QUESTION, PreflightSettings
from orchestra.work.traces import traces_of
from sft.examples import example_tokens

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from orchestra.work.context import StageContext
    from sft.distill import Trace

ROWS_OWN = "the rows' own prompts"


@dataclass(frozen=True)
class Text:
    """One text of a source.

    Fields:
        asked, answer: tokens of the evaluation's prompt and of the text under it, as training sees them.
        asked_otherwise: tokens of the second prompt.
    """

    trace: Trace
    asked: tuple[int, ...]
    answer: tuple[int, ...]
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


@dataclass(frozen=True)
class Rates:
    """Shares of texts in which an answer is found, that keep the format, and that end as completions do."""

    answers: float
    format: float
    ended: float


@dataclass(frozen=True)
class Alignment:
    """A source beside the policy's own answers to the same problems.

    Fields:
        source: a stage's name, or a file's.
        left_out: texts longer than what is trained on; of those measured there is one per problem.
        problem_ids: in the order of the texts.
        text, rates: of the source under the evaluation's prompt; own, own_rates: of the policy's own answers.
        second: what the second prompt is; otherwise: the source's text under it.
        ratio: perplexity of the source over the policy's own; template: of the same text, second prompt over
            evaluation's.
        warnings: what is beyond the settings' bounds, a sentence each.
    """

    source: str
    left_out: int
    problem_ids: tuple[str, ...]
    text: Perplexity
    rates: Rates
    own: Perplexity
    own_rates: Rates
    second: str
    otherwise: Perplexity
    ratio: PerplexityRatio
    template: PerplexityRatio
    warnings: tuple[str, ...]

    @property
    def template_gap(self) -> float:
        """Nats a token by which the text is likelier under the evaluation's prompt than under the second one."""
        return log(self.template.ratio)

    def numbers(self) -> dict[str, float]:
        """What there is to tell, by name."""
        return {
            "problems": len(self.problem_ids),
            "left_out": self.left_out,
            "nll": self.text.nll,
            "perplexity": self.text.perplexity,
            "rare_tokens": self.text.rare,
            "template_gap": self.template_gap,
            "answer_rate": self.rates.answers,
            "format_rate": self.rates.format,
            "end_rate": self.rates.ended,
            "perplexity_ratio": self.ratio.ratio,
            "own_nll": self.own.nll,
            "own_answer_rate": self.own_rates.answers,
            "own_end_rate": self.own_rates.ended,
        }

    def line(self) -> str:
        """For the terminal."""
        interval = f" [{self.ratio.low:.2f}, {self.ratio.high:.2f}]" if self.ratio.low is not None else ""
        return (
            f"{self.source}: {len(self.problem_ids):,} problems, {self.text.nll:.3f} nats a token, "
            f"{self.text.rare:.1%} rare, template gap {self.template_gap:+.3f}, answers {self.rates.answers:.1%}, "
            f"ends {self.rates.ended:.1%}, perplexity {self.text.perplexity:.3g}, {self.ratio.ratio:.2f}{interval} "
            f"times that of its own answers"
        )


@dataclass(frozen=True)
class Preflight:
    """What was measured; `tokens` are those of the policy's own answers."""

    sources: tuple[Alignment, ...]
    tokens: int

    def numbers(self) -> dict[str, dict[str, float]]:
        """Of each source by name."""
        return {one.source: one.numbers() for one in self.sources}

    def told(self) -> dict[str, float]:
        """For `StageResult.extra`: the numbers of each source, and how many warnings there are in all."""
        from orchestra.run.ledger import PART

        found = {f"{source}{PART}{name}": value for source, of in self.numbers().items() for name, value in of.items()}
        return found | {"warnings": sum(len(one.warnings) for one in self.sources)}

    def lines(self) -> Iterator[str]:
        """For the terminal: one of each source, and one of each warning."""
        for one in self.sources:
            yield one.line()
            yield from (f"warning: {one.source}: {warning}" for warning in one.warnings)

    def as_tree(self) -> dict[str, object]:
        """All of it, values of single texts included."""
        return asdict(self)


def preflight(context: StageContext, policy: PeftModel, settings: PreflightSettings, *, max_length: int) -> Preflight:
    """Measure every source under the policy, which the run's engine serves from then on.

    Args:
        policy: that training would start from.
        max_length: tokens; longer examples are not trained on.

    Raises:
        UserError: rows of a file have another prompt than evaluation, and `settings.mismatch` is not `warn`; or no text
            of a source is short enough.
    """
    mismatches = prompt_mismatches(context.resources, settings.data, frozenset(context.earlier))
    if mismatches and settings.mismatch == "fail":
        raise UserError("; ".join(mismatches.values()))
    sources = tuple(dict.fromkeys(settings.data))
    chosen = [_texts(context, source, settings, max_length) for source in sources]
    every = [text for texts, _ in chosen for text in texts]
    serve(context, policy)
    own = _own_answers(context, list(dict.fromkeys(text.asked for text in every)))
    scores = _scores(
        context,
        policy,
        settings,
        [
            *((text.asked, text.answer) for text in every),
            *((text.asked_otherwise, text.answer) for text in every),
            *((prompt, completion.token_ids) for prompt, completion in own.items()),
        ],
    )
    of_own = dict(zip(own, scores[2 * len(every) :], strict=True))
    reads = iter(
        Read(text, own[text.asked], *found, of_own[text.asked])
        for text, *found in zip(every, scores[: len(every)], scores[len(every) : 2 * len(every)], strict=True)
    )
    alignments = [
        _alignment(context, settings, name, [next(reads) for _ in texts], left_out, mismatches.get(source))
        for source, name, (texts, left_out) in zip(sources, _names(sources), chosen, strict=True)
    ]
    return Preflight(tuple(alignments), sum(len(completion.token_ids) for completion in own.values()))


def _names(sources: Sequence[str]) -> list[str]:
    """Without the folders of files, unless two are called alike."""
    names = [Path(source).name for source in sources]
    return [name if names.count(name) == 1 else source for name, source in zip(names, sources, strict=True)]


def _texts(context: StageContext, source: str, settings: PreflightSettings, max_length: int) -> tuple[list[Text], int]:
    """The first text of each of so many problems, and how many texts are too long to be trained on."""
    resources, rollouts = context.resources, context.recipe.rollouts
    tokenizer = resources.tokenizer()
    traces, _ = traces_of(context, source)
    problems = [] if source in context.earlier else resources.problems(source, "train")
    prompts = {problem.id: problem.prompt for problem in problems}
    found: dict[str, Text] = {}
    too_long = 0
    for trace in traces:
        prompt = render_prompt(tokenizer, resources.format.messages(trace.question))
        asked, answer = example_tokens(tokenizer, prompt, trace.completion)
        if len(asked) > rollouts.max_prompt_tokens or len(asked) + len(answer) > max_length:
            too_long += 1
            continue
        own = prompts.get(trace.problem_id)
        second = prompt if own is None else as_text(tokenizer, own)
        if second == prompt:
            second = settings.template.replace(QUESTION, trace.question)
        otherwise = _begun_alike(tokenizer, prompt_tokens(tokenizer, second), asked)
        found.setdefault(trace.question, Text(trace, tuple(asked), tuple(answer), otherwise))
    if not found:
        raise UserError(
            f"{source}: none of its {len(traces)} texts fits: with its prompt the shortest is longer than {max_length} "
            f"tokens, or the prompt longer than {rollouts.max_prompt_tokens} (rollouts.max_prompt_tokens)"
        )
    drawn = sorted(found, key=lambda question: hashlib.sha256(question.encode("utf-8", "replace")).digest())
    taken = set(drawn[: settings.problems])
    return [text for question, text in found.items() if question in taken], too_long


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


def _scores(
    context: StageContext,
    policy: PeftModel,
    settings: PreflightSettings,
    sequences: Sequence[tuple[Sequence[int], Sequence[int]]],
) -> list[Scored]:
    """Every sequence under the policy, each by one of the processes."""
    policy.eval()
    processes = context.processes
    with context.progress.bar(f"{context.stage.name}: read", len(sequences), "texts") as bar:

        def own_part(numbers: Sequence[int]) -> list[Scored]:
            part, found = [sequences[i] for i in numbers], []
            rows = rows_at_once(policy, part)
            with trained_arithmetic(policy):
                for at in range(0, len(part), rows):
                    batch = part[at : at + rows]
                    found += score(policy, batch, rare_below=settings.rare_below, rows=rows, device=policy.device)
                    bar.advance(len(batch) * processes.count)
            return found

        return processes.shared(len(sequences), own_part)


def _alignment(
    context: StageContext,
    settings: PreflightSettings,
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
    rates = _rates(resources, [(read.text.trace.completion, read.text.answer) for read in reads], ends)
    ratio = perplexity_ratio(text, own, **measure)
    return Alignment(
        source=name,
        left_out=left_out,
        problem_ids=tuple(read.text.trace.problem_id for read in reads),
        text=text,
        rates=rates,
        own=own,
        own_rates=_rates(resources, [(read.own.text, read.own.token_ids) for read in reads], ends),
        second=ROWS_OWN if mismatch else settings.template,
        otherwise=otherwise,
        ratio=ratio,
        template=perplexity_ratio(otherwise, text, **measure),
        warnings=(*([mismatch] if mismatch else []), *_warnings(settings, rates, ratio)),
    )


def _rates(resources: Resources, texts: Sequence[tuple[str, Sequence[int]]], ends: frozenset[int]) -> Rates:
    """Of texts, each with its tokens."""
    ended = [bool(ids) and ids[-1] in ends and ends.isdisjoint(ids[:-1]) for _, ids in texts]
    return Rates(
        answers=sum(bool(resources.domain.answer(text)) for text, _ in texts) / len(texts),
        format=sum(resources.format.follows(text) for text, _ in texts) / len(texts),
        ended=sum(ended) / len(texts),
    )


def _warnings(settings: PreflightSettings, rates: Rates, ratio: PerplexityRatio) -> Iterator[str]:
    if ratio.ratio > settings.max_ratio:
        yield (
            f"its perplexity is {ratio.ratio:.2f} times that of the policy's own answers, above {settings.max_ratio:g} "
            "(max_ratio): it is written in other words than the policy's, whose own traces a distill stage with "
            "`teacher: self` gives"
        )
    if rates.answers < settings.min_answer_rate:
        yield (
            f"an answer is found in {rates.answers:.1%} of its texts, below {settings.min_answer_rate:.1%} "
            "(min_answer_rate): see problems.format for how answers are to be written"
        )
    if rates.ended < settings.min_end_rate:
        yield (
            f"{rates.ended:.1%} of its texts end as the base's completions do, below {settings.min_end_rate:.1%} "
            "(min_end_rate): an end token stands within the others"
        )
