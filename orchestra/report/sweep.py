"""What the report shows of a stage that was asked on its way: validation accuracy, and what is learned by heart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from orchestra.report.charts import Point
from orchestra.report.parts import Chart, Part
from orchestra.report.sweep_charts import lines_chart, sweep_chart
from orchestra.text import percent

if TYPE_CHECKING:
    from orchestra.report.data import StageRecord


def sweep_parts(record: StageRecord) -> Iterator[Part]:
    """Nothing of a stage that was not asked on its way."""
    rows = [row for row in record.sweep if {"accuracy", "low", "high", "problems"} <= row.keys()]
    if not rows:
        return
    steps = [row["step"] for row in rows]
    kept = record.result.extra.get("kept_step") if record.result is not None else None
    yield Chart(
        f"Validation accuracy of {record.name}",
        f"on {rows[-1]['problems']:,.0f} validation problems, {_kept(record, kept)}",
        sweep_chart(
            f"sweep-{record.name}",
            f"Validation accuracy of {record.name} at some of its steps, with intervals",
            steps,
            [Point(row["accuracy"], row["low"], row["high"]) for row in rows],
            kept,
        ),
    )
    read = [row for row in rows if {"trained_nll", "held_out_nll", "held_out_ratio"} <= row.keys()]
    if read:
        yield Chart(
            f"Traces under {record.name}",
            f"nats per answer token; {_memorised(read)}",
            lines_chart(
                f"traces-{record.name}",
                f"Likelihood of traces that {record.name} trains on, and of others set aside",
                [row["step"] for row in read],
                {
                    "set aside": [row["held_out_nll"] for row in read],
                    "trained on": [row["trained_nll"] for row in read],
                },
            ),
        )


def _kept(record: StageRecord, kept: object) -> str:
    if not isinstance(kept, int | float):
        return "so far"
    row = next((row for row in record.sweep if row["step"] == kept), None)
    told = f"step {kept:.0f} is kept (filled)"
    last = record.sweep[-1]
    if row is None or row is last:
        return told
    return f"{told}: {percent(row['accuracy'])}, the last has {percent(last['accuracy'])}"


def _memorised(rows: list) -> str:
    """In words."""
    alarmed = [row for row in rows if row.get("memorised")]
    row = alarmed[0] if alarmed else rows[-1]
    low, high = row.get("held_out_ratio_low"), row.get("held_out_ratio_high")
    interval = f" [{low:.2f}, {high:.2f}]" if low is not None and high is not None else ""
    times = f"{row['held_out_ratio']:.2f}{interval} times the perplexity of those trained on"
    if alarmed:
        return f"ALARM: memorised from step {row['step']:.0f} on, where traces set aside have {times}"
    return f"no alarm: at the last, traces set aside have {times}"
