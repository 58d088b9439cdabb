"""A token cache of streamed shards is that of the same shards on the disk."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from varlit.callbacks.token_writer import TokenWriter
from varlit.data.images import ImageDataModule
from varlit.data.tokens.manifest import Manifest, read_manifest
from varlit.errors import UserError
from varlit.models.config import TokenizerConfig
from varlit.models.vqvae import VQVAE

pytestmark = pytest.mark.filterwarnings("ignore")

CONFIG = TokenizerConfig(
    channels=32,
    channel_multipliers=(1, 1),
    num_res_blocks=1,
    codebook_size=16,
    codebook_dim=4,
    scales=(1, 2, 8),
)


class Encoder(LightningModule):
    """The part of a tokenizer's module that encoding asks for."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.averaged = VQVAE(CONFIG).eval()

    def predict_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Any]:
        tokens = self.averaged.encode(batch["image"])
        return {"tokens": tokens, **{key: batch[key] for key in ("label", "id", "crop")}}


def encode(root: str, folder: Path, **kwargs: Any) -> None:
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        default_root_dir=folder,
        callbacks=[TokenWriter(num_crops=2, shard_size=8, batch_size=4)],
        use_distributed_sampler=False,
        **kwargs,
    )
    data = ImageDataModule(root, image_size=16, batch_size=4, num_workers=0, max_bad_share=1)
    trainer.predict(Encoder(), datamodule=data, return_predictions=False)


def arrays(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "tokens").glob("*.npy")}


def manifest_of(folder: Path) -> Manifest:
    return read_manifest(folder / "tokens")


def test_the_same_bytes_come_from_the_stream_and_from_the_disk(
    make_shards: Any, shard_server: Any, tmp_path: Path
) -> None:
    shard_server.folder = make_shards((10, 7, 4), val=(3,))
    path = shard_server.folder / "train-000.tar"
    content = path.read_bytes()
    place = content.index(b"image0003.png") + 512
    path.write_bytes(content[:place] + b"not an image" + content[place + 12 :])
    encode(str(shard_server.folder), tmp_path / "disk")
    encode(shard_server.url, tmp_path / "stream")
    assert arrays(tmp_path / "stream") == arrays(tmp_path / "disk")
    manifest = manifest_of(tmp_path / "stream")
    assert (manifest.count("train"), manifest.skipped("train")) == (20, 1)
    assert manifest.count("val") == 3


def test_an_interrupted_cache_goes_on_past_a_lost_shard(
    make_shards: Any, shard_server: Any, tmp_path: Path
) -> None:
    shard_server.folder = make_shards((10, 7, 4), val=(3,))
    (shard_server.folder / "train-001.tar").unlink()
    encode(shard_server.url, tmp_path / "whole")
    assert (manifest_of(tmp_path / "whole").skipped("train")) == 7
    encode(shard_server.url, tmp_path / "cut", limit_predict_batches=6)
    with pytest.raises(UserError, match="unfinished"):
        manifest_of(tmp_path / "cut")
    shard_server.asked.clear()
    encode(shard_server.url, tmp_path / "cut")
    assert "train-000.tar" in shard_server.asked  # the second file needs its end
    assert arrays(tmp_path / "cut") == arrays(tmp_path / "whole")
