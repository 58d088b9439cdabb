"""Watchers of a run: pictures, progress, records, and the way out on Ctrl-C.

Callbacks with a cadence have `every_n_steps`, counted in optimizer steps, where 0 turns them off.
They draw and write in the first process only and leave the training's random stream alone.
"""

from varlit.callbacks.codebook import CodebookWatch
from varlit.callbacks.export import ExportWeights
from varlit.callbacks.guard import Guard
from varlit.callbacks.interrupt import SaveOnInterrupt
from varlit.callbacks.progress import Progress
from varlit.callbacks.reconstructions import Reconstructions
from varlit.callbacks.record import RunRecord, run_dir
from varlit.callbacks.samples import Samples

__all__ = [
    "CodebookWatch",
    "ExportWeights",
    "Guard",
    "Progress",
    "Reconstructions",
    "RunRecord",
    "Samples",
    "SaveOnInterrupt",
    "run_dir",
]
