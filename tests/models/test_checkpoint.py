"""A checkpoint's files one tensor at a time: what is written is what safetensors and transformers read."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import large
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from models.base import load_base, skeleton
from models.checkpoint import INDEX, SINGLE, Checkpoint, bytes_of, write_shards
from models.engines.protocol import Weight

ROOT = Path(__file__).parents[2]


def weight(name, tensor):
    return Weight(name, tuple(tensor.shape), tensor.dtype, lambda: tensor)


def sharded(path, folder, size="100KB"):
    """The same model in several files."""
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(path).save_pretrained(folder, max_shard_size=size)
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_safetensors_reads_what_was_written(tmp_path, dtype):
    tensors = {
        "odd": torch.arange(15).reshape(3, 5).to(dtype), "empty": torch.zeros(0, 4, dtype=dtype),
        "one": torch.tensor(1.5, dtype=dtype), "a/\u00e9": torch.full((2,), -0.0, dtype=dtype),
        "turned": torch.arange(6).reshape(2, 3).to(dtype).T,
    }  # fmt: skip
    write_shards(tmp_path, {SINGLE: [weight(name, tensor) for name, tensor in tensors.items()]})
    read = load_file(tmp_path / SINGLE)
    assert read.keys() == tensors.keys() and not (tmp_path / INDEX).exists()
    for name, tensor in tensors.items():
        assert read[name].dtype == dtype and torch.equal(read[name], tensor), name
    assert bytes_of([weight("x", tensors["odd"])]) == 15 * dtype.itemsize


def test_several_files_keep_their_names_and_an_index(tiny_path, tmp_path):
    from transformers import AutoModelForCausalLM

    source = sharded(tiny_path, tmp_path / "source")
    found = Checkpoint.of(str(source), skeleton(str(source)))
    assert len(found.files) > 2
    shards = {
        file: [weight(name, found.read(file, name).to(torch.bfloat16)) for name in names]
        for file, names in found.files.items()
    }
    copy = tmp_path / "copy"
    copy.mkdir()
    write_shards(copy, shards)
    ours, theirs = (json.loads((one / INDEX).read_text()) for one in (copy, source))
    assert ours["weight_map"] == theirs["weight_map"]
    assert ours["metadata"]["total_size"] == 2 * ours["metadata"]["total_parameters"]
    (copy / "config.json").write_text((source / "config.json").read_text())
    plain = dict(load_base(str(tiny_path), "none", "float32").named_parameters())
    read = AutoModelForCausalLM.from_pretrained(copy, dtype=torch.bfloat16)
    for name, value in read.named_parameters():
        assert torch.equal(value, plain[name].to(torch.bfloat16)), name


def contents(path):
    found = Checkpoint.of(str(path), skeleton(str(path)))
    return {name: found.read(file, name) for file, names in found.files.items() for name in names}


def renamed(path, folder, **names):
    """The same checkpoint with other tensors in its file."""
    folder.mkdir()
    tensors = load_file(path / SINGLE) | names
    save_file({name: value for name, value in tensors.items() if value is not None}, folder / SINGLE, {"format": "pt"})
    (folder / "config.json").write_text((path / "config.json").read_text())
    return folder


def test_what_the_model_does_not_have_is_left_out(tied_path, tmp_path):
    """A head beside the embedding that it is tied to, and a buffer of an older version: an engine would load them."""
    plain = contents(tied_path)
    more = renamed(
        tied_path, tmp_path / "more",
        **{"lm_head.weight": torch.zeros(tiny.VOCABULARY, tiny.HIDDEN), "model.rotary.inv_freq": torch.zeros(3)},
    )  # fmt: skip
    found = contents(more)
    assert found.keys() == plain.keys() and "lm_head.weight" not in found
    assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_other_files_and_other_names_are_loaded_whole(tiny_path, tmp_path):
    plain = contents(tiny_path)
    tensors = load_file(tiny_path / SINGLE)
    binary = tmp_path / "binary"
    binary.mkdir()
    torch.save(tensors, binary / "pytorch_model.bin")
    (binary / "config.json").write_text((tiny_path / "config.json").read_text())
    # as a model without a head is saved: transformers finds the names' beginning by itself
    bare = {name.removeprefix("model."): value for name, value in tensors.items() if name != "lm_head.weight"}
    config = json.loads((tiny_path / "config.json").read_text())
    headless = tmp_path / "headless"
    headless.mkdir()
    save_file(bare, headless / SINGLE, {"format": "pt"})
    (headless / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    for folder, missing in ((binary, set()), (headless, {"lm_head.weight"})):
        found = contents(folder)
        assert found.keys() == plain.keys() - missing
        assert all(torch.equal(found[name], plain[name]) for name in found)


def test_a_full_disk_is_an_error_not_a_short_file(tmp_path):
    """A limit on the size of files stands for the disk."""
    weights = [weight(f"layer {i}", torch.zeros(1000)) for i in range(100)]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            write_shards(tmp_path, {SINGLE: weights})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)


MERGE = """
import sys, resource
from pathlib import Path
import torch
from models.merge import merged_shards, write_merged
from models.settings import Model
base, adapter, folder, kind = sys.argv[1:]
model = Model(base=base, dtype="bfloat16")
write_merged(model, merged_shards(model, Path(adapter), torch.bfloat16, kind), Path(folder), torch.bfloat16)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("base", ["dequantized", "original"])
def test_a_billion_parameters_take_less_than_their_largest_shard_and_a_gigabyte(tmp_path, base):
    """A random model of Llama 3.2 1B's shape, in two shards, as a process of its own measures it."""
    path, adapter = large.write(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", MERGE, str(path), str(adapter), str(tmp_path / "merged"), base],
        capture_output=True, text=True, timeout=900, cwd=ROOT, env=os.environ | {"MALLOC_ARENA_MAX": "2"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    largest = max(file.stat().st_size for file in path.glob("*.safetensors"))
    total = sum(file.stat().st_size for file in (tmp_path / "merged").glob("*.safetensors"))
    assert total > 1.9e9 and int(done.stdout.splitlines()[-1]) < largest + 2**30
