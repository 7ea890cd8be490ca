"""How a checkpoint is spoken to: in which prompt format, and with which token its completions end.

Base models ship a chat template too, whose tokens they have never been trained on: an adapter leaves the embeddings as
they are, so prompts would hold noise and completions would have to end in a token that the model cannot say. What a
checkpoint is, it says itself:

- its generation config declares the tokens at which it stops. A chat model's declares the one that its template puts
  behind an answer; a base model's declares another, its end of text;
- a token that has never been trained on lies where the rows of the vocabulary's unused ids lie, or at zero (S. Land and
  M. Bartolo, arXiv 2405.05417).

So `auto` is `chat` where the template's own end of an answer is declared and none of its tokens is untrained, else
`plain`; and completions end, in training, rollouts, evaluation and export alike, with a token that is declared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from models.paths import Place

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from models.settings import PromptFormat

Format = Literal["chat", "plain"]

# a row is untrained that lies nearer to the unused rows, to zero, or to another of the template's tokens, than this
# share of the distance at which ordinary rows lie: trained on, however little, it would not
UNTRAINED = 0.05
# rows of the vocabulary that say where ordinary ones lie: so many blocks of so many
BLOCKS, ROWS = 32, 32
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")
QUESTION, ANSWER = "What is 6 times 7?", "It is 42."

PLAIN = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ 'Answer:\\n' + message['content'] + eos_token + '\\n\\n' }}{% else %}{{ message['content'] + '\\n\\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'Answer:\\n' }}{% endif %}"
)
"""The plain format as a chat template: whoever is given the tokenizer renders it alike, users of the export too."""


@dataclass(frozen=True)
class Conversation:
    """How a checkpoint is spoken to; see the module docstring.

    Fields:
        format: of its prompts.
        other: the other format, where the checkpoint could be asked in that as well; None where it has no template, or
            is a chat model and asked as one.
        end: the token with which completions end in training; one of those that it declares.
        turn_end: the one that its chat template puts behind an answer, declared or not; None where there is none.
        why: of the format, for people.
    """

    format: Format
    other: Format | None
    end: int
    turn_end: int | None
    why: str


class UntrainedEndError(ValueError):
    """A checkpoint with no end token that has been trained on; the message names those that it has."""


def conversation_of(place: Place, tokenizer: PreTrainedTokenizerBase, asked: PromptFormat) -> Conversation:
    """Decide; see the module docstring.

    Args:
        tokenizer: as the checkpoint has it.

    Raises:
        UntrainedEndError: all tokens at which it stops are untrained.
        OSError: its files cannot be read.
    """
    declared = declared_ends(place) or (tokenizer.eos_token_id,)
    markers, turn_end = _template_tokens(tokenizer) if tokenizer.chat_template else ((), None)
    ends = {*declared, turn_end} - {None}
    read, said = _untrained(place, len(tokenizer), set(markers), ends)

    def shown(token: int) -> str:
        return repr(tokenizer.convert_ids_to_tokens(token))

    spoken = [token for token in declared if token not in said]
    if not spoken:
        raise UntrainedEndError(
            f"completions are to end with {', '.join(map(shown, declared))}, whose embedding is untrained: no adapter "
            "could learn to say it; name a trained end in generation_config.json (eos_token_id)"
        )
    noise = list(dict.fromkeys([*(one for one in markers if one in read), *([turn_end] if turn_end in said else [])]))
    if not tokenizer.chat_template:
        fits, why = False, "it has no chat template"
    elif noise:
        fits, why = False, f"its chat template's {', '.join(map(shown, noise))} are untrained"
    elif turn_end is not None and turn_end not in declared:
        fits = False
        why = f"its template ends an answer with {shown(turn_end)}, at which it is not declared to stop"
    else:
        fits, why = True, "its chat template is trained in"
    chat = bool(tokenizer.chat_template) and (asked == "chat" or (asked == "auto" and fits))
    other: Format | None = None
    if tokenizer.chat_template and not (chat and fits):
        other = "plain" if chat else "chat"
    wished = (turn_end if chat else None, tokenizer.eos_token_id, *spoken)
    end = next(token for token in wished if token in spoken)
    return Conversation("chat" if chat else "plain", other, end, turn_end, why)


def speak(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> None:
    """Make a tokenizer render prompts, and end completions, as decided."""
    if conversation.format == "plain":
        own = tokenizer("a").input_ids
        begins = tokenizer.bos_token_id is not None and own[:1] == [tokenizer.bos_token_id]
        tokenizer.chat_template = ("{{ bos_token }}" if begins else "") + PLAIN
    if conversation.end != tokenizer.eos_token_id:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(conversation.end)


def declared_ends(place: Place) -> tuple[int, ...]:
    """The tokens at which a checkpoint declares to stop: in its generation config, else in its config."""
    from transformers import AutoConfig, GenerationConfig

    try:
        found = GenerationConfig.from_pretrained(place.path, revision=place.revision).eos_token_id
    except OSError:
        found = None
    if found is None:
        found = AutoConfig.from_pretrained(place.path, revision=place.revision).eos_token_id
    return () if found is None else tuple(found) if isinstance(found, list | tuple) else (found,)


def _template_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], int | None]:
    """The added tokens that a chat template puts around a question, and the one that it puts behind an answer."""
    added = tokenizer.added_tokens_decoder
    turn = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template([*turn, {"role": "assistant", "content": ANSWER}], tokenize=False)
    _, answered, rest = whole.rpartition(ANSWER)
    around, behind = (tokenizer(text, add_special_tokens=False).input_ids for text in (prompt, rest))
    markers = tuple(dict.fromkeys(token for token in around if token in added))
    return markers, next((token for token in behind if token in added), None) if answered else None


def _untrained(place: Place, known: int, read: set[int], said: set[int]) -> tuple[set[int], set[int]]:
    """Those of the tokens whose rows have never been trained, in the input embeddings of what is `read`, in the head of
    what is `said`; none where the weights do not tell.

    Args:
        known: the tokenizer's number of tokens; ids from there on are unused.
    """
    matrices = _matrices(place)
    if not matrices:
        return set(), set()
    return _near(matrices[0], known, read), _near(matrices[-1], known, said)


def _near(matrix: _Matrix, known: int, tokens: set[int]) -> set[int]:
    """The tokens whose rows lie at zero, at the mean of the unused rows, or on another token's row."""
    import torch

    rows = {token: matrix.block(token, token + 1)[0] for token in tokens if token < matrix.rows}
    if not rows:
        return set()
    step = max(ROWS, known // BLOCKS)
    ordinary = torch.cat([matrix.block(at, min(at + ROWS, known)) for at in range(0, known, step)])
    unused = matrix.block(known, max(known, min(matrix.rows, known + BLOCKS * ROWS)))
    places = [torch.zeros_like(ordinary[0]), *([unused.mean(0)] if len(unused) else [])]
    found = set()
    for token, row in rows.items():
        for place in (*places, *(other for name, other in rows.items() if name != token)):
            if (row - place).norm() < UNTRAINED * (ordinary - place).norm(dim=1).median():
                found.add(token)
    return found


class _Matrix:
    """A matrix of V rows in a safetensors file, of which single rows are read."""

    def __init__(self, file: str, name: str) -> None:
        from safetensors import safe_open

        with safe_open(file, framework="pt") as opened:
            self._slice = opened.get_slice(name)
        self.rows = self._slice.get_shape()[0]

    def block(self, start: int, end: int) -> torch.Tensor:
        """Rows start to end, float32."""
        return self._slice[start:end].float()


def _matrices(place: Place) -> list[_Matrix]:
    """Input embeddings, then the head where it is another matrix; none where they are not found in safetensors."""
    import json

    from transformers.utils import cached_file

    def fetched(name: str) -> str | None:
        return cached_file(
            place.path, name, revision=place.revision,
            _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
        )  # fmt: skip

    single = fetched("model.safetensors")
    if single is not None:
        from safetensors import safe_open

        with safe_open(single, framework="pt") as opened:
            files = dict.fromkeys(opened.keys(), single)
    else:
        index = fetched("model.safetensors.index.json")
        if index is None:
            return []
        with open(index, encoding="utf-8") as file:
            files = json.load(file)["weight_map"]
    found = []
    for endings in (EMBEDDINGS, HEADS):
        names = [name for name in files if name.endswith(endings)]
        if len(names) == 1:
            path = files[names[0]] if single is not None else fetched(files[names[0]])
            if path is not None:
                found.append(_Matrix(path, names[0]))
    return found
