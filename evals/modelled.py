"""Text modelled beside problems solved: what training changed in both, and where the one was bought with the other.

Perplexity may fall while accuracy falls: experts trained on raw mathematical text had a perplexity 10.5 % lower and
solved 8.6 points fewer of GSM8K's problems. So both are compared with the policy that training started from, the one
text for text, the other problem for problem; where both intervals say that it fell, that is a warning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from pydantic import TypeAdapter

from evals.perplexity import Perplexity, PerplexityRatio
from evals.statistics import PairedDifference


@dataclass(frozen=True)
class Change:
    """One source of text under two policies.

    Fields:
        texts: sha256 of their tokens; numbers of the same texts compare.
        before, after: under the policy that training started from, and under the trained one.
        ratio: perplexity after over perplexity before, text for text.
    """

    texts: str
    before: Perplexity
    after: Perplexity
    ratio: PerplexityRatio


@dataclass(frozen=True)
class Modelled:
    """What a policy's training changed.

    Fields:
        policy, start: the trained policy's name, and that of the one it started from.
        sources: by name.
        accuracy: paired, to the policy that it started from; None where both were not asked the same problems.
    """

    policy: str
    start: str
    sources: Mapping[str, Change]
    accuracy: PairedDifference | None

    def warnings(self) -> dict[str, str]:
        """Source -> what to say, of those whose perplexity fell while accuracy fell."""
        if self.accuracy is None:
            return {}
        return {
            name: _warning(name, one.ratio, self.accuracy)
            for name, one in self.sources.items()
            if modelled_better_solved_worse(one.ratio, self.accuracy)
        }

    def line(self) -> str:
        """For the terminal."""
        told = (f"{n} {one.after.perplexity:.4g} (from {one.before.perplexity:.4g})" for n, one in self.sources.items())
        return f"perplexity: {', '.join(told)}"

    def to_json(self) -> str:
        """JSON text; `from_json` reads it back to an equal one."""
        return _adapter().dump_json(self).decode()

    @staticmethod
    def from_json(text: str | bytes) -> Modelled:
        """Read what `to_json` wrote; fields of later versions are ignored.

        Raises:
            ValueError: it is something else.
        """
        return _adapter().validate_json(text)

    @staticmethod
    def from_tree(tree: object) -> Modelled:
        """The same of JSON that is already read."""
        return _adapter().validate_python(tree)


@cache
def _adapter() -> TypeAdapter[Modelled]:
    return TypeAdapter(Modelled)


def modelled_better_solved_worse(ratio: PerplexityRatio, accuracy: PairedDifference) -> bool:
    """Whether perplexity and accuracy both fell, as far as can be known: neither interval holds "no change"."""
    return ratio.high is not None and ratio.high < 1 and accuracy.high < 0


def _warning(source: str, ratio: PerplexityRatio, accuracy: PairedDifference) -> str:
    lost, least, most = (-100 * value for value in (accuracy.difference, accuracy.high, accuracy.low))
    return (
        f"perplexity of {source} fell to {ratio.ratio:.3g} [{ratio.low:.3g}, {ratio.high:.3g}] of what it was and "
        f"accuracy fell by {lost:.1f} points [{least:.1f}, {most:.1f}]: text is modelled better, problems are solved "
        "worse"
    )
