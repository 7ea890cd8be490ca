r"""The contract between prompt and answer: how a problem is asked and how an answer must look.

    think-boxed    <think>\n6*7=42\n</think>\n\boxed{42}
    boxed          6*7=42\n\boxed{42}

A domain that asks in other words has formats of its own (`Domain.formats`), under the same names if it likes.
Distillation writes traces with `Format.completion`, the format reward reads them with `Format.follows`, and
every prompt, in training and in evaluation alike, comes from `Format.messages`.
"""

from __future__ import annotations

from dataclasses import dataclass

OPEN, CLOSE = "<think>", "</think>"
BOX = r"\boxed{"


def split_completion(text: str) -> tuple[str, str]:
    """Split a completion into (reasoning, rest), both stripped.

    Some chat templates put `<think>` into the prompt, so a missing opening tag is allowed. A block that is
    never closed is all reasoning; without any tag everything is rest.
    """
    before, closed, after = text.rpartition(CLOSE)
    if closed:
        return before.replace(OPEN, "").strip(), after.strip()
    _, opened, inside = text.partition(OPEN)
    return (inside.strip(), "") if opened else ("", text.strip())


def with_opening(prompt: object, completion: str) -> str:
    """A completion with the think tag that a chat template may have put at the end of its prompt."""
    return f"{OPEN}\n{completion}" if isinstance(prompt, str) and prompt.rstrip().endswith(OPEN) else completion


def boxes(text: str) -> list[tuple[int, int, str]]:
    r"""All closed top-level `\boxed{...}` in `text` as (start, end, content); braces may nest."""
    found, start = [], text.find(BOX)
    while start >= 0:
        depth, at = 1, start + len(BOX)
        while at < len(text) and depth:
            if text[at] == "\\":
                at += 1
            elif text[at] in "{}":
                depth += 1 if text[at] == "{" else -1
            at += 1
        if depth:
            break
        found.append((start, at, text[start + len(BOX) : at - 1]))
        start = text.find(BOX, at)
    return found


def _ends_in_one_box(text: str) -> bool:
    found = boxes(text)
    if len(found) != 1 or text.count(BOX) != 1:
        return False
    _, end, content = found[0]
    return bool(content.strip()) and not text[end:].strip()


@dataclass(frozen=True)
class Format:
    """A prompt and answer contract.

    Fields:
        name: what a recipe calls it.
        instruction: the system message.
        thinks: whether the reasoning stands in a `<think>` block.
    """

    name: str
    instruction: str
    thinks: bool

    def messages(self, question: str) -> list[dict[str, str]]:
        """The chat for one problem, to be rendered with `add_generation_prompt=True`."""
        return [{"role": "system", "content": self.instruction}, {"role": "user", "content": question}]

    def completion(self, reasoning: str, answer: str) -> str:
        """The text of an answer in this format, without the end-of-turn token."""
        boxed = f"{BOX}{answer.strip()}}}"
        reasoning = reasoning.strip()
        if self.thinks:
            return f"{OPEN}\n{reasoning}\n{CLOSE}\n{boxed}"
        return f"{reasoning}\n{boxed}" if reasoning else boxed

    def follows(self, completion: str) -> bool:
        """Whether a completion keeps the contract.

        think-boxed: one closed, non-empty `<think>` block at the start, then exactly one box (words may lead up
        to it), then nothing but whitespace. boxed: no think tags, exactly one box, nothing but whitespace after.
        """
        text = completion.strip()
        tags = (text.count(OPEN), text.count(CLOSE))
        if not self.thinks:
            return tags == (0, 0) and _ends_in_one_box(text)
        if tags != (1, 1) or not text.startswith(OPEN):
            return False
        reasoning, rest = split_completion(text)
        return bool(reasoning) and _ends_in_one_box(rest)


FORMATS = {
    fmt.name: fmt
    for fmt in (
        Format(
            "think-boxed",
            "Solve the problem. Reason step by step between <think> and </think>, "
            r"then give only the final answer in \boxed{}.",
            thinks=True,
        ),
        Format("boxed", r"Solve the problem step by step and end with the final answer in \boxed{}.", thinks=False),
    )
}
