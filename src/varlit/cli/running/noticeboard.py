"""What the processes of a run tell each other outside of the collectives.

It is torch's own key-value store, the one that the processes found each other by, through a
connection of its own: a process that waits in a collective can still be told that it waits in vain.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import timedelta

import torch.distributed as dist

_ANSWER_S = 10
_FAILURE = "failure"


@dataclass(frozen=True)
class Failure:
    """Why a run ends.

    Attributes:
        rank: The process that failed.
        said: Its error in one line.
        exit_code: What all processes leave with.
    """

    rank: int
    said: str
    exit_code: int = 1


class Noticeboard:
    """Failures, heartbeats and farewells of all processes.

    Any method raises torch's DistError once the process that keeps the store, the first one or
    torchrun's agent, is gone.
    """

    def __init__(self) -> None:
        """Connect; torch.distributed must be initialised by its environment variables."""
        self.rank, self.num_ranks = dist.get_rank(), dist.get_world_size()
        place = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        store = dist.TCPStore(*place, is_master=False, timeout=timedelta(seconds=_ANSWER_S))
        # The store of torchrun outlives an attempt, and what it says about the last one is over.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._store = dist.PrefixStore(f"varlit/{attempt}", store)

    def post(self, failure: Failure) -> Failure:
        """Post a failure and return the first that was posted, by whomever."""
        text = self._store.compare_set(_FAILURE, "", json.dumps(asdict(failure)))
        return Failure(**json.loads(text))

    def failure(self) -> Failure | None:
        """Return what was posted; never waits for it."""
        if not self._store.check([_FAILURE]):
            return None
        return Failure(**json.loads(self._store.get(_FAILURE)))

    def beat(self) -> None:
        """Show that this process is alive."""
        self._store.add(f"beats/{self.rank}", 1)

    def beats(self) -> list[int]:
        """Return how often each process has shown that it is alive."""
        return [self._store.add(f"beats/{rank}", 0) for rank in range(self.num_ranks)]

    def leave(self) -> None:
        """Say that this process is done, so that nobody wonders where it is."""
        self._store.add(f"left/{self.rank}", 1)

    def have_left(self, ranks: Iterable[int]) -> bool:
        """Whether all of these are done."""
        return bool(self._store.check([f"left/{rank}" for rank in ranks]))
