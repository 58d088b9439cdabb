"""Stand-ins for the Lightning modules of both stages, and a trainer that is quick and quiet."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from varlit.data.digits import DigitsDataModule
from varlit.metrics.codebook import CodebookUsage
from varlit.ops.scales import Scales

SCALES = Scales((1, 2, 4))
NUM_CODES = 16


class FakeTokenizer(nn.Module):
    """Average pooling and dropout: enough to have tokens, weights and a training flag."""

    def __init__(self):
        super().__init__()
        self.scales = self.steps = SCALES
        self.gain = nn.Parameter(torch.ones(1))
        self.frozen_in_eval = nn.Dropout().eval()
        self.dropout = nn.Dropout(0.5)
        self.modes = []

    def forward(self, images):
        return self.gain * self.dropout(images)

    def encode(self, images):
        self.modes.append((self.training, torch.is_grad_enabled()))
        torch.rand(3)  # a network that uses the global stream
        maps = [nn.functional.adaptive_avg_pool2d(images[:, :1], s) for s in self.scales.sides]
        tokens = self.scales.merge([part.squeeze(1) for part in maps])
        return tokens.add(1).mul(NUM_CODES / 2).long().clamp(0, NUM_CODES - 1)

    def decode(self, tokens):
        return self.decode_prefix(tokens, self.scales.num_scales)

    def decode_prefix(self, tokens, k):
        part = self.scales.maps(tokens)[k - 1][:, None].float() / NUM_CODES * 2 - 1
        return nn.functional.interpolate(part.expand(-1, 3, -1, -1), size=32, mode="bilinear")


class FakeModule(LightningModule):
    """Both stages in one."""

    num_classes = 10
    next_command = "varlit tokenizer predict --name tok"

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = FakeTokenizer()
        self.asked = []
        self.validation_usage = CodebookUsage(SCALES, NUM_CODES)
        self.measures = SimpleNamespace(worst=None)

    @property
    def averaged(self):
        return self.network

    @property
    def tokenizer(self):
        return self.network

    def draw(self, labels, seed, cfg_scale, top_k, top_p):
        self.asked.append((labels.tolist(), seed, cfg_scale, self.training))
        torch.rand(5)
        frames = [torch.full((len(labels), 3, 32, 32), k / 3) for k in range(3)]
        return SimpleNamespace(images=frames[-1], tokens=None, frames=frames)

    def training_step(self, batch, batch_idx):
        loss = (self.network(batch["image"]) - batch["image"]).square().mean()
        self.log("loss/total", loss)
        return loss

    def on_validation_start(self):
        last = self.validation_usage
        self.validation_usage = CodebookUsage(last.scales, last.codebook_size)

    def validation_step(self, batch, batch_idx):
        self.validation_usage.update(self.network.encode(batch["image"]))
        self.log("val/quality/psnr", torch.tensor(21.5))

    test_step = validation_step

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return None

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def export(self, folder):
        (folder / "config.json").write_text("{}")


@pytest.fixture
def digits() -> LightningDataModule:
    return DigitsDataModule(batch_size=300)  # 5 steps an epoch


@pytest.fixture
def make_module():
    return FakeModule


@pytest.fixture
def make_trainer(tmp_path):
    """A trainer whose run is called `tok`."""

    def make(*callbacks, max_steps=5, **settings):
        defaults = {"num_sanity_val_steps": 0, "log_every_n_steps": 1}
        return Trainer(
            accelerator="cpu",
            max_steps=max_steps,
            logger=TensorBoardLogger(tmp_path, name="tok", version=""),
            callbacks=list(callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            **(defaults | settings),
        )

    return make


@pytest.fixture
def run(tmp_path):
    return tmp_path / "tok"
