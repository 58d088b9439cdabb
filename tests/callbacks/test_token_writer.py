from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from varlit.callbacks.token_writer import TokenWriter
from varlit.data.digits import DigitsDataModule
from varlit.data.module import LabelledImageDataModule
from varlit.data.tokens.manifest import Manifest, read_manifest
from varlit.data.tokens.module import TokenDataModule
from varlit.data.tokens.reader import open_tokens
from varlit.errors import UserError
from varlit.models.config import TokenizerConfig
from varlit.models.files import load_tokenizer, tokenizer_hash
from varlit.models.vqvae import VQVAE

CONFIG = TokenizerConfig(
    channels=32,
    channel_multipliers=(1, 1),
    num_res_blocks=1,
    codebook_size=16,
    codebook_dim=4,
    scales=(1, 2, 4),
)


class Encoder(LightningModule):
    """The part of a tokenizer's module that encoding asks for."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.averaged = VQVAE(CONFIG).eval()

    def predict_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Any]:
        tokens = self.averaged.encode(batch["image"])
        return {"tokens": tokens, **{key: batch[key] for key in ("label", "id", "crop")}}


class FewDigits(DigitsDataModule):
    """The first digits only, and no file that could tell."""

    def source(self, split: Any) -> Any:
        source = super().source(split)
        size = {"train": 20, "val": 6}[split]
        source.images, source.labels = source.images[:size], source.labels[:size]
        return source


def predict(
    folder: Path,
    module: LightningModule | None = None,
    data: LightningDataModule | None = None,
    writer: TokenWriter | None = None,
    **kwargs: Any,
) -> None:
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        default_root_dir=folder,
        callbacks=[writer or TokenWriter(shard_size=8, batch_size=4)],
        use_distributed_sampler=False,
        **kwargs,
    )
    data = data or FewDigits(batch_size=4, image_size=8)
    trainer.predict(module or Encoder(), datamodule=data, return_predictions=False)


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.filterwarnings("ignore")
def test_the_cache_holds_what_the_tokenizer_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = Encoder()
    predict(tmp_path, module)
    folder = tmp_path / "tokens"
    manifest = read_manifest(folder)
    assert (manifest.count("train"), manifest.count("val")) == (20, 6)
    assert manifest.spec.tokenizer_hash == tokenizer_hash(module.averaged)
    assert manifest.spec.scales == CONFIG.scales
    assert tokenizer_hash(load_tokenizer(folder / "tokenizer")) == manifest.spec.tokenizer_hash
    images = FewDigits(image_size=8).source("val").images
    cached = np.load(folder / "val-00000.tokens.npy")[:, 0]
    assert np.array_equal(cached, module.averaged.encode(images).numpy())
    assert len(np.unique(cached, axis=0)) > 1
    written = capsys.readouterr().out
    assert f"cached 20 train + 6 val images (0 skipped), 21 tokens each, 0.0 MiB in {folder}" in (
        written
    )
    data = TokenDataModule(str(folder), batch_size=10)
    data.setup("fit")
    assert sum(len(batch["label"]) for batch in data.train_dataloader()) == 20


@pytest.mark.filterwarnings("ignore")
def test_an_interrupted_run_goes_on_and_ends_with_the_same_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict(tmp_path / "whole")
    predict(tmp_path / "cut", limit_predict_batches=3)
    assert "lacks 2 shard(s), such as train-00001: run the same command again" in (
        capsys.readouterr().out
    )
    with pytest.raises(UserError, match="unfinished"):
        read_manifest(tmp_path / "cut" / "tokens")
    predict(tmp_path / "cut")
    assert contents(tmp_path / "cut" / "tokens") == contents(tmp_path / "whole" / "tokens")


@pytest.mark.filterwarnings("ignore")
def test_a_finished_cache_is_left_alone_but_for_its_manifest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict(tmp_path)
    folder = tmp_path / "tokens"
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.npy")}
    (folder / "manifest.json").unlink()
    capsys.readouterr()
    predict(tmp_path)
    assert capsys.readouterr().out.count("cached 20 train") == 1
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.npy")} == before
    assert isinstance(read_manifest(folder), Manifest)


@pytest.mark.filterwarnings("ignore")
def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    predict(tmp_path)
    with pytest.raises(UserError, match="was made by tokenizer"):
        predict(tmp_path, Encoder(seed=1))


@pytest.mark.filterwarnings("ignore")
def test_crops_are_cached_side_by_side(tmp_path: Path) -> None:
    predict(tmp_path, writer=TokenWriter(str(tmp_path / "elsewhere"), num_crops=3, shard_size=8))
    folder = tmp_path / "elsewhere"
    assert np.load(folder / "train-00001.tokens.npy").shape == (8, 3, 21)
    assert np.load(folder / "val-00000.tokens.npy").shape == (6, 1, 21)
    assert open_tokens(folder, "train").num_crops == 3


class WithViews(FewDigits):
    """Digits that say that their views differ."""

    has_random_views = True


@pytest.mark.filterwarnings("ignore")
def test_ten_random_crops_are_the_default_where_views_differ(tmp_path: Path) -> None:
    predict(tmp_path / "ten", data=WithViews(image_size=8))
    assert read_manifest(tmp_path / "ten" / "tokens").spec.num_crops == {"train": 10, "val": 1}
    predict(tmp_path / "one")
    assert read_manifest(tmp_path / "one" / "tokens").spec.num_crops == {"train": 1, "val": 1}


def test_crops_that_are_all_alike_are_written_with_a_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="num_crops 2 writes the same tokens so many times"):
        predict(tmp_path, writer=TokenWriter(num_crops=2, shard_size=8))
    assert np.load(tmp_path / "tokens" / "train-00000.tokens.npy").shape == (8, 2, 21)


@pytest.mark.filterwarnings("ignore")
def test_no_file_depends_on_the_loaders_batches_or_the_threads_of_before(tmp_path: Path) -> None:
    predict(tmp_path / "a", data=FewDigits(batch_size=3, image_size=8))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        predict(tmp_path / "b", data=FewDigits(batch_size=20, image_size=8))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert contents(tmp_path / "a" / "tokens") == contents(tmp_path / "b" / "tokens")
    assert "by 1 process(es)" in (tmp_path / "a" / "tokens.log").read_text()


@pytest.mark.filterwarnings("ignore")
def test_the_manifest_says_how_images_were_read_and_tokens_rounded(tmp_path: Path) -> None:
    predict(tmp_path, data=DigitsDataModule(batch_size=4, image_size=8, seed=3))
    manifest = read_manifest(tmp_path / "tokens")
    assert manifest.data == {
        "class_path": "varlit.data.digits.DigitsDataModule",
        "init_args": {"image_size": 8, "seed": 3},
    }
    encoder = manifest.spec.encoder
    assert (encoder["dtype"], encoder["tf32"], encoder["deterministic"]) == ("float32", False, True)
    assert encoder["torch"] == torch.__version__
    assert encoder["device"].startswith("cpu ")


@pytest.mark.filterwarnings("ignore")
def test_data_that_are_no_images_are_refused(tmp_path: Path) -> None:
    predict(tmp_path)
    data = TokenDataModule(str(tmp_path / "tokens"), batch_size=2)
    assert not isinstance(data, LabelledImageDataModule)
    with pytest.raises(UserError, match="cannot encode TokenDataModule: expected images"):
        predict(tmp_path, data=data)
