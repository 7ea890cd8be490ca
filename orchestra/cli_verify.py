"""The command `orchestra verify`: explain one verdict, or score a file of cases."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer


def verify(
    cases: Annotated[
        Path | None, typer.Argument(help="JSONL file of cases: gold, completion, truth or expected.")
    ] = None,
    gold: Annotated[str | None, typer.Option(help="The reference answer.")] = None,
    answer: Annotated[str | None, typer.Option(help="A completion, or just its answer.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    wrong: Annotated[Path | None, typer.Option(help="Write the rows that disagree with their label here.")] = None,
) -> None:
    """Explain the verdict on one answer, or score a file of cases."""
    import json

    from rewards.math.cases import CaseError, explain, score_cases

    if cases is not None and (gold is not None or answer is not None):
        raise typer.BadParameter("give either a file of cases or --gold and --answer, not both")
    if cases is None:
        if gold is None or answer is None:
            raise typer.BadParameter("give a file of cases, or both --gold and --answer")
        shown = asdict(explain(answer, gold))
    else:
        try:
            shown = asdict(score_cases(cases, wrong))
        except CaseError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from error
    if json_output:
        typer.echo(json.dumps(shown, ensure_ascii=False))
        return
    width = max(map(len, shown))
    for key, value in shown.items():
        typer.echo(f"{key:<{width}}  {value}")
