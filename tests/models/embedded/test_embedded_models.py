"""The shipped models: what their cards say is measured again, and what the pipeline relies on holds."""

import json
import math
import random
import sys
import unicodedata

import pytest

from models.embedded import student_path, teacher_path
from rewards.formats import FORMATS
from rewards.generator.draw import generate

PATHS = {"student": student_path(), "teacher": teacher_path()}
PROBLEMS = 200
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

GSM8K = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many clips "
    "did Natalia sell altogether in April and May?",
    "Janet’s ducks lay 16 eggs per day. She sells the rest for $2.50 (25% off) — how much does she make?\n\n  £3 × 4?",
    r"Find $\frac{1}{2} + x^2$ when $x = \sqrt{3}$, \textbf{exactly}. 答えは？ 🙂",
)


def record(name):
    return json.loads((PATHS[name] / "training.json").read_text())


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(student_path())


@pytest.fixture(scope="module")
def problems():
    return generate("test", PROBLEMS, seed=record("student")["test"]["seed"])


def close(measured, recorded, name):
    """Within four standard errors of the difference; samples of one problem go together, so n is problems."""
    spread = math.sqrt(recorded * (1 - recorded) * (1 / PROBLEMS + 1 / record(name)["test"]["problems"]))
    assert abs(measured - recorded) < 4 * spread, f"{name}: measured {measured:.3f}, the card says {recorded:.3f}"


def test_the_folders_hold_a_whole_model_and_stay_small():
    for path in PATHS.values():
        for file in ("config.json", "generation_config.json", "model.safetensors", "README.md", *TOKENIZER_FILES):
            assert (path / file).is_file(), f"{path.name}: {file} is missing"
    size = sum(file.stat().st_size for path in PATHS.values() for file in path.iterdir())
    assert size < 5_000_000, f"{size / 1e6:.1f} MB"


def test_the_two_vocabularies_are_the_same_file():
    for file in TOKENIZER_FILES:
        assert (student_path() / file).read_bytes() == (teacher_path() / file).read_bytes(), file


def test_architecture_suits_four_bit_and_the_engine():
    for name, path in PATHS.items():
        config = json.loads((path / "config.json").read_text())
        assert config["architectures"] == ["Qwen2ForCausalLM"]
        assert config["tie_word_embeddings"] is False, "a tied output matrix is served stale by vLLM on CPUs"
        assert config["vocab_size"] <= 512 and config["max_position_embeddings"] == 1024
        assert config["hidden_size"] % 32 == 0 and (config["hidden_size"] ** 2) % 64 == 0
        assert config["dtype"] == "float32"
        assert record(name)["parameters"] < 1_600_000


def test_the_students_bands():
    student, teacher = record("student")["accuracy"], record("teacher")["accuracy"]
    assert 0.15 <= student["nf4"]["sampled"]["accuracy"] <= 0.40
    assert student["nf4"]["sampled"]["pass_at_4"] > student["nf4"]["sampled"]["accuracy"] + 0.15
    assert teacher["fp32"]["sampled"]["accuracy"] >= 0.65  # most of its texts do every other step in the head
    for name in PATHS:
        card = (PATHS[name] / "README.md").read_text()
        assert f"{record(name)['accuracy']['nf4']['sampled']['accuracy']:.3f}" in card


def test_any_text_comes_back_from_the_tokenizer(tokenizer):
    rng = random.Random(0)
    noise = ["".join(chr(rng.choice((rng.randrange(32, 127), rng.randrange(0xA0, 0xD7FF)))) for _ in range(80))]
    for text in (*GSM8K, *noise):
        ids = tokenizer(text)["input_ids"]
        assert max(ids) < 512
        assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


def test_digits_stand_one_by_one_and_marks_are_single_tokens(tokenizer):
    text = FORMATS["think-boxed"].completion("60*7=420\n420+5=425", "425")
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
    assert "".join(token for token in tokens if token.isdigit()) == "607420" + "4205425" + "425"
    assert all(len(token) == 1 for token in tokens if any(char.isdigit() for char in token))
    assert [tokens.count(mark) for mark in ("<think>", "</think>", "\\boxed{")] == [1, 1, 1]
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_the_chat_template_ignores_the_system_message(tokenizer):
    messages = FORMATS["think-boxed"].messages("6*7?")
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert rendered == "<|user|>6*7?<|assistant|>"
    answered = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": "42"}], tokenize=False)
    assert answered == f"<|user|>6*7?<|assistant|>42{tokenizer.eos_token}"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_problems_and_traces_are_short(tokenizer, problems):
    for problem in problems:
        assert len(tokenizer(problem.question)["input_ids"]) <= 60
        trace = FORMATS["think-boxed"].completion(problem.solution, problem.gold)
        assert len(tokenizer(trace)["input_ids"]) <= 90


@pytest.mark.parametrize("name", PATHS)
def test_the_cards_accuracy_is_measured_again(name, problems):
    from models.embedded.measure import load, measure

    model, tokenizer = load(PATHS[name])
    recorded = record(name)["accuracy"]["fp32"]
    sampled = measure(model, tokenizer, problems, samples=1, seed=11)
    close(sampled.accuracy, recorded["sampled"]["accuracy"], name)
    greedy = measure(model, tokenizer, problems, greedy=True)
    close(greedy.accuracy, recorded["greedy"]["accuracy"], name)
    thinks = [FORMATS["think-boxed"].follows(text) for (text,) in greedy.completions_PS]
    assert (sum(thinks) / len(thinks) > 0.95) if name == "teacher" else (sum(thinks) / len(thinks) < 0.2)


@pytest.mark.skipif(sys.platform != "linux", reason="bitsandbytes 4-bit is set up on Linux only")
def test_the_quantised_student_is_the_recorded_base(problems):
    from models.embedded.measure import load, measure

    model, tokenizer = load(student_path(), "nf4")
    sampled = measure(model, tokenizer, problems, samples=1, seed=11)
    close(sampled.accuracy, record("student")["accuracy"]["nf4"]["sampled"]["accuracy"], "student")


def test_the_corpus_slips_as_often_as_its_habits_say():
    from models.embedded.corpus import Habits, slip, writer

    rng = random.Random(0)
    problems = generate("train", 500, seed=2)
    assert all(slip(p.solution, p.gold, 0.0, rng) == (p.solution, p.gold) for p in problems)
    slipped = [slip(p.solution, p.gold, 0.3, rng) for p in problems]
    wrong = sum(answer != p.gold for p, (_, answer) in zip(problems, slipped, strict=True)) / len(problems)
    expected = sum(1 - 0.7 ** len(p.solution.split("\n")) for p in problems) / len(problems)
    assert expected - 0.15 < wrong < expected + 0.05  # a slip may cancel out, or hit a step the gold does not need
    write = writer(Habits(direct=0.5, thinks=0.25, slip=0.0, skips=0.0))
    texts = [write(p, rng) for p in problems]
    assert 0.4 < sum(text.startswith("\\boxed") for text in texts) / 500 < 0.6
    assert 0.15 < sum(text.startswith("<think>") for text in texts) / 500 < 0.35


def test_skipping_leaves_out_every_other_step_and_keeps_the_last():
    from models.embedded.corpus import Habits, skip, writer

    assert skip("42+5=47") == "42+5=47"
    assert skip("6*7=42\n42+5=47") == "42+5=47"
    assert skip("a\nb\nc") == "a\nc"
    assert skip("a\nb\nc\nd") == "b\nd"
    problems = generate("train", 500, seed=3)
    write = writer(Habits(direct=0.0, thinks=1.0, slip=0.0, skips=0.75))
    rng = random.Random(0)
    shorter = [len(write(p, rng)) < len(FORMATS["think-boxed"].completion(p.solution, p.gold)) for p in problems]
    possible = sum("\n" in p.solution for p in problems)
    assert 0.69 < sum(shorter) / possible < 0.81  # 0.75 within three standard errors of 0.02


def test_training_is_seeded_and_learns():
    import torch

    from models.embedded.corpus import Habits, writer
    from models.embedded.pretrain import Schedule, Shape, batches, new_model, pretrain
    from models.embedded.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(p.question for p in generate("train", 500, seed=0))
    states, losses = [], []
    for _ in range(2):
        torch.manual_seed(3)
        model = new_model(Shape(hidden=64, layers=1, heads=2, kv_heads=1, mlp=64), tokenizer)
        pretrain(
            model,
            batches(tokenizer, writer(Habits(direct=0.0, thinks=1.0, slip=0.0, skips=0.0)), 8, seed=3),
            Schedule(steps=12, batch=8, lr=5e-3, matrix_lr=5e-3, warmup=2),
            lambda step, loss, seconds: losses.append(loss),
        )
        states.append(model.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert losses[0] == losses[1] < math.log(512)
