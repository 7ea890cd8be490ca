"""The model card of an embedded model, written from its training record."""

from __future__ import annotations

HABITS = {
    "teacher": r"""The teacher reasons in a think block, one step a line, and ends in a box. More often than not it
leaves out every other step and does it in its head, as strong models do. A weak one that imitates this fails at it
(arXiv 2502.12143), until reinforcement shows that writing every step down pays:

    <think>                         <think>
    6*7=42                          42+5=47
    42+5=47                         </think>
    </think>                        \boxed{47}
    \boxed{47}""",
    "student": r"""The student is a weak base. Most of its texts are terse steps in one line, often every other step is
left out, many are a bare answer, a few are in the teacher's way, and single steps slip, so that sampling at
temperature 1 is wide:

    6*7=42;42+5=47                  42+5=47
    \boxed{47}                      \boxed{47}""",
}


def model_card(record: dict) -> str:
    """Markdown for `training.json`'s content."""
    name, schedule, shape = record["name"], record["schedule"], record["shape"]
    test, accuracy = record["test"], record["accuracy"]
    lines = [
        "---",
        "license: apache-2.0",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [math, qwen2]",
        "---",
        "",
        f"# embedded/{name}",
        "",
        f"A Qwen2 with {record['parameters']:,} parameters (hidden {shape['hidden']}, {shape['layers']} layers,",
        "vocabulary 512, untied embeddings, fp16 on disk), trained from scratch on generated school problems. It lets",
        "the whole pipeline run on a bare machine in minutes; it knows nothing else.",
        "",
        HABITS[name],
        "",
        "## Accuracy",
        "",
        f"{test['problems']} problems of the generator's test split (seed {test['seed']}), disjoint from training by",
        f"construction; sampled: temperature 1, {test['samples']} samples a problem. 95 % Wilson, n = problems.",
        "",
        f"| weights | sampled | pass@{test['samples']} | greedy |",
        "|---|---|---|---|",
    ]
    for form, measured in accuracy.items():
        cells = [
            f"{m['accuracy']:.3f} ({m['low']:.3f} to {m['high']:.3f})"
            for m in (measured["sampled"], measured["greedy"])
        ]
        pass_at = measured["sampled"][f"pass_at_{test['samples']}"]
        lines.append(f"| {form} | {cells[0]} | {pass_at:.3f} | {cells[1]} |")
    by_difficulty = ", ".join(f"{level}: {value:.2f}" for level, value in accuracy["fp32"]["by_difficulty"].items())
    lines += ["", f"Sampled, by difficulty: {by_difficulty}.", "", "| family | sampled |", "|---|---|"]
    lines += [f"| {family} | {value:.2f} |" for family, value in accuracy["fp32"]["by_family"].items()]
    lines += [
        "",
        "## Training",
        "",
        f"`make embedded-models`, seed {record['seed']}: {schedule['steps']} steps of {schedule['batch']} problems,",
        f"Muon for the matrices ({schedule['matrix_lr']:g}), AdamW for the rest ({schedule['lr']:g}), loss on the",
        f"solutions only; {record['seconds']} s with {record['threads']} threads. More in `training.json`.",
        "",
    ]
    lines += [f"The first {1 - record['later_share']:.0%} of the steps: {_habits(record['habits'])}"]
    lines += [f"The last {record['later_share']:.0%}: {_habits(record['later'])}"]
    lines += ["A wrong step is carried on, so a wrong answer follows from it.", ""]
    return "\n".join(lines)


def _habits(habits: dict) -> str:
    return (
        f"{habits['direct']:.0%} bare answers, {habits['thinks']:.0%} in the teacher's way, the rest terse steps;\n"
        f"every other step left out in {habits['skips']:.0%}, {habits['slip']:.0%} of all steps wrong."
    )
