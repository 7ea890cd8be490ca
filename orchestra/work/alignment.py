"""What a preflight has to say: numbers of each source beside those of the policy's own answers, and warnings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from math import log

from pydantic import TypeAdapter

from evals.perplexity import Perplexity, PerplexityRatio


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
        interval = f" [{self.ratio.low:.3g}, {self.ratio.high:.3g}]" if self.ratio.low is not None else ""
        return (
            f"{self.source}: {len(self.problem_ids):,} problems, {self.text.nll:.3f} nats a token, "
            f"{self.text.rare:.1%} rare, template gap {self.template_gap:+.3f}, answers {self.rates.answers:.1%}, "
            f"ends {self.rates.ended:.1%}, perplexity {self.text.perplexity:.3g}, {self.ratio.ratio:.3g}{interval} "
            f"times that of its own answers"
        )


@dataclass(frozen=True)
class Preflight:
    """What was measured.

    Fields:
        policy: under whose; `base`, or a stage.
        tokens: of the policy's own answers.
    """

    policy: str
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

    @staticmethod
    def from_tree(tree: object) -> Preflight:
        """What `as_tree` gave, from JSON.

        Raises:
            ValueError: it is something else.
        """
        return _adapter().validate_python(tree)


@cache
def _adapter() -> TypeAdapter[Preflight]:
    return TypeAdapter(Preflight)
