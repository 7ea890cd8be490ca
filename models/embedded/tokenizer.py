"""The tokenizer of the embedded models: Qwen2's own class, its byte-level BPE trained on the generator's words.

Every byte is a token, so any text comes back as it was (in Unicode's NFC form); a word that the generator does not
use just costs more tokens. Digits stand one by one, as Qwen2 splits them. The chat template drops system messages:
these models carry the answer contract in their weights.

transformers builds every Qwen2 tokenizer again from its vocabulary and merges with Qwen2's splitting rules, whatever
tokenizer.json says, so a different splitter would not survive a reload.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import AddedToken, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import Qwen2Tokenizer

VOCABULARY_SIZE = 512
PAD, END, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"
CONTROL = (PAD, END, USER, ASSISTANT)
MARKS = ("<think>", "</think>", "\\boxed{")  # part of the text, so not skipped when decoding

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}<|user|>{{ message['content'] }}"
    "{%- elif message['role'] == 'assistant' -%}<|assistant|>{{ message['content'] }}<|end|>"
    "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)


def build_tokenizer(texts: Iterable[str]) -> Qwen2Tokenizer:
    """Train the vocabulary on `texts`; the same texts give the same tokenizer."""
    learner = Qwen2Tokenizer()._tokenizer
    size = VOCABULARY_SIZE - len(CONTROL) - len(MARKS)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learner.train_from_iterator(texts, BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(merge) for merge in learned["merges"]],
        unk_token=None,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=1024,
        padding_side="left",
    )
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in MARKS])
    return tokenizer
