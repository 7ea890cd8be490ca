"""The protocol leaves this process: an engine behind HTTP, by JSON and bytes alone, is served and checked unchanged."""

import json
from dataclasses import asdict
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import tiny
import torch

from models.adapters import adapter_files
from models.engines.protocol import AdapterFiles, Completion, EngineError, Sampling, Weight, Weights
from models.engines.serving import Served
from models.folding import folded_weights


class Remote:
    """An engine that holds nothing but an address."""

    kind, dtype, serves_adapters = "remote", torch.float32, False

    def __init__(self, address):
        self._address = address

    def _post(self, path, head, length=0, parts=()):
        """Send a line of JSON and then so many bytes, in parts that are made while they are sent."""
        line = json.dumps(head).encode() + b"\n"
        connection = HTTPConnection(*self._address, timeout=60)
        connection.putrequest("POST", path)
        connection.putheader("Content-Length", str(len(line) + length))
        connection.endheaders(line)
        for part in parts:
            connection.send(part)
        response = connection.getresponse()
        answer = json.loads(response.read())
        connection.close()
        if response.status != 200:
            raise EngineError(answer)
        return answer

    def generate(self, prompts, sampling, seeds=None, progress=None):
        groups = self._post("/generate", [prompts, asdict(sampling), seeds])
        return [[Completion(**completion) for completion in group] for group in groups]

    def score(self, prompts, completions):
        return self._post("/score", [prompts, completions])

    def sync_folded(self, weights):
        # all of it is known before the first tensor is made
        head = [(weight.name, weight.shape, str(weight.dtype).removeprefix("torch.")) for weight in weights.announced]
        length = sum(torch.Size(weight.shape).numel() * weight.dtype.itemsize for weight in weights.announced)
        parts = (tensor.contiguous().view(torch.uint8).numpy().tobytes() for _, tensor in weights)
        self._post("/weights", head, length, parts)

    def sync_adapter(self, adapter):
        self._post("/adapter", len(adapter.config), len(adapter.config + adapter.tensors), vars(adapter).values())


class Handler(BaseHTTPRequestHandler):
    """The other side: takes the same calls apart and makes them of the server's `engine`."""

    def do_POST(self):
        head = json.loads(self.rfile.readline())
        try:
            status, answer = 200, getattr(self, self.path[1:])(head)
        except EngineError as error:
            status, answer = 409, str(error)
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

    def generate(self, head):
        prompts, sampling, seeds = head
        sampling["stop_token_ids"] = tuple(sampling["stop_token_ids"])
        groups = self.server.engine.generate(prompts, Sampling(**sampling), seeds)
        return [[asdict(completion) for completion in group] for group in groups]

    def score(self, head):
        return self.server.engine.score(*head)

    def weights(self, head):
        announced = [(name, tuple(shape), getattr(torch, dtype)) for name, shape, dtype in head]
        self.server.engine.sync_folded(
            Weights(tuple(Weight(*one, lambda one=one: self._read(*one[1:])) for one in announced))
        )

    def _read(self, shape, dtype):
        self.server.read += 1
        raw = self.rfile.read(torch.Size(shape).numel() * dtype.itemsize)
        return torch.frombuffer(bytearray(raw), dtype=dtype).reshape(shape)

    def adapter(self, length):
        config = self.rfile.read(length)
        rest = int(self.headers["Content-Length"]) - length - len(json.dumps(length)) - 1
        self.server.engine.sync_adapter(AdapterFiles(config, self.rfile.read(rest)))


@pytest.fixture
def behind():
    """behind(engine): serves it on this machine; gives the server and the engine that talks to it."""
    servers = []

    def start(engine):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.engine, server.read = engine, 0
        servers.append(server)
        Thread(target=server.serve_forever, daemon=True).start()
        return server, Remote(server.server_address)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_policy_is_served_over_http(behind, transformers_engine, tiny_path, tokenizer):
    server, remote = behind(transformers_engine)
    prompts = tiny.tokens(tokenizer, tiny.prompts(tokenizer))
    sampling = tiny.sampling(16, n=2, logprobs=True, stop_token_ids=tiny.MORE_ENDS)
    served = Served(remote, "folded", tiny.probe(tokenizer))
    model = tiny.policy(tiny_path)
    for _ in range(2):
        served.push(model)
        assert served.mismatch < 1e-4
        groups, scores = remote.generate(prompts, sampling, [1, 2, 3, 4, 5, 6]), remote.score(prompts, prompts[::-1])
        # the same without the way over HTTP
        transformers_engine.sync_folded(folded_weights(model))
        assert transformers_engine.generate(prompts, sampling, [1, 2, 3, 4, 5, 6]) == groups
        assert transformers_engine.score(prompts, prompts[::-1]) == scores
        tiny.nudge(model, 0.1)
    assert server.read == 2 * len(folded_weights(model).announced)


def test_a_stale_engine_is_noticed_over_http(behind, transformers_engine, tiny_path, tokenizer):
    class Deaf:
        score = staticmethod(transformers_engine.score)

        def sync_folded(self, weights):
            list(weights)

    with pytest.raises(EngineError, match="the remote engine does not serve the policy"):
        Served(behind(Deaf())[1], "folded", tiny.probe(tokenizer)).push(tiny.policy(tiny_path))


def test_an_adapter_arrives_to_the_byte(behind, transformers_engine, tiny_path):
    class Listening:
        heard = ()

        def sync_adapter(self, adapter):
            self.heard += (adapter,)

    listening, sent = Listening(), adapter_files(tiny.policy(tiny_path))
    behind(listening)[1].sync_adapter(sent)
    assert listening.heard == (sent,)
    with pytest.raises(EngineError, match=r"rollouts\.sync"):
        behind(transformers_engine)[1].sync_adapter(sent)
