"""A stage's policy asked on its way: validation accuracy at every so many steps, and whether it memorises its traces.

Which step is kept is decided on `problems.validation` alone; test problems are asked once, of the policy that is kept,
when all is decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from evals.memorisation import memorisation
from evals.perplexity import Scored, score
from models.base import trained_arithmetic
from models.prompts import render_prompt
from models.sweep import Line, Sweep, best_of, go_back_to, read_sweep
from orchestra.text import percent
from orchestra.work.policies import answered, rows_at_once
from sft.examples import example_tokens
from sft.held_apart import SHARE, held_apart

if TYPE_CHECKING:
    from peft import PeftModel

    from evals.memorisation import Memorisation
    from models.engines.protocol import Tokens
    from models.settings import TrainingSettings
    from orchestra.work.context import StageContext
    from sft.distill import Trace
    from sft.settings import SftSettings

# what else is rare is not asked here
UNUSED = 0.5


@dataclass(frozen=True)
class Texts:
    """(prompt, answer) tokens of traces trained on, and of others like them that were set aside."""

    trained: Sequence[tuple[Tokens, Tokens]]
    aside: Sequence[tuple[Tokens, Tokens]]
    above: float


@dataclass(frozen=True)
class Swept:
    """What a stage has to say of its sweep; nothing where it has none."""

    extra: dict[str, float] = field(default_factory=dict)
    tokens: int = 0


def set_aside(
    context: StageContext, traces: Sequence[Trace], settings: SftSettings, max_length: int
) -> tuple[Sequence[Trace], Texts | None]:
    """The traces to train on, and what tells whether they are memorised: None where nobody asks on the way, or there
    are too few problems."""
    if settings.evaluate_every is None:
        return traces, None
    found = held_apart(traces)
    if not found.aside:
        context.progress.say(
            f"    no traces are set aside, of fewer than {SHARE} problems: memorisation_above "
            f"({settings.memorisation_above:g}) is not looked at"
        )
        return traces, None
    context.progress.say(
        f"    sets {found.gone:,} traces of {len(found.aside):,} problems aside to tell memorising from learning, and "
        f"trains on {len(found.trained):,}"
    )
    tokenizer, format = context.resources.tokenizer(), context.resources.format

    def tokens(chosen: Sequence[Trace]) -> list[tuple[Tokens, Tokens]]:
        rows = [
            example_tokens(tokenizer, render_prompt(tokenizer, format.messages(trace.question)), trace.completion)
            for trace in chosen
        ]
        return [(asked, answer) for asked, answer in rows if len(asked) + len(answer) <= max_length]

    texts = Texts(tokens(found.beside), tokens(found.aside), settings.memorisation_above)
    if texts.trained and texts.aside:
        return found.trained, texts
    context.progress.say(
        f"    of these, or of those to compare them with, all are longer than {max_length:,} tokens: "
        f"memorisation_above ({settings.memorisation_above:g}) is not looked at"
    )
    return found.trained, None


def sweep_of(
    context: StageContext, policy: PeftModel, settings: TrainingSettings, texts: Texts | None = None
) -> Sweep | None:
    """What asks the policy on its way; None where the stage has no `evaluate_every`.

    Args:
        texts: on which memorising is measured besides.
    """
    if settings.evaluate_every is None:
        return None

    told = False

    def measure(step: int) -> Line:
        nonlocal told
        line = _asked(context, policy, step)
        said = f"    step {step}: validation {_accuracy(line)}"
        if "greedy_accuracy" in line:
            said += f", greedy {percent(line['greedy_accuracy'])}"
        said += f", {line['mean_length']:.1f} tokens"
        if texts is None:
            context.progress.say(said)
            return line
        found = _memorised(context, policy, texts)
        alarm = found.alarm(texts.above)
        context.progress.say(
            f"{said}; nats a token {found.trained_nll:.3f} of traces trained on, {found.held_out_nll:.3f} of those set "
            f"aside: {_times(found)} the perplexity{', memorised' if alarm else ''}"
        )
        if alarm and not told:
            context.progress.say(
                f"    warning: at step {step} it memorises: traces set aside have {_times(found)} the perplexity of "
                f"those trained on, above {texts.above:g} (memorisation_above); fewer steps or more traces"
            )
        told = told or alarm
        return line | _told(found, texts.above)

    return Sweep(policy, context.folder, settings, measure, context.processes)


def kept(context: StageContext, policy: PeftModel, settings: TrainingSettings) -> Swept:
    """Make the trained policy the one that is kept, and say which."""
    if settings.evaluate_every is None:
        return Swept()
    lines = context.once(lambda: read_sweep(context.folder))
    best, last = best_of(lines), lines[-1]
    if settings.keep == "last":
        chosen, other = last, f"step {best['step']} has {percent(best['accuracy'])}"
    else:
        chosen, other = best, f"the last has {percent(last['accuracy'])}"
        go_back_to(policy, context.folder, best["step"])
    beside = f"; {other}" if best is not last else ", the best"
    memorised = ", where it memorises" if chosen.get("memorised") else ""
    context.progress.say(
        f"    keeps step {chosen['step']} of {settings.steps}{memorised}: validation {_accuracy(chosen)}{beside}"
    )
    extra = {
        "kept_step": chosen["step"],
        "validation_accuracy": chosen["accuracy"],
        "validation_low": chosen["low"],
        "validation_high": chosen["high"],
        "last_validation_accuracy": last["accuracy"],
    }
    for key in ("memorised", "held_out_ratio"):
        if key in chosen:
            extra[key] = chosen[key]
    if first := next((line["step"] for line in lines if line.get("memorised")), None):
        extra["memorised_from"] = first
    return Swept(extra, sum(line["tokens"] for line in lines))


def _asked(context: StageContext, policy: PeftModel, step: int) -> Line:
    """The validation problems, put to the policy as it is now."""
    asked = context.resources.validation()
    context.resources.served().push(policy, step)
    evaluation = answered(context, asked, "validate")
    sampled, greedy = evaluation.sampled, evaluation.greedy
    line = {
        "accuracy": sampled.accuracy.estimate,
        "low": sampled.accuracy.low,
        "high": sampled.accuracy.high,
        "mean_length": sampled.mean_length,
        "truncation_rate": sampled.truncation_rate,
        "problems": len(asked.problems),
        "tokens": evaluation.tokens,
    }
    return line | ({"greedy_accuracy": greedy.accuracy.estimate} if greedy is not None else {})


def _memorised(context: StageContext, policy: PeftModel, texts: Texts) -> Memorisation:
    sequences = [*texts.trained, *texts.aside]

    def own_part(numbers: Sequence[int]) -> list[Scored]:
        part = [sequences[i] for i in numbers]
        with trained_arithmetic(policy):
            return score(policy, part, rare_below=UNUSED, rows=rows_at_once(policy, part), device=policy.device)

    scored = context.processes.shared(len(sequences), own_part)
    count = len(texts.trained)
    return memorisation(scored[:count], scored[count:], confidence=context.recipe.evaluate.confidence)


def _told(found: Memorisation, above: float) -> Line:
    line = {
        "trained_nll": found.trained_nll,
        "held_out_nll": found.held_out_nll,
        "held_out_ratio": found.ratio,
        "memorised": int(found.alarm(above)),
    }
    bounds = {"held_out_ratio_low": found.low, "held_out_ratio_high": found.high}
    return line | {key: value for key, value in bounds.items() if value is not None}


def _times(found: Memorisation) -> str:
    interval = f" [{found.low:.2f}, {found.high:.2f}]" if found.low is not None else ""
    return f"{found.ratio:.2f}{interval} times"


def _accuracy(line: Line) -> str:
    return f"{percent(line['accuracy'])} [{100 * line['low']:.1f}, {100 * line['high']:.1f}]"
