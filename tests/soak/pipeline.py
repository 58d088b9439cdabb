"""The digits pipeline at toy size: tokenizer with its game, token cache, VAR with averages, FID."""

import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

TOKENIZER, VAR = "tokenizer-soak", "var-soak"
NETWORK = "toy.pt"

# All that draws or remembers is on: codes, dropouts, distortions, penalties, averages. No number of
# steps divides the others, so that kills find counts half done.
TOKENIZER_RECIPE = """\
model:
  tokenizer: {{channel_multipliers: [1, 1, 1], num_res_blocks: 1, dropout: 0.1, codebook_size: 64}}
  codebook: {{init: kmeans, restart_below: 0.5, dropout: 0.5, dropout_min_scales: 1}}
  loss:
    disc_weight: 0.4
    disc_start: 0.2
    disc_warmup: 0.2
    disc_augment: [translation, cutout]
    lecam_decay: 0.5
  discriminator: {{channels: 32, num_layers: 1}}
data:
  class_path: DigitsDataModule
  init_args: {{batch_size: 16, image_size: 16}}
trainer:
  max_epochs: {epochs}
  limit_train_batches: {epoch_steps}
  limit_val_batches: 3
  log_every_n_steps: 5
  check_val_every_n_epoch: 1
checkpoint: {{every_n_steps: 4, keep_best: val/psnr, keep_best_mode: max}}
reconstructions: {{every_n_steps: 10}}
"""
VAR_RECIPE = f"""\
model:
  var: {{{{depth: 2, width: 32, drop_path: 0.1}}}}
  optim: {{{{optimizer: muon, ema_decay: 0.9, grad_clip: 0.5}}}}
data: {{{{tokens: {TOKENIZER}, batch_size: 64}}}}
trainer:
  max_epochs: {{epochs}}
  limit_train_batches: {{epoch_steps}}
  limit_val_batches: 2
  log_every_n_steps: 5
  check_val_every_n_epoch: 1
checkpoint: {{{{every_n_steps: 4}}}}
samples: {{{{every_n_steps: 20}}}}
fid:
  every_n_steps: 11
  num_images: 40
  batch_size: 20
  network: torchscript
  weights: {NETWORK}
"""


@dataclass(frozen=True)
class Stage:
    """One command of the pipeline."""

    name: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Size:
    """How long the trainings are.

    Attributes:
        epochs: Of each stage.
        epoch_steps: Steps of an epoch, fewer than the digits would give; 0 = all.
    """

    epochs: int = 3
    epoch_steps: int = 9


# No recipe can vouch for a program.
_TRUST = ("--fid.trust_torchscript", "true")
STAGES = (
    Stage("tokenizer fit", ("tokenizer", "fit", "-c", "digits", "-c", "tokenizer.yaml")),
    Stage("tokenizer predict", ("tokenizer", "predict")),
    Stage("var fit", ("var", "fit", "-c", "digits", "-c", "var.yaml", *_TRUST)),
    Stage("evaluate", ("evaluate", VAR, "--device", "cpu")),
)
_RUNS = {"tokenizer": TOKENIZER, "var": VAR}
_EVALUATE = (
    *("--network", "torchscript", "--weights", NETWORK, "--trust_torchscript"),
    *("--reference", "data:val", "--reference_workers", "1"),
    *("--quick", "200", "--batch_size", "10", "--save_every_s", "0"),
)


def words_of(stage: Stage) -> list[str]:
    """The whole command line of a stage; it is the same at each start."""
    if stage.words[0] == "evaluate":
        return [*stage.words, *_EVALUATE]
    return [*stage.words, "--name", _RUNS[stage.words[0]], "--gpus", "0"]


def prepare(folder: Path, size: Size) -> None:
    """Write the recipes and a feature network into a folder to run the pipeline in."""
    folder.mkdir(parents=True)
    length = {"epochs": size.epochs, "epoch_steps": size.epoch_steps or 1.0}
    (folder / "tokenizer.yaml").write_text(TOKENIZER_RECIPE.format(**length))
    (folder / "var.yaml").write_text(VAR_RECIPE.format(**length))
    shutil.copy(_network(folder.parent), folder)


def _network(folder: Path) -> Path:
    """A file with a feature network, the mean ink of 8x8 cells; no two traced ones are alike."""
    path = folder / NETWORK
    if not path.exists():
        network = torch.nn.Sequential(_Ink(), torch.nn.AdaptiveAvgPool2d(8), torch.nn.Flatten())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated, and what users have
            example = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
            torch.jit.trace(network, example).save(str(path))
    return path


class _Ink(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, :1].float()
