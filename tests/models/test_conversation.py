"""How a checkpoint is spoken to: prompts and ends by what it says of itself, the same in training, rollouts and export.

Checkpoints in the manner of Qwen2.5, base and instruct, with random weights and what is told of their tokens.
"""

import json

import pytest
import tiny
import torch
from tiny import CHATML, END_OF_TEXT, END_OF_TURN, START
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.adapters import save_adapter
from models.base import ModelError, end_tokens, load_tokenizer, spoken_to
from models.engines.start import Capacity, start_engine
from models.prompts import missing_opening, render_prompt
from models.settings import Model, Serving
from rewards.formats import FORMATS
from sft.train import IGNORED, _example

MESSAGES = FORMATS["think-boxed"].messages("What is 12 - 5?")
PLAINLY = f"{MESSAGES[0]['content']}\n\nWhat is 12 - 5?\n\nAnswer:\n"
BY_TEMPLATE = (
    f"<|im_start|>system\n{MESSAGES[0]['content']}<|im_end|>\n<|im_start|>user\nWhat is 12 - 5?<|im_end|>\n"
    "<|im_start|>assistant\n"
)
BASE = {"eos": END_OF_TEXT, "declared": [END_OF_TEXT], "untrained": [START, END_OF_TURN]}
INSTRUCT = {"eos": END_OF_TURN, "declared": [END_OF_TURN, END_OF_TEXT]}


@pytest.mark.parametrize(
    ("checkpoint", "asked", "format", "other", "end"),
    [
        (BASE, "auto", "plain", "chat", END_OF_TEXT),
        # what it declares is enough: its rows may not tell
        (BASE | {"untrained": []}, "auto", "plain", "chat", END_OF_TEXT),
        # the tokenizer ends with what the base does not know
        (BASE | {"eos": END_OF_TURN}, "auto", "plain", "chat", END_OF_TEXT),
        # what it declares is as little true: the rows tell
        (BASE | {"eos": END_OF_TURN, "declared": [END_OF_TURN, END_OF_TEXT]}, "auto", "plain", "chat", END_OF_TEXT),
        (BASE | {"eos": END_OF_TURN, "declared": [END_OF_TURN, END_OF_TEXT], "where": "zero"}, "auto", "plain", "chat",
         END_OF_TEXT),
        (BASE | {"eos": END_OF_TURN, "declared": [END_OF_TURN, END_OF_TEXT], "tied": True}, "auto", "plain", "chat",
         END_OF_TEXT),
        (BASE | {"declared": [END_OF_TURN, END_OF_TEXT], "untrained": [START]}, "auto", "plain", "chat", END_OF_TEXT),
        (BASE | {"template": None}, "auto", "plain", None, END_OF_TEXT),
        (BASE, "chat", "chat", "plain", END_OF_TEXT),
        (BASE, "plain", "plain", "chat", END_OF_TEXT),
        (INSTRUCT, "auto", "chat", None, END_OF_TURN),
        (INSTRUCT | {"tied": True}, "auto", "chat", None, END_OF_TURN),
        (INSTRUCT, "plain", "plain", "chat", END_OF_TURN),
        # the tokenizer names the end of text, the template ends an answer otherwise (Gemma)
        (INSTRUCT | {"eos": END_OF_TEXT}, "auto", "chat", None, END_OF_TURN),
        (INSTRUCT | {"eos": END_OF_TEXT}, "plain", "plain", "chat", END_OF_TEXT),
        # a template without tokens of its own
        (BASE | {"template": "{% for m in messages %}{{ m['content'] }} {% endfor %}"}, "auto", "chat", None,
         END_OF_TEXT),
    ],
)  # fmt: skip
def test_what_a_checkpoint_is(tmp_path, checkpoint, asked, format, other, end):
    name = str(tiny.write_chatml(tmp_path / "m", **checkpoint))
    found = spoken_to(name, asked)
    tokenizer = load_tokenizer(name, asked)
    assert (found.format, found.other, tokenizer.convert_ids_to_tokens(found.end)) == (format, other, end)
    assert tokenizer.eos_token == end
    declared = set(tokenizer.convert_tokens_to_ids(checkpoint["declared"]))
    assert end_tokens(name, tokenizer) == declared, "the end is one of those at which it stops, and there are no others"
    if "template" not in checkpoint or format == "plain":
        assert render_prompt(tokenizer, MESSAGES) == (PLAINLY if format == "plain" else BY_TEMPLATE)


@pytest.mark.parametrize("asked", ["auto", "chat", "plain"])
def test_an_end_that_nobody_trained_is_refused(tmp_path, asked):
    name = str(tiny.write_chatml(tmp_path / "m", **INSTRUCT | {"declared": [END_OF_TURN], "untrained": [END_OF_TURN]}))
    with pytest.raises(ModelError) as caught:
        load_tokenizer(name, asked)
    message = str(caught.value)
    assert name in message and "'<|im_end|>', whose embedding is untrained" in message and "\n" not in message
    assert "generation_config.json" in message


def test_the_shipped_student_is_spoken_to_as_ever():
    own, ours = AutoTokenizer.from_pretrained("models/embedded/student"), load_tokenizer("embedded/student")
    assert spoken_to("embedded/student", "auto").other is None
    assert (ours.chat_template, ours.eos_token, ours.pad_token) == (own.chat_template, own.eos_token, own.pad_token)
    assert render_prompt(ours, MESSAGES) == "<|user|>What is 12 - 5?<|assistant|>"


def test_plain_prompts_begin_as_the_tokenizer_does(tmp_path):
    """Llama and Gemma bases are lost without their first token."""
    name = tiny.write_chatml(tmp_path / "m", **BASE | {"template": None})
    config = json.loads((name / "tokenizer.json").read_text())
    first = {"id": "<|user|>", "type_id": 0}
    config["post_processor"] = {
        "type": "TemplateProcessing", "single": [{"SpecialToken": first}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|user|>": {"id": "<|user|>", "ids": [507], "tokens": ["<|user|>"]}},
    }  # fmt: skip
    (name / "tokenizer.json").write_text(json.dumps(config))
    settings = json.loads((name / "tokenizer_config.json").read_text())
    settings |= {"bos_token": "<|user|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (name / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(str(name))
    assert tokenizer("a").input_ids[0] == 507
    assert render_prompt(tokenizer, MESSAGES) == f"<|user|>{PLAINLY}"


# what follows from it


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The base of the issue: its template's tokens are untrained, its tokenizer ends with one of them."""
    return str(tiny.write_chatml(tmp_path_factory.mktemp("base") / "m", **BASE | {"eos": END_OF_TURN}))


def test_sft_trains_the_end_of_the_base(base):
    tokenizer = load_tokenizer(base)
    example = _example(tokenizer, render_prompt(tokenizer, MESSAGES), "7")
    assert tokenizer.convert_ids_to_tokens(example["labels"][-2:]) == ["7", END_OF_TEXT]
    assert set(example["labels"][:-2]) == {IGNORED}
    assert not {START, END_OF_TURN} & set(tokenizer.convert_ids_to_tokens(example["input_ids"]))


@pytest.mark.parametrize("kind", ["transformers", "vllm"])
def test_engines_stop_at_the_end_of_the_base_alone(tmp_path, kind, request):
    """vLLM by itself would stop at the tokenizer's, too. Both ends have trained rows here, so that both are sampled."""
    name = str(tiny.write_chatml(tmp_path / "m", eos=END_OF_TURN, declared=[END_OF_TEXT]))
    tokenizer = load_tokenizer(name)
    turn, text = tokenizer.convert_tokens_to_ids([END_OF_TURN, END_OF_TEXT])
    if kind == "vllm":
        engine = request.getfixturevalue("own_engine")(name)
    else:
        engine = start_engine(name, Serving(engine=kind, dtype="float32"), Capacity(max_model_len=192, max_num_seqs=64))
    groups = engine.generate([[65, 66, 67]] * 4, tiny.sampling(150, temperature=2.0, n=16), [1, 100, 200, 300])
    completions = [completion for group in groups for completion in group]
    assert any(turn in completion.token_ids[:-1] for completion in completions), "it goes on after this one"
    stopped = [completion.token_ids for completion in completions if completion.finish == "stop"]
    assert stopped and all(ids[-1] == text and text not in ids[:-1] for ids in stopped)


def test_an_export_says_how_it_was_trained(base, tmp_path):
    """To whoever loads it with the stock library: prompts, end, and where generation stops."""
    save_adapter(tiny.policy(base), tmp_path / "adapter")
    tiny.merge(Model(base=base), tmp_path / "adapter", tmp_path / "merged", torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.eos_token == END_OF_TEXT
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").generation_config
    assert config.eos_token_id in (tokenizer.eos_token_id, [tokenizer.eos_token_id])
    assert tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False) == PLAINLY
    whole = tokenizer.apply_chat_template([*MESSAGES, {"role": "assistant", "content": "7"}], tokenize=False)
    assert whole == f"{PLAINLY}7{END_OF_TEXT}\n\n"
    ours = load_tokenizer(str(tmp_path / "merged"))
    assert spoken_to(str(tmp_path / "merged"), "auto").other is None
    assert render_prompt(ours, MESSAGES) == PLAINLY and ours.eos_token == END_OF_TEXT
    tiny.merge(Model(base=base, prompt="chat"), tmp_path / "adapter", tmp_path / "by-template", torch.float32)
    assert AutoTokenizer.from_pretrained(tmp_path / "by-template").chat_template == CHATML


# system messages

R1 = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] }}{% else %}"
    "{{ '<|user|>' + message['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|assistant|><think>\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{{ '<|user|>' + message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@pytest.mark.parametrize(("template", "opening"), [(R1, "<think>\n"), (NO_SYSTEM, "")])
def test_who_takes_no_system_message_gets_all_in_the_users_turn(tokenizer, tiny_path, template, opening):
    own = AutoTokenizer.from_pretrained(tiny_path)
    own.chat_template = template
    asked = render_prompt(own, MESSAGES)
    assert asked == f"<|user|>{MESSAGES[0]['content']}\n\nWhat is 12 - 5?<|assistant|>{opening}"
    assert render_prompt(own, MESSAGES[1:]) == f"<|user|>What is 12 - 5?<|assistant|>{opening}"


def test_a_completion_begins_where_the_prompt_that_it_is_trained_under_ends(tokenizer, tiny_path):
    """What the teacher's prompt says of it is put before it, unless the student's prompt says the same: a policy that
    imitates its own samples would learn to begin to think twice."""
    thinking = AutoTokenizer.from_pretrained(tiny_path)
    thinking.chat_template = R1
    begun, bare = render_prompt(thinking, MESSAGES), render_prompt(tokenizer, MESSAGES)
    assert missing_opening(begun, bare) == "<think>\n"
    assert [missing_opening(*both) for both in ((begun, begun), (bare, begun), (bare, bare))] == ["", "", ""]
