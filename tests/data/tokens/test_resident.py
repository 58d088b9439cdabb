import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from varlit.data.loader import ResumableLoader
from varlit.data.tokens.manifest import CacheSpec, begin_cache
from varlit.data.tokens.module import TokenDataModule
from varlit.data.tokens.resident import check_fits
from varlit.data.tokens.writer import TokenShardWriter, merge_manifest
from varlit.errors import UserError


@pytest.mark.parametrize("resident", ["ram", "device"])
def test_tokens_in_memory_make_the_same_batches(cache: Path, resident: Any) -> None:
    disk = TokenDataModule(str(cache), batch_size=5)
    memory = TokenDataModule(str(cache), batch_size=5, resident=resident)
    for epoch in range(3):
        loaders = disk.train_dataloader(), memory.train_dataloader()
        for loader in loaders:
            loader.sampler.set_epoch(epoch)
        assert_equal_batches(*loaders, memory)
    assert_equal_batches(loaded(disk.val_dataloader()), loaded(memory.val_dataloader()), memory)


def loaded(loader: ResumableLoader | list[ResumableLoader]) -> ResumableLoader:
    assert isinstance(loader, ResumableLoader)
    return loader


def assert_equal_batches(
    disk: ResumableLoader, memory: ResumableLoader, data: TokenDataModule
) -> None:
    for expected, rows in zip(disk, memory, strict=True):
        got = data.on_after_batch_transfer(rows, 0)
        assert got.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(got[key], value)
            assert got[key].dtype == value.dtype


class Recorder(LightningModule):
    """Keeps the batches that a training step gets."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[list[int]]] = []

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.seen.append(torch.cat([batch["tokens"], batch["label"][:, None]], dim=1).tolist())
        return self.weight * 1.0

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        self.seen.append(batch["tokens"].tolist())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore")
def test_a_trainer_sees_the_same_batches_wherever_the_tokens_lie(cache: Path) -> None:
    seen = []
    residents: list[Any] = ["disk", "ram", "device"]
    for resident in residents:
        module = Recorder()
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=3,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            use_distributed_sampler=False,
        )
        trainer.fit(module, datamodule=TokenDataModule(str(cache), 5, resident=resident))
        seen.append(module.seen)
    assert len(seen[0]) == 3 * 2 + 3 + 1, "epochs of training and validation, a sanity check"
    assert seen[0] == seen[1] == seen[2]


def test_the_largest_token_survives_in_memory(tmp_path: Path, spec: CacheSpec) -> None:
    spec = dataclasses.replace(spec, codebook_size=65_536, num_images={"train": 10})
    begin_cache(tmp_path, spec)
    writer = TokenShardWriter(tmp_path, "train", spec)
    for index in writer.pending().batches(0):
        ids, views = torch.from_numpy(index.ids), torch.from_numpy(index.views)
        writer.add(torch.full((len(ids), 5), 65_535), ids % 2, ids, views)
    merge_manifest(tmp_path, spec)
    data = TokenDataModule(str(tmp_path), batch_size=10, resident="ram")
    [rows] = list(data.train_dataloader())
    assert data.on_after_batch_transfer(rows, 0)["tokens"].unique().tolist() == [65_535]


def test_workers_of_tokens_in_memory_are_ignored_with_a_warning(cache: Path) -> None:
    with pytest.warns(UserWarning, match="num_workers 2 is ignored: with data.resident ram"):
        assert TokenDataModule(str(cache), num_workers=2, resident="ram").num_workers == 0


def test_tokens_that_do_not_fit_are_refused_before_they_are_read(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("varlit.data.tokens.resident.free_ram_bytes", lambda: 100)
    with pytest.raises(UserError, match=r"does not fit: .* set data.resident to disk"):
        TokenDataModule(str(cache), resident="ram").setup("fit")
    size = TokenDataModule(str(cache)).manifest.num_bytes("tokens")
    with pytest.raises(UserError, match="x 8 processes"):
        check_fits(size, torch.device("cpu"), num_processes=8)
    monkeypatch.setattr("varlit.data.tokens.resident.free_ram_bytes", lambda: size + 1)
    with pytest.warns(UserWarning, match="fills most of the memory"):
        check_fits(size, torch.device("cpu"), num_processes=1)
    monkeypatch.setattr("varlit.data.tokens.resident.free_ram_bytes", lambda: None)
    check_fits(size, torch.device("cpu"), num_processes=8)
