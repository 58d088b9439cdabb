"""The loader of a stream: goes on where a run stopped, on the same number of processes."""

from __future__ import annotations

import warnings

from varlit.data.bad_files import BadFiles
from varlit.data.loader import ResumableLoader
from varlit.data.order import BatchSampler
from varlit.data.stream_source import NUM_SPARES, StreamedBatches, StreamSource


class StreamLoader(ResumableLoader):
    """Batches of a stream in a sampler's order, with a position that checkpoints keep.

    A run goes on exactly where it stopped, also with another number of workers. The order depends
    on the number of processes and on the shuffle buffer: with others the epoch starts anew.

    Args:
        source: The stream.
        sampler: The order.
        num_workers: Worker processes, which decode.
        bad_files: Where skipped files are counted; None lets them pass.
        world_size: Number of processes.
        shuffle_buffer: Images that wait in memory.
    """

    def __init__(
        self,
        source: StreamSource,
        sampler: BatchSampler,
        num_workers: int = 0,
        bad_files: BadFiles | None = None,
        world_size: int = 1,
        shuffle_buffer: int = 0,
    ) -> None:
        num_spares = NUM_SPARES if source.handling.broken == "replace" else 0
        batches = StreamedBatches(sampler, source.shards, num_spares)
        super().__init__(source, batches, num_workers, bad_files)
        self._order_depends_on = {"world_size": world_size, "shuffle_buffer": shuffle_buffer}

    def state_dict(self) -> dict[str, int]:
        """Return the position, and what the order depends on, as plain integers."""
        return super().state_dict() | self._order_depends_on

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a saved position; start the epoch anew where its order has changed.

        Raises:
            UserError: If steps of another size cannot go on from there.
        """
        now = self._order_depends_on
        changed = [name for name in now if state.get(name, now[name]) != now[name]]
        if changed and 0 < state["samples_seen"] < state["epoch_samples"]:
            was = " and ".join(f"{name} {state[name]} (now {now[name]})" for name in changed)
            warnings.warn(
                f"the checkpoint was made with {was}, which changes the order of streamed shards: "
                "the interrupted epoch starts anew.",
                stacklevel=2,
            )
            state = state | {"samples_seen": 0}
        super().load_state_dict(state)
