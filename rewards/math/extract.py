r"""Where the answer is: the text a completion stands by, found by scanning from its end.

The policies, decided once and tested in tests/rewards/math/test_verifier_policies.py:

- **The think block is not the answer.** Only what follows the last ``</think>`` counts; an unclosed ``<think>`` means
  the model never got to answer. Otherwise a policy learns to put candidates where they cost nothing.
- **The last box decides**, whatever the prose around it says: a box is a commitment, prose is not. A right statement
  beside a wrong box is wrong, a wrong one beside a right box is right, and an earlier box taken back in words is gone.
- **Boxes with nothing between them but connectives are one answer** (``\boxed{2} and \boxed{3}``): the list of them.
  So several values asked for may be boxed one by one, and a list of guesses is graded as a list, that is wrong.
- **A box that never closes is no answer**: its end was cut off, and ``\boxed{12`` may have become 123.
- **Without any box** the closing statement counts (``The answer is ...``, ``#### ...``, else the last formula, else
  the last number). The verifier says whether mathematics is right; insisting on a box is the format reward's work.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_ANSWER = 100_000  # characters; a longer box or statement is nobody's final answer
_TAIL = 6_000  # characters at the end of a completion that are searched when there is no box
_MAX_BOXES = 64

_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_END_MARK = re.compile(r"<\|(?:im_start|im_end|endoftext|eot_id|end)\|>|</s>|<｜end▁of▁sentence｜>")
# what may stand between boxes that form one answer: connectives, delimiters, spacing, a label such as "y_2 ="
_GAP = re.compile(
    r"(?:\s|[$.,;:/|&*()?]|\\[()\[\],;:! ]|\\\\|\\q?quad(?![a-zA-Z])|\\(?:text|mathrm|textbf|mbox)\s*\{[^{}]{0,40}\}"
    r"|\b(?:and|or|also|maybe|perhaps|possibly|either|else|then|alternatively|as well as)\b"
    r"|[a-zA-Z](?:_\{?\w{1,3}\}?)?(?:\([a-z]\))?\s*=)*",
    re.IGNORECASE,
)
_OR = re.compile(r"\b(?:or|maybe|perhaps|possibly|alternatively|either)\b", re.IGNORECASE)
_WORD_IN_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mbox)\s*\{([^{}]*)\}")
_CONNECTIVE = re.compile(r"[\s,;.:]*(?:and|or|,|also)?[\s,;.:]*", re.IGNORECASE)
_PHRASE = re.compile(
    r"(?:\banswer\b|\bresult\b|\bsolution\b)(?:\s+(?:to|of)\s+[^.\n:]{0,80}?)?\W{0,4}?(?:\s+(?:is|are)\b|\s*[:=])\s*:?",
    re.IGNORECASE,
)
_MATH = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\$(.+?)(?<!\\)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:\s+\d+/\d+|/\d+)?%?|-?\.\d+")
_PROSE = re.compile(r"[a-zA-Z]{2,} [a-zA-Z]{2,}|[a-zA-Z]{3,} [a-zA-Z]{3,}|[a-zA-Z]{2,} \$")
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n")


@dataclass(frozen=True, slots=True)
class Extracted:
    """text: the answer as written, empty when there is none; source: where it was found, or why there is none."""

    text: str
    source: str


def extract(completion: str) -> Extracted:
    """The answer a completion stands by. Linear in the length of the completion."""
    closed, opened = completion.rfind("</think>"), completion.rfind("<think>")
    if opened > closed:
        return Extracted("", "unclosed think block")
    text = completion[closed + 8 :] if closed >= 0 else completion
    if "\\boxed" in text or "\\fbox" in text:
        return _boxed(text)
    mark = _END_MARK.search(text)
    return _unboxed(text[: mark.start()] if mark else text)


def readable(gold: str) -> bool:
    """Whether a gold can be graded against at all: it is a text that says something."""
    if not isinstance(gold, str) or len(gold) > 200_000:
        return False
    text = gold_text(gold) if "\\boxed" in gold or "\\fbox" in gold else gold
    return any(character.isalnum() for character in text) or any(sign in text for sign in "∞∅πℝ①②③④⑤⑥⑦⑧⑨")


def gold_text(gold: str) -> str:
    """The answer in a gold, which may be a whole solution."""
    if "\\boxed" in gold or "\\fbox" in gold or (len(gold) > 250 and gold.count(" ") > 30):
        found = extract(gold)
        return gold if found.source in ("unclosed box", "no answer found") else found.text
    return gold


def box_content(text: str, start: int) -> tuple[str, int] | None:
    r"""Content and end of the box whose command ends at ``start`` (``\boxed{x}`` or ``\boxed 5``); None if unclosed."""
    if text[start : start + 1] != "{":
        token = re.compile(r"[^\s$\\{}]{1,20}").match(text, start)
        return (token.group().rstrip(".,;)"), token.end()) if token else None
    depth = 0
    for brace in _BRACE.finditer(text, start):
        mark = brace.group()
        if mark == "{":
            depth += 1
        elif mark == "}":
            depth -= 1
            if depth == 0:
                return text[start + 1 : brace.start()], brace.end()
    return None


def _boxed(text: str) -> Extracted:
    at = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    command = _BOX.match(text, at)
    content = box_content(text, command.end()) if command else None
    if content is None:
        return Extracted("", "unclosed box")
    boxes, either = [content[0]], False
    while len(boxes) < _MAX_BOXES:
        before = max(text.rfind("\\boxed", 0, at), text.rfind("\\fbox", 0, at))
        command = _BOX.match(text, before) if before >= 0 else None
        # a gap of more than 200 characters has words in it
        content = box_content(text[: at + 1], command.end()) if command and at - command.end() < MAX_ANSWER else None
        if content is None or at - content[1] > 200 or not _only_connectives(text[content[1] : at]):
            break
        either = either or bool(_OR.search(text[content[1] : at]))
        boxes.append(content[0])
        at = before
    if len(set(boxes)) == 1:
        return Extracted(_capped(boxes[0]), "last box")
    return Extracted(_capped((r" \text{ or } " if either else ", ").join(reversed(boxes))), "boxes taken together")


def _only_connectives(gap: str) -> bool:
    if not _GAP.fullmatch(gap):
        return False
    return all(_CONNECTIVE.fullmatch(word) for word in _WORD_IN_TEXT.findall(gap))


def _capped(text: str) -> str:
    return text if len(text) <= MAX_ANSWER else ""


def _unboxed(text: str) -> Extracted:
    text = text[-_TAIL:].strip()
    if not text:
        return Extracted("", "empty")
    hashes = text.rfind("####")
    if hashes >= 0:
        return Extracted(text[hashes + 4 :].strip().split("\n", 1)[0].strip(), "after ####")
    phrase = _last(_PHRASE, text)
    if phrase is not None:
        stated = _statement(text[phrase.end() :])
        if stated:
            return Extracted(stated, "answer phrase")
    if len(text) <= 200 and "\n" not in text and not _PROSE.search(text):
        return Extracted(text, "whole text")
    stated = _closing(text)
    if stated:
        return Extracted(stated, "last formula or number")
    if len(text) <= 60 and "\n" not in text:
        return Extracted(text, "whole text")
    return Extracted("", "no answer found")


def _last(pattern: re.Pattern, text: str) -> re.Match | None:
    found = None
    for found in pattern.finditer(text):  # noqa: B007 - the last one counts
        pass
    return found


def _closing(text: str) -> str:
    """The formula or number that prose ends with; formulas and bare numbers side by side, the later counts."""
    formula = _last(_MATH, text)
    number = _last(_NUMBER, text) if _PROSE.search(text) else None
    if formula is not None and (number is None or number.start() < formula.end()):
        return next(group for group in formula.groups() if group is not None)
    return number.group() if number else ""


def _statement(rest: str) -> str:
    """What an answer phrase states: the formula it begins with, else the rest of its sentence or how that ends."""
    rest = rest.lstrip(" \t\n*:\"'")
    formula = _MATH.search(rest[:2000])
    end = _SENTENCE_END.search(rest)
    sentence = (rest[: end.start()] if end else rest).strip(" *\"'`")
    if formula and formula.start() <= len(sentence):
        before, after = rest[: formula.start()], rest[formula.end() : formula.end() + 200]
        if not re.search(r"\d", before) and not re.match(r"\s*(?:,|and\b|or\b|%|percent|pct)", after):
            if not _PROSE.search(before):
                return next(group for group in formula.groups() if group is not None)
            sentence = rest[: formula.end()] if formula.end() > len(sentence) else sentence
    return (_closing(sentence) or sentence) if _PROSE.match(sentence) else sentence
