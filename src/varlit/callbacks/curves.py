"""TensorBoard's curves, written so that a full disk costs no training and no curve."""

from __future__ import annotations

import itertools
import os
import socket
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.core.saving import save_hparams_to_yaml
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from varlit.disks import may_be_lost, whole_file

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
    from torch.utils.tensorboard import SummaryWriter

FLUSH_S = 120.0
HELD_BYTES = 2**24
"""What is kept in memory at most while the disk refuses; then pictures and numbers are dropped."""
_NUMBERS = itertools.count()


class EventFile:
    """A file of events, as tensorboard's EventFileWriter is one, but for what it does in need.

    That one writes in a thread, which dies of a full disk and takes the training with it at the
    next number. This one keeps what was refused and writes it once there is room.
    """

    def __init__(self, folder: str) -> None:
        """Plan the file; it appears with its first events."""
        # Not at the top: the command line needs this module for a --help too.
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

        name = f"{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}.{next(_NUMBERS)}"
        self.path = Path(folder) / f"events.out.tfevents.{name}"
        self._folder = folder
        self._held = bytearray()
        self._records = RecordWriter(self)
        self._written_s = time.monotonic()
        self.num_events = self.num_dropped = 0
        header = Event(wall_time=time.time(), file_version="brain.Event:2")
        self._records.write(header.SerializeToString())

    def get_logdir(self) -> str:
        """The folder, as torch's FileWriter asks for it."""
        return self._folder

    def add_event(self, event: Event) -> None:
        """Take an event; what would exceed the room in memory is dropped."""
        content = event.SerializeToString()
        if len(self._held) + len(content) > HELD_BYTES:
            self.flush()
        if len(self._held) + len(content) > HELD_BYTES:
            self.num_dropped += 1
            return
        self._records.write(content)
        self.num_events += 1
        if time.monotonic() - self._written_s > FLUSH_S:
            self.flush()

    def write(self, content: bytes) -> None:
        """Take the bytes of a record, from the RecordWriter."""
        self._held += content

    def flush(self) -> None:
        """Write what is held: all of it, or nothing and a warning once."""
        self._written_s = time.monotonic()
        if not self.num_events or not self._held:
            return  # a start that is refused leaves no file without events
        with may_be_lost("curves", self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            before = self.path.stat().st_size if self.path.exists() else 0
            try:
                with self.path.open("ab") as file:
                    file.write(self._held)
            except OSError:
                if self.path.exists():
                    os.truncate(self.path, before)  # a reader stops at the first half record
                raise
            self._held.clear()

    def close(self) -> None:
        """Write the rest; say if some of it is lost for good."""
        self.flush()
        if (self.num_events and self._held) or self.num_dropped:
            warnings.warn(
                f"{self.path} lacks curves that the disk has refused; metrics.jsonl holds the "
                "numbers that it could take",
                stacklevel=2,
            )


class Curves(TensorBoardLogger):
    """Lightning's TensorBoardLogger with files that outlive a full disk."""

    @property
    @rank_zero_experiment
    def experiment(self) -> SummaryWriter:
        """TensorBoard's writer; that of other processes does nothing."""
        if self._experiment is None:
            self._experiment = open_writer(self.log_dir)
        return self._experiment

    @rank_zero_only
    def save(self) -> None:
        """Bring the curves to the disk, and the hyperparameters to hparams.yaml."""
        self.experiment.flush()
        path = Path(self.log_dir) / self.NAME_HPARAMS_FILE
        if not path.exists():
            with may_be_lost("hyperparameters", path), whole_file(path) as temporary:
                save_hparams_to_yaml(str(temporary), self.hparams)


def open_writer(folder: str) -> SummaryWriter:
    """Open torch's SummaryWriter over an `EventFile`."""
    from torch.utils.tensorboard import FileWriter, SummaryWriter

    class OwnFile(FileWriter):
        def __init__(self, log_dir: str) -> None:
            self.event_writer = EventFile(log_dir)

    class OwnWriter(SummaryWriter):
        file_writer: Any
        all_writers: Any

        def _get_file_writer(self) -> Any:
            if self.all_writers is None:
                self.file_writer = OwnFile(str(self.log_dir))
                self.all_writers = {self.file_writer.get_logdir(): self.file_writer}
            return self.file_writer

    return OwnWriter(log_dir=folder)
