"""The command `orchestra diff`: the cards of two trace sets, and what differs."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestra.text import number, percent, readable

if TYPE_CHECKING:
    from sft.cards import Card, Overlap, Spread
    from sft.distill import Trace

Place = Annotated[Path, typer.Argument(help="A traces.jsonl, or the folder of a distill stage.", show_default=False)]


def diff(
    first: Place,
    second: Place,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Compare two trace sets: lengths, pass rates, perplexity, the problems that they cover, and what they share."""
    from sft.cards import overlap

    (one, traces), (other, others) = _read(first), _read(second)
    shared = overlap(traces, others)
    if as_json:
        typer.echo(json.dumps({"first": asdict(one), "second": asdict(other), "overlap": asdict(shared)}, indent=1))
        return
    for line in (*_table(one, other), "", *_shared(shared)):
        typer.echo(line)


def _read(place: Path) -> tuple[Card, list[Trace]]:
    """A set with its perplexity under the base, where it lies in a run that has measured it."""
    from orchestra.report.modelled import perplexity_of_traces
    from sft.cards import read_set, trace_file

    card, traces = read_set(place)
    return replace(card, perplexity=perplexity_of_traces(trace_file(place).resolve().parent)), traces


def _table(first: Card, second: Card) -> list[str]:
    """A row for each number of the cards: its name, both, and the second minus the first."""
    from sft.cards import QUANTILES

    rows = [("", "first", "second", "difference")]

    def add(name: str, values: tuple[float | None, float | None], share: bool = False) -> None:
        shown = [percent(value) if share else number(value) for value in values]
        gap = None if None in values else values[1] - values[0]
        told = "–" if gap is None else f"{100 * gap:+.1f} points" if share else f"{gap:+,.4g}"
        rows.append((name, *shown, told.replace("-", "−")))

    def spread(name: str, values: tuple[Spread | None, Spread | None]) -> None:
        add(f"{name}: mean", tuple(one and one.mean for one in values))
        add("  least", tuple(one and one.least for one in values))
        for at, share in enumerate(QUANTILES):
            add(f"  {share:.0%}", tuple(one and one.quantiles[at] for one in values))
        add("  most", tuple(one and one.most for one in values))

    cards = (first, second)
    add("traces", tuple(card.traces for card in cards))
    add("problems", tuple(card.problems for card in cards))
    add("problems asked", tuple(card.asked for card in cards))
    add("covered", tuple(card.covered for card in cards), share=True)
    add("right answers", tuple(card.correct for card in cards), share=True)
    spread("tokens", tuple(card.tokens for card in cards))
    spread("pass rates", tuple(card.pass_rates for card in cards))
    add("perplexity under the base", tuple(card.perplexity for card in cards))
    widths = [max(len(row[at]) for row in rows) for at in range(4)]
    lines = [
        "  ".join(cell.ljust(width) if at == 0 else cell.rjust(width)
                  for at, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in rows
    ]  # fmt: skip
    return [f"first:  {readable(first.source)}", f"second: {readable(second.source)}", "", *lines]


def _shared(shared: Overlap) -> list[str]:
    lines = [
        f"{number(shared.problems)} problems in both, {number(shared.only_first)} only in the first, "
        f"{number(shared.only_second)} only in the second",
        f"{number(shared.traces)} traces in both, word for word",
    ]
    if shared.longer is not None:
        lines.append(f"on the problems of both, the second's traces have {shared.longer:+.4g} tokens".replace("-", "−"))
    if shared.other_gold:
        lines.append(f"{number(shared.other_gold)} of the problems in both have other gold answers")
    return lines
