"""One run on several processes (`torchrun`, `accelerate launch`): work is shared out, one process writes a file, and
the outcome is that of one process.

What the processes tell each other here goes through the launcher's key-value store. A wait there has no timeout (an
export may take hours, a collective gives up after half an hour), ends at a signal, and asks nothing of a GPU. When a
process dies the launcher ends the others. All processes call the same methods in the same order.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Self, TypeVar

if TYPE_CHECKING:
    from torch.distributed import Store

T = TypeVar("T")

# the collectives of training: a process may be slower than another by a whole step's rollouts
COLLECTIVE_TIMEOUT = timedelta(days=1)
# to find the launcher's store
CONNECT_TIMEOUT = timedelta(seconds=60)
# the store refuses values of more than 8 MiB
PIECE = 2**22
SHORTEST_SLEEP, LONGEST_SLEEP = 0.001, 0.1


def rank() -> int:
    """This process's number, as the launcher says; 0 is the first, which writes."""
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    """Number of processes in this run, as the launcher says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def here() -> int:
    """Number of the run's processes on this machine, as the launcher says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", count()))


class Processes:
    """The processes of a run, seen from one of them; made without arguments, this one alone.

    Attributes:
        rank, count: this one's number, and how many there are.
    """

    def __init__(self, number: int = 0, count: int = 1, store: Store | None = None) -> None:
        self.rank, self.count = number, count
        self._store = store
        self._round = 0
        self._keys: list[str] = []

    @classmethod
    def join(cls) -> Self:
        """Those that the launcher started. Takes torch along only where there are several."""
        if count() == 1:
            return cls()
        import torch
        from accelerate import PartialState

        joined = cls(rank(), count(), _launchers_store())
        if not torch.cuda.is_available():
            # accelerate says cpu:1 of the second one otherwise, for which torch.load, at a resume, knows no place
            os.environ.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")
        # before vLLM or a trainer makes the process group, which then would not wait as long
        PartialState(cpu=not torch.cuda.is_available(), timeout=COLLECTIVE_TIMEOUT)
        return joined

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """The values of all processes in the order of their ranks, on every process."""
        if self._store is None:
            return [value]
        self._round += 1
        before, self._keys = self._keys, []
        self._put(pickle.dumps(value))
        values = [value if rank == self.rank else pickle.loads(self._get(rank)) for rank in range(self.count)]
        # whoever is in this round has read all of the one before
        for key in before:
            self._store.delete_key(key)
        return values

    def wait(self) -> None:
        """Until all processes are here."""
        self.gather(None)

    def once(self, work: Callable[[], T]) -> T:
        """What the first process's `work` gives, on every process; the others wait for it, however long it takes."""
        return self.gather(work() if self.first else None)[0]

    def shared(self, pieces: int, work: Callable[[Sequence[int]], Sequence[T]]) -> list[T]:
        """The results of so many pieces of work, in their order, on every process; each is done by one of them.

        Args:
            work: takes the numbers of this process's pieces and gives a result for each.
        """
        own = range(self.rank, pieces, self.count)
        parts = self.gather(list(work(own)) if own else [])
        return [parts[piece % self.count][piece // self.count] for piece in range(pieces)]

    def _put(self, data: bytes) -> None:
        """The pieces, then their number: where that is found the rest is too."""
        name = f"{self._round}/{self.rank}"
        pieces = [data[start : start + PIECE] for start in range(0, len(data), PIECE)]
        for at, piece in enumerate(pieces):
            self._store.set(f"{name}/{at}", piece)
        self._store.set(name, str(len(pieces)))
        self._keys = [name, *(f"{name}/{at}" for at in range(len(pieces)))]

    def _get(self, rank: int) -> bytes:
        name, sleep = f"{self._round}/{rank}", SHORTEST_SLEEP
        while not self._store.check([name]):
            time.sleep(sleep)
            sleep = min(2 * sleep, LONGEST_SLEEP)
        return b"".join(self._store.get(f"{name}/{at}") for at in range(int(self._store.get(name))))


def first_to_tell() -> bool:
    """Whether this process is the first of its run that asks, and so says why the run ends: what ends the others only
    follows from that. Asked again, the answer is the same."""
    if count() == 1 or "MASTER_ADDR" not in os.environ:  # the number alone, as for a plan
        return rank() == 0
    from torch.distributed import DistError

    try:
        return _launchers_store().compare_set("told", "", str(rank())) == str(rank()).encode()
    except DistError:  # the launcher is gone, and its store with it
        return rank() == 0


def _launchers_store() -> Store:
    from torch.distributed import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://", timeout=CONNECT_TIMEOUT))
    return PrefixStore("orchestra", store)
