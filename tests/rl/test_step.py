"""GRPO's steps against their definition: rewards, advantages, loss, gradient, clipping and AdamW, at temperature 0.7.

Completions and their log-probabilities in the engine are written down; what the trainer computes from them is compared
with the formulas on full logits. An engine's log-probabilities that are off by a known factor are what importance
weights correct, and a second iteration over the same completions is what the clipped ratio is about.
"""

from dataclasses import dataclass, field

import pytest
import tiny
import tiny_grpo
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from models.engines.protocol import Completion
from models.engines.serving import Served
from models.reference import Reference
from models.training import Probe
from rewards.scoring import RewardSet
from rl.settings import DynamicSampling, GrpoSettings, Rollouts
from rl.train import train_grpo

T, LIMIT, LR, DECAY, CLIP = 0.7, 6, 1e-2, 0.05, 0.5
EPSILON, EPSILON_HIGH, BETA = 0.05, 0.15, 0.3
# of the second group every completion is right, so it has no variance; of the first, one is cut off
LENGTHS = ((3, 5, 6, 6), (2, 3, 2, 4))
CUT_OFF = (0, 2)
# tokens of the completions that are not cut off, those of the group without variance among them
TOKENS = 3 + 5 + 6 + 11
# pi_trainer / pi_engine of a completion's tokens, round and round, and what is left of it at most 3
RATIOS = (2.0, 0.5, 16.0, 1.0)
WEIGHTS = (2.0, 0.5, 3.0, 1.0)
REWARDS = {"correct": ((1, 0, 0, 1), (1, 1, 1, 1)), "brevity": ((0, 0, 1, 1), (0, 0, 0, 0))}
REWARD_WEIGHTS = [1.0, 0.25]
# totals 1, 0, 0.25, 1.25 about their mean 0.625, and 1, 1, 1, 1
CENTRED = (0.375, -0.625, -0.375, 0.625)
# what divides them. group: (0.1406 + 0.3906 + 0.1406 + 0.3906) / 3 = 0.354167, its root 0.595119; batch: the eight
# totals have mean 0.8125, squares 1.34375 about it, over 7 0.191964, and its root 0.438137. Each with 1e-4 added
DIVISOR = {"group": 0.595219, "batch": 0.438237, "none": 1.0}


def logprobs_of(model, prompt, completion, temperature=T):
    """Of a completion's tokens, in nats, by their definition."""
    logits = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1].float() / temperature
    return (logits - logits.logsumexp(-1, keepdim=True)).gather(-1, torch.tensor(completion)[:, None])[:, 0]


def written(eos):
    """completions_PG as token ids; all but one end."""
    return [
        [
            [40 + 31 * p + 7 * g + t for t in range(length - 1)] + [77 if (p, g) == CUT_OFF else eos]
            for g, length in enumerate(group)
        ]
        for p, group in enumerate(LENGTHS)
    ]


@dataclass
class Told:
    """An engine that gives what is written down for a prompt, (ids, log-probabilities) each, and serves any policy."""

    answers: dict
    kind: str = "told"
    dtype: torch.dtype = torch.float32
    serves_adapters: bool = False
    asked: list = field(default_factory=list)

    def generate(self, prompts, sampling, seeds):
        self.asked.append(([tuple(prompt) for prompt in prompts], sampling, seeds))
        return [
            [Completion(list(ids), "", "stop", list(logprobs)) for ids, logprobs in self.answers[tuple(prompt)]]
            for prompt in prompts
        ]


class Follows(Served):
    """Its engine is what it is told to be; that it follows the policy is not asked here."""

    def __init__(self, engine):
        super().__init__(engine, "folded", Probe([[1, 2]], [[3]]))

    def push(self, model, step=None):
        self.mismatch = 0.0


@dataclass
class Steps:
    """A stage that was run, and its optimizer's steps.

    Fields:
        gradients, before: of each adapter tensor at each step, as AdamW gets them and as it finds them.
    """

    lines: list
    engine: Told
    start: object
    model: object
    gradients: list
    before: list


def train(folder, tokenizer, model, posed, served, rewards, settings, **rollouts):
    train_grpo(
        model, tokenizer, tiny_grpo.asked(tokenizer, posed), rewards, served, settings,
        Rollouts(prompts_per_step=settings.prompts_per_step, max_completion_tokens=LIMIT, **rollouts), folder,
        reference=Reference("base", None), seed=3, report_to="none",
    )  # fmt: skip
    return tiny_grpo.metrics(folder)


@pytest.fixture
def stepped(tiny_path, tokenizer, tmp_path):
    def run(**changes) -> Steps:
        model, start = tiny.policy(tiny_path), tiny.policy(tiny_path)
        posed = tiny_grpo.problems(2)
        prompts = tiny_grpo.asked(tokenizer, posed).tokens
        answers = {}
        for prompt, group in zip(prompts, written(tokenizer.eos_token_id), strict=True):
            with torch.no_grad():
                exact = [logprobs_of(start, prompt, ids) for ids in group]
            off = torch.tensor(RATIOS).log().repeat(2)
            answers[prompt] = [(ids, (own - off[: len(ids)]).tolist()) for ids, own in zip(group, exact, strict=True)]

        def reward(name):
            # a prompt's group stands in a row, wherever its prompt does
            by_prompt = dict(zip([problem.id for problem in posed], REWARDS[name], strict=True))
            return lambda problem_id, **_: [by_prompt[one][i % 4] for i, one in enumerate(problem_id)]

        gradients, before = [], []

        def stepping(optimizer, *_):
            parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
            gradients.append({name: p.grad.clone() for name, p in parameters.items()})
            before.append({name: p.detach().clone() for name, p in parameters.items()})

        engine = Told(answers)
        settings = GrpoSettings(**{
            "steps": 2, "num_iterations": 2, "learning_rate": LR, "weight_decay": DECAY, "max_grad_norm": CLIP,
            "beta": BETA, "reference": "base", "epsilon": EPSILON, "epsilon_high": EPSILON_HIGH, "prompts_per_step": 2,
        } | changes)  # fmt: skip
        rewards = RewardSet([reward(name) for name in REWARDS], list(REWARDS), REWARD_WEIGHTS)
        hook = register_optimizer_step_pre_hook(stepping)
        try:
            lines = train(
                tmp_path, tokenizer, model, posed, Follows(engine), rewards, settings, temperature=T, top_p=0.9,
                group_size=4,
            )  # fmt: skip
        finally:
            hook.remove()
        return Steps(lines, engine, start, model, gradients, before)

    return run


def normalised(loss_type, rows):
    """Token losses of all rows, (losses, whether the row is in the loss), averaged as TRL says of a loss type."""
    if loss_type == "grpo":
        # a row's mean, and the mean of all eight of these, one that is masked being 0
        return sum(losses.mean() for losses, kept in rows if kept) / 8
    total = sum(losses.sum() for losses, kept in rows if kept)
    if loss_type == "dr_grpo":
        return total / (8 * LIMIT)
    if loss_type == "bnpo":
        return total / sum(len(losses) for losses, kept in rows if kept)
    return total / TOKENS


def loss_by_hand(model, start, answers, *, loss_type, scale, beta, epsilon=EPSILON, epsilon_high=EPSILON_HIGH):
    """(loss, k3 a token, (ratio, advantage) of every token): GRPO of `model` on completions of `start`."""
    rows, divergences, ratios = [], [], []
    for p, (prompt, group) in enumerate(answers.items()):
        for g, (ids, _) in enumerate(group):
            advantage = CENTRED[g] / DIVISOR[scale] if p == 0 else 0.0
            kept = p == 0 and (p, g) != CUT_OFF
            own = logprobs_of(model, prompt, ids)
            with torch.no_grad():
                old = logprobs_of(start, prompt, ids)
                with model.disable_adapter():
                    reference = logprobs_of(model, prompt, ids)
            ratio = (own - old).exp()
            k3 = (reference - own).exp() - (reference - own) - 1
            least = torch.min(ratio * advantage, ratio.clamp(1 - epsilon, 1 + epsilon_high) * advantage)
            weight = torch.tensor(WEIGHTS).repeat(2)[: len(ids)]
            rows.append((-least * weight + beta * k3 * ratio, kept))
            if kept:
                divergences += k3.tolist()
                ratios += [(r, advantage) for r in ratio.tolist()]
    return normalised(loss_type, rows), sum(divergences) / len(divergences), ratios


def moved_by_adamw(before, gradients):
    """AdamW (arXiv 1711.05101, algorithm 2) with 0.9, 0.999 and 1e-8: the parameters after these gradients."""
    first, second, now = torch.zeros_like(before), torch.zeros_like(before), before
    for t, gradient in enumerate(gradients, 1):
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        now = now - LR * DECAY * now
        now = now - LR * (first / (1 - 0.9**t)) / ((second / (1 - 0.999**t)).sqrt() + 1e-8)
    return now


@pytest.mark.parametrize(
    "loss_type, scale, beta, micro",
    [
        ("dapo", "group", BETA, 2),
        ("dapo", "batch", 0.0, None),
        ("dapo", "none", BETA, None),
        ("grpo", "group", BETA, None),
        ("dr_grpo", "group", 0.0, 4),
        ("bnpo", "none", BETA, None),
    ],
)
def test_two_steps_are_those_of_the_formulas(stepped, loss_type, scale, beta, micro):
    """Two iterations over one batch. Whatever AdamW got is taken as the start of the next comparison, because its first
    step is about the gradient's sign, which rounding may turn where it is nearly 0."""
    steps = stepped(loss_type=loss_type, scale_rewards=scale, beta=beta, micro_batch_size=micro)
    places = {name: p for name, p in steps.model.named_parameters() if p.requires_grad}
    after = {name: p.detach().clone() for name, p in places.items()}
    clipped = []
    for line, before, gradients in zip(steps.lines, steps.before, steps.gradients, strict=True):
        for name, place in places.items():
            place.data.copy_(before[name])
        loss, kl, ratios = loss_by_hand(
            steps.model, steps.start, steps.engine.answers, loss_type=loss_type, scale=scale, beta=beta
        )
        wanted = dict(zip(places, torch.autograd.grad(loss, list(places.values())), strict=True))
        norm = float(torch.cat([g.flatten() for g in wanted.values()]).norm())
        assert line["loss"] == pytest.approx(float(loss), rel=1e-4, abs=1e-6)
        assert line["grad_norm"] == pytest.approx(norm, rel=1e-3) and norm > CLIP
        assert line["learning_rate"] == LR
        if beta:
            assert line["kl"] == pytest.approx(kl, rel=1e-4)
        largest = max(float(g.abs().max()) for g in wanted.values())
        for name, gradient in gradients.items():
            # clipped to 0.5, and within rounding of the largest of all
            difference = (gradient - wanted[name] * CLIP / norm).abs().max()
            assert difference < 1e-3 * largest * CLIP / norm, name
        clipped.append([a for r, a in ratios if (a > 0 and r > 1 + EPSILON_HIGH) or (a < 0 and r < 1 - EPSILON)])
    assert not clipped[0] and {a > 0 for a in clipped[1]} == {True, False}, "both bounds are reached"
    for name, found in after.items():
        taken = [gradients[name] for gradients in steps.gradients]
        torch.testing.assert_close(steps.before[1][name], moved_by_adamw(steps.before[0][name], taken[:1]))
        torch.testing.assert_close(found, moved_by_adamw(steps.before[0][name], taken))


def test_what_the_engine_is_asked_and_what_is_told_of_a_step(stepped):
    """k3 of the engine's policy to the trainer's is w - log w - 1 for a ratio w: 2, 0.5, 16, 1 give 0.306853, 0.193147,
    12.227411 and 0. The rows in the loss have 3, 5, 6 tokens of the round, those before the fourth, the first again,
    and the second: 12.727411, 13.034264, 13.227411 in all."""
    steps = stepped(micro_batch_size=4)
    ((prompts, sampling, seeds),) = steps.engine.asked
    assert sorted(prompts) == sorted(steps.engine.answers) and len(set(seeds)) == 2
    ends = sampling.stop_token_ids
    assert set(tiny.MORE_ENDS) < set(ends) and len(ends) == len(tiny.MORE_ENDS) + 1
    assert sampling == tiny.sampling(LIMIT, temperature=T, top_p=0.9, n=4, logprobs=True, stop_token_ids=ends)
    first = steps.lines[0]
    assert first["engine_kl"] == pytest.approx((12.727411 + 13.034264 + 13.227411) / 14, rel=1e-4)
    told = {
        "reward": 0.8125, "rewards/correct": 6 / 8, "rewards/brevity": 2 / 8, "beta": BETA, "truncated": 1 / 8,
        "zero_variance_groups": 1 / 2, "masked_groups": 1 / 2, "useful_samples": 3,
        "completion_length": (3 + 5 + 6 + 6 + 11) / 8,
    }  # fmt: skip
    assert {name: first[name] for name in told} == pytest.approx(told)


# which problems, and under which seeds

EASY, COUNT, STEPS, PROMPTS = 8, 12, 12, 3


@pytest.fixture(scope="module")
def course(tiny_path, tokenizer, tmp_path_factory):
    """Calls of the engine, step by step, in three rounds through twelve problems, of which eight are easy: their groups
    have no variance, and are sampled anew up to two times."""
    posed = tiny_grpo.problems(COUNT, easy=EASY)
    prompts = tiny_grpo.asked(tokenizer, posed).tokens
    two = [([5, tokenizer.eos_token_id], [-1.0, -1.0]), ([6, tokenizer.eos_token_id], [-1.0, -1.0])]
    calls = []

    class Stepping(Told):
        def generate(self, prompts, sampling, seeds):
            groups = super().generate(prompts, sampling, seeds)
            calls[-1].append((prompts_of(prompts), list(seeds)))
            return groups

    def prompts_of(asked):
        return [prompts.index(tuple(prompt)) for prompt in asked]

    def correct(problem_id, completion_ids, **_):
        return [1.0 if int(one[1:]) < EASY else float(ids[0] == 5) for one, ids in zip(problem_id, completion_ids,
                                                                                       strict=True)]  # fmt: skip

    class Counting(Follows):
        def push(self, model, step=None):
            super().push(model, step)
            calls.append([])

    train(
        tmp_path_factory.mktemp("course"), tokenizer, tiny.policy(tiny_path), posed,
        Counting(Stepping({prompt: two for prompt in prompts})), RewardSet([correct], ["correct"], [1.0]),
        GrpoSettings(steps=STEPS, learning_rate=1e-6, prompts_per_step=PROMPTS), group_size=2,
        dynamic_sampling=DynamicSampling(max_resamples=2),
    )  # fmt: skip
    return calls


def test_every_round_through_the_problems_has_an_order_of_its_own(course):
    first = [problem for step in course for problem in step[0][0]]
    rounds = [first[at : at + COUNT] for at in range(0, len(first), COUNT)]
    assert len(rounds) == 3 and all(sorted(one) == list(range(COUNT)) for one in rounds)
    assert len({tuple(one) for one in rounds}) == 3 and sorted(rounds[0]) != rounds[0]


def test_no_seed_is_used_twice(course):
    """By no other step, no further attempt, no other group; completion k of a group draws from its seed + k."""
    seeds = [seed for step in course for _, seeds in step for seed in seeds]
    assert max(map(len, course)) == 3, "two further attempts"
    assert len(set(seeds) | {seed + 1 for seed in seeds}) == 2 * len(seeds)


def test_what_replaces_a_group_depends_on_step_and_attempt(course):
    """As many as are empty, drawn from all; and not the same ones again."""
    drawn = [tuple(problems) for step in course for problems, _ in step[1:]]
    for step in course:
        empty = sum(problem < EASY for problem in step[0][0])
        for problems, _ in step[1:]:
            assert len(problems) == len(set(problems)) == empty
            empty -= sum(problem >= EASY for problem in problems)
    for size in (2, 3):
        of_size = [problems for problems in drawn if len(problems) == size]
        assert len(set(of_size)) > len(of_size) / 2, of_size
    twice = [step for step in course if len(step) == 3]
    assert all(step[1][0][0] != step[2][0][0] for step in twice[:2]), twice
