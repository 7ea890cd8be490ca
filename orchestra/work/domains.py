"""The domains of training data: what `expert: each` makes one expert each for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from models.experts import BASE, name_fault
from orchestra.config.faults import UserError
from rewards.problems import Asked
from settings import near

if TYPE_CHECKING:
    from collections.abc import Iterable

    from models.experts import Panel
    from orchestra.config.recipe import Recipe
    from orchestra.config.trained import TrainingStage
    from orchestra.work.resources import Resources
    from sft.distill import Trace


def expert_name(domain: str) -> str:
    """The name of a domain's expert: `Counting & Probability` gives `counting-probability`."""
    return re.sub(r"[^a-z0-9]+", "-", domain.lower()).strip("-")[:40] or "domain"


def wanted(there: Iterable[str], asked: Sequence[str] | None, stage: str) -> tuple[str, ...]:
    """The domains that get an expert, in their order by name.

    Raises:
        UserError: one that is asked for has no problems, or has no name for an expert of its own.
    """
    known = sorted(set(there))
    for name in asked or ():
        if name not in known:
            listed = ", ".join(known)
            raise UserError(
                f"domains: {name!r} has no problems in the data of {stage!r} (there are: {listed}){near(name, known)}"
            )
    chosen = [name for name in known if asked is None or name in asked]
    names = [expert_name(domain) for domain in chosen]
    for domain, name in zip(chosen, names, strict=True):
        if fault := name_fault(name):
            raise UserError(f"domains: the expert of {domain!r} would be called {name!r}: {fault}; rename the domain")
        if names.count(name) > 1:
            raise UserError(f"domains: {domain!r} and another one would both have the expert {name!r}; rename one")
    return tuple(chosen)


def domain_by_problem(resources: Resources, stage: TrainingStage) -> Mapping[str, str]:
    """The domain of every training problem, and of those in the files that the stage trains on, by its id."""
    own = resources.recipe.problems
    sources = dict.fromkeys((*stage.trains_on(resources.recipe), (own.train, own.train_limit)))
    found = [problem for source, limit in sources for problem in resources.problems(source, "train", limit)]
    return {problem.id: problem.domain for problem in found}


def must_have_problems(recipe: Recipe, stage: TrainingStage) -> None:
    """Which domains there may be is known before a teacher has been asked for hours. Raises UserError."""
    from orchestra.work.resources import Resources

    wanted(domain_by_problem(Resources(recipe), stage).values(), stage.domains, stage.name)


def domain_table(panel: Panel, domains: Iterable[str]) -> dict[str, str] | None:
    """Each domain's declared expert, the base where it has none; None where no expert has a domain."""
    declared = {domain: expert.name for expert in panel.experts for domain in expert.domains}
    return {domain: declared.get(domain, BASE) for domain in domains} if declared else None


def traces_in(
    traces: Mapping[str, Sequence[Trace]], domain_of: Mapping[str, str], domains: Sequence[str], *, shares: bool = False
) -> dict[str, list[Trace]]:
    """The traces of these domains, by source; a source with none is left out.

    Args:
        shares: whether each source is to have its share of them.

    Raises:
        UserError: a trace's problem is not among the training problems, so that nobody knows its domain; or a source
            that is to have a share has none of these domains.
    """
    found: dict[str, list[Trace]] = {}
    for source, ones in traces.items():
        for trace in ones:
            if trace.problem_id not in domain_of:
                raise UserError(
                    f"{source}: problem {trace.problem_id!r} is none of the training problems: it has no domain"
                )
            if domain_of[trace.problem_id] in domains:
                found.setdefault(source, []).append(trace)
    if shares and found and (without := [source for source in traces if source not in found]):
        raise UserError(
            f"data: {', '.join(without)} has a share, and no traces in {', '.join(map(repr, domains))}; list the "
            "sources without shares, or say other `domains`"
        )
    return found


def asked_in(asked: Asked, domains: Sequence[str]) -> Asked:
    """The problems of these domains."""
    return asked.part([at for at, problem in enumerate(asked.problems) if problem.domain in domains])
