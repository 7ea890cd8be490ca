"""Two policies at the same places of the same answers: both answer held-out problems, carriers and places are drawn
from their answers, and each says what would come next there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from evals.carriers import Answer, Carrier, Place, Writer, choose_carriers, choose_places
from evals.probe import Group, Reading, read_places, summarise
from models.base import trained_arithmetic
from models.engines.protocol import Sampling
from models.reference import Reference
from orchestra.work.policies import SharedJudge, serve, start_policy
from orchestra.work.resources import stage_seed
from rewards.verdict import Verdict

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from evals.settings import ProbeSettings
    from orchestra.work.context import StageContext

CORRECT = {Verdict.CORRECT: True, Verdict.WRONG: False, Verdict.UNGRADABLE: None}


@dataclass(frozen=True)
class Probed:
    """What a probe found; `groups` as in `summarise`, `tokens`: written by both policies in all."""

    carriers: tuple[Carrier, ...]
    readings: tuple[Reading, ...]
    groups: tuple[Group, ...]
    tokens: int


def probe(context: StageContext, against: str, settings: ProbeSettings) -> Probed:
    """Compare the stage's parent policy, after, with another, before. All processes of a run call this together.

    Args:
        against: `base`, or the name of an earlier stage.

    Raises:
        ProbeError: no answer could be judged, or the answers have no place of the kinds asked for.
        EngineError: the engine does not serve a policy.
    """
    parents = () if against == "base" else (against,)
    answers = _answers(replace(context, parents=parents), "before", settings)
    # the last policy that is loaded stays for the comparison
    policy = start_policy(context)
    answers += _answers(context, "after", settings, policy)
    carriers = choose_carriers(answers, settings, context.seed)
    before = Reference.saved(against, context.adapter_of(against)) if parents else Reference(against, None)
    before.replace(policy)
    tokenizer = context.resources.tokenizer()

    def read(own: Sequence[int]) -> list[list[Reading]]:
        return [_read(policy, before, number, carriers[number], tokenizer, settings, context.seed) for number in own]

    readings = tuple(one for part in context.processes.shared(len(carriers), read) for one in part)
    groups = summarise(readings, context.recipe.evaluate.confidence, context.seed)
    return Probed(carriers, readings, groups, sum(len(answer.tokens) for answer in answers))


def _answers(
    context: StageContext, writer: Writer, settings: ProbeSettings, policy: PeftModel | None = None
) -> list[Answer]:
    """One answer to each of the first held-out problems, under a seed for each that both policies share."""
    resources, recipe = context.resources, context.recipe
    serve(context, start_policy(context) if policy is None else policy)
    evaluation, asked = context.stage.evaluation(recipe), resources.test(context.stage)
    problems, prompts = asked.problems[: settings.problems], asked.tokens[: settings.problems]
    sampling = Sampling(
        evaluation.max_completion_tokens,
        temperature=evaluation.temperature,
        top_p=evaluation.top_p if evaluation.temperature else 1.0,
        top_k=0,
        stop_token_ids=resources.stops(),
    )
    seeds = [stage_seed(recipe, f"probe-{problem.id}") for problem in problems]
    with context.progress.bar(f"{context.stage.name}: answers {writer}", len(problems), "problems") as bar:
        groups = resources.engine().generate(prompts, sampling, seeds, bar.advance)
    completions = [group[0] for group in groups]
    judge = SharedJudge(resources.domain, context.processes)
    judgements = judge.judge([one.text for one in completions], [problem.gold for problem in problems])
    return [
        Answer(writer, problem.id, tuple(prompt), tuple(one.token_ids), CORRECT[judgement.verdict])
        for problem, prompt, one, judgement in zip(problems, prompts, completions, judgements, strict=True)
    ]


def _read(
    policy: PeftModel,
    before: Reference,
    number: int,
    carrier: Carrier,
    tokenizer: PreTrainedTokenizerBase,
    settings: ProbeSettings,
    seed: int,
) -> list[Reading]:
    """Both policies at one carrier's places. Carriers go through the model one by one, so that neither padding nor the
    number of processes shows in the numbers but by rounding."""
    answer = carrier.answer
    own_seed = f"{seed}/{answer.writer}/{answer.problem_id}"
    places = choose_places(token_texts(tokenizer, answer.tokens), settings.places, own_seed)
    if not places:
        return []
    policy.eval()
    with torch.inference_mode(), trained_arithmetic(policy):
        after_NV = next_token_logits(policy, answer, places)
        with before.active(policy):
            before_NV = next_token_logits(policy, answer, places)
    return read_places(number, places, before_NV, after_NV, settings.classes, settings.truncation)


def next_token_logits(policy: PeftModel, answer: Answer, places: Sequence[Place]) -> torch.Tensor:
    """The active policy's logits at the places, places x vocabulary: what it says of each place's own token, given all
    before it. The output head runs on nothing else."""
    ids = torch.tensor([[*answer.prompt, *answer.tokens]], device=policy.device)
    predicting = torch.tensor([len(answer.prompt) + place.at - 1 for place in places], device=policy.device)
    return policy(input_ids=ids, logits_to_keep=predicting).logits[0]


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The text that each token adds: decoded behind the one before it, since some tokenizers leave out the space with
    which a text begins."""
    alone = [tokenizer.decode([one]) for one in ids]
    pairs = [tokenizer.decode(list(pair)) for pair in pairwise(ids)]
    return alone[:1] + [pair[len(first) :] for first, pair in zip(alone, pairs, strict=False)]


def as_json(probed: Probed, names: tuple[str, str], text: Callable[[int], str]) -> dict[str, object]:
    """What probe.json holds: the groups' numbers, the carriers without their texts, and every place.

    Args:
        names: of the policies before and after.
        text: of a token.
    """
    carriers = [
        {
            "writer": one.writer,
            "problem": one.problem_id,
            "correct": one.correct,
            "band": band,
            "tokens": len(one.tokens),
        }
        for one, band in ((carrier.answer, carrier.band) for carrier in probed.carriers)
    ]
    places = [
        {
            "carrier": one.carrier,
            "at": one.place.at,
            "kinds": one.place.kinds,
            "class": one.token_class,
            "lock": one.lock,
            "before": asdict(one.before) | {"text": text(one.before.token)},
            "after": asdict(one.after) | {"text": text(one.after.token)},
        }
        for one in probed.readings
    ]
    groups = {one.name: asdict(one) for one in probed.groups}
    return {"before": names[0], "after": names[1], "groups": groups, "carriers": carriers, "places": places}
