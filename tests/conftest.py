"""Shared by all tests: the tiny model, its tokenizer, and one vLLM engine for the whole process (start-up is dear)."""

import os

import pytest

# before any library reads them: nothing here may reach for a network
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# spinning OpenMP threads would starve each other on a busy machine
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory):
    """Folder of a tiny random Qwen2 with untied embeddings."""
    import tiny

    return tiny.write_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tied_path(tmp_path_factory):
    """The same with tied embeddings."""
    import tiny

    return tiny.write_checkpoint(tmp_path_factory.mktemp("models") / "tied", tied=True)


@pytest.fixture(scope="session")
def tokenizer(tiny_path):
    from models.base import load_tokenizer

    return load_tokenizer(str(tiny_path))


# only the process's end may close one of several vLLM engines: they live on the same process groups
KEPT_ALIVE = []


def _start(kind, path, capacity=None):
    from models.engines.start import Capacity, start_engine
    from models.settings import Serving

    capacity = capacity or Capacity(max_model_len=192, max_num_seqs=64)
    return start_engine(str(path), Serving(engine=kind, dtype="float32"), capacity)


@pytest.fixture(scope="session")
def vllm_engine(tiny_path):
    """vLLM on the tiny model. Whoever uses it pushes weights first: it serves what the test before it left."""
    pytest.importorskip("vllm", reason="vLLM is not installed here")
    engine = _start("vllm", tiny_path)
    yield engine
    engine.close()


@pytest.fixture
def own_engine():
    """Starts a further vLLM engine in this process, on a model of the test's own."""
    pytest.importorskip("vllm", reason="vLLM is not installed here")

    def start(path, capacity=None):
        KEPT_ALIVE.append(_start("vllm", path, capacity))
        return KEPT_ALIVE[-1]

    return start


@pytest.fixture(scope="module")
def engine(tiny_path):
    """The same kind for all tests of a file; whoever asks it has pushed a policy."""
    started = _start("transformers", tiny_path)
    yield started
    started.close()


@pytest.fixture
def transformers_engine(tiny_path):
    """transformers' own generate on the tiny model."""
    engine = _start("transformers", tiny_path)
    yield engine
    engine.close()
