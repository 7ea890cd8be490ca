"""An engine in a process of its own, which takes its memory along when it ends, and knows nothing of this one's.

So files are loaded as whoever gets them will load them: from their folder alone, by a library that has seen no other
model of the run, whose engine stays as it is.
"""

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from models.engines.protocol import Completion, EngineError, Sampling, Tokens
from models.engines.start import Capacity, start_engine
from models.settings import Serving

# what a launcher tells the processes of a run; this one is none of them
LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")


class ApartEngine:
    """Completions from the checkpoint's own weights; the only part of the protocol that is of use there.

    Args:
        model: folder of the checkpoint.
        serving: `engine` says which kind, and `dtype` in which arithmetic; any name of a torch dtype will do.

    Raises:
        EngineError: it cannot start; of `generate`, too, where it ended.
    """

    def __init__(self, model: str, serving: Serving, capacity: Capacity) -> None:
        alone = multiprocessing.get_context("spawn")
        self._connection, theirs = alone.Pipe()
        self._process = alone.Process(target=_serve, args=(theirs, model, serving, capacity), daemon=True)
        with _found_first():
            self._process.start()
        theirs.close()
        self._answer(None)

    def generate(
        self,
        prompts: Sequence[Tokens],
        sampling: Sampling,
        seeds: Sequence[int] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        """See protocol.py."""
        with contextlib.suppress(BrokenPipeError):  # told where its answer is waited for
            self._connection.send((list(prompts), sampling, seeds))
        return self._answer(progress)

    def close(self) -> None:
        """End the process."""
        if self._process.is_alive():
            self._connection.close()
            self._process.join(timeout=30)
            self._process.kill()

    def _answer(self, progress: Callable[[int], None] | None) -> list[list[Completion]]:
        while True:
            try:
                what, value = self._connection.recv()
            except (EOFError, ConnectionResetError) as error:
                self._process.join(timeout=30)
                code = self._process.exitcode
                raise EngineError(
                    f"the process of the engine ended by itself (exit code {code}; out of memory?)"
                ) from error
            if what == "error":
                raise EngineError(value)
            if what == "done":
                return value
            if progress is not None:
                progress(value)


@contextlib.contextmanager
def _found_first() -> Iterator[None]:
    """Inside, a process that is started looks for these packages here before anywhere else: it is told what to run
    before it has imported what knows where they are (orchestra/__init__.py), and in its working directory there may be
    others of these names."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    try:
        yield
    finally:
        del sys.path[0]


def _serve(connection: Connection, model: str, serving: Serving, capacity: Capacity) -> None:
    for name in LAUNCHER:
        os.environ.pop(name, None)
    try:
        engine = start_engine(model, serving, capacity)
        connection.send(("done", []))
        while True:
            prompts, sampling, seeds = connection.recv()
            made = engine.generate(prompts, sampling, seeds, lambda count: connection.send(("progress", count)))
            connection.send(("done", made))
    except (EOFError, BrokenPipeError):  # nobody asks any more
        return
    except Exception as error:  # noqa: BLE001  (told to whoever asked)
        told = str(error) if getattr(error, "user_message", False) else f"{type(error).__name__}: {error}"
        connection.send(("error", told))
