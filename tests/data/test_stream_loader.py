import warnings
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from varlit.data.bad_files import LIST_FILE
from varlit.data.images import ImageDataModule
from varlit.errors import UserError


class Machine:
    """What a data module asks of a trainer, for one of several processes."""

    def __init__(self, rank: int, world_size: int, folder: Path) -> None:
        self.global_rank, self.world_size, self.default_root_dir = rank, world_size, str(folder)
        self.accumulate_grad_batches, self.overfit_batches = 1, 0


def module(server: Any, rank: int = 0, world_size: int = 1, **kwargs: Any) -> ImageDataModule:
    defaults = {"image_size": 16, "batch_size": 4, "num_workers": 0, "shuffle_buffer": 6}
    data = ImageDataModule(server.url, **({"val_fraction": 0} | defaults | kwargs))
    data.trainer = Machine(rank, world_size, server.folder)  # type: ignore[assignment]
    return data


def ids_of(batches: Iterable[dict[str, Any]]) -> list[list[int]]:
    return [batch["id"].tolist() for batch in batches]


@pytest.fixture
def server(make_shards: Any, shard_server: Any) -> Any:
    shard_server.folder = make_shards((10, 7, 12, 3, 8), val=(4, 5))
    return shard_server


def test_batches_are_those_of_files(server: Any) -> None:
    data = module(server)
    assert (data.class_names, data.num_classes) == (("a", "b", "c"), 3)
    batches = list(data.train_dataloader())
    assert len(batches) == 10
    for batch in batches:
        assert sorted(batch) == ["crop", "id", "image", "label"]
        assert batch["image"].shape == (4, 3, 16, 16)
        assert torch.equal(batch["label"], batch["id"] % 3)
        assert batch["crop"].tolist() == [1] * 4
    assert sorted(i for ids in ids_of(batches) for i in ids) == list(range(40))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_make_no_difference(server: Any, num_workers: int) -> None:
    alone = module(server).train_dataloader()
    shared = module(server, num_workers=num_workers).train_dataloader()
    for epoch in (0, 1):
        alone.sampler.set_epoch(epoch)
        shared.sampler.set_epoch(epoch)
        for a, b in zip(alone, shared, strict=True):
            assert torch.equal(a["id"], b["id"])
            assert torch.equal(a["image"], b["image"])


@pytest.mark.parametrize("workers_before", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_resumed_rank_goes_on_with_the_next_batch(
    server: Any, workers_before: int, world_size: int
) -> None:
    for rank in range(world_size):
        whole = ids_of(module(server, rank, world_size).train_dataloader())
        interrupted = module(server, rank, world_size, num_workers=workers_before)
        loader = interrupted.train_dataloader()
        batches = iter(loader)
        seen = [next(batches)["id"].tolist() for _ in range(6)]
        resumed = module(server, rank, world_size, num_workers=2).train_dataloader()
        resumed.load_state_dict(loader.state_dict())
        assert seen + ids_of(resumed) == whole


def test_a_resumed_run_fetches_no_shard_that_it_is_through_with(server: Any) -> None:
    state = module(server, shuffle_buffer=0).train_dataloader()
    batches = iter(state)
    for _ in range(9):
        next(batches)
    resumed = module(server, shuffle_buffer=0).train_dataloader()
    resumed.load_state_dict(state.state_dict())
    server.asked.clear()
    assert len(list(resumed)) == 1
    assert len(server.asked) <= 2


@pytest.mark.parametrize("change", [{"world_size": 2}, {"shuffle_buffer": 3}], ids=str)
def test_another_order_starts_the_epoch_anew_and_says_so(
    server: Any, change: dict[str, int]
) -> None:
    before = module(server).train_dataloader()
    before.sampler.set_epoch(3)
    batches = iter(before)
    next(batches)
    after = module(server, **change).train_dataloader()
    with pytest.warns(UserWarning, match=f"{next(iter(change))}.*starts anew"):
        after.load_state_dict(before.state_dict())
    assert (after.sampler.epoch, len(list(after))) == (3, 10)
    list(batches)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        after.load_state_dict(before.state_dict())
    assert after.sampler.epoch == 4, "a finished epoch is finished"


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_validation_sees_every_image_once(server: Any, world_size: int) -> None:
    loaders = [
        module(server, rank, world_size, batch_size=8).val_dataloader()
        for rank in range(world_size)
    ]
    ranks = [ids_of(loader) for loader in loaders]  # type: ignore[arg-type]
    assert len({len(steps) for steps in ranks}) == 1
    assert sorted(i for steps in ranks for ids in steps for i in ids) == list(range(9))


def test_encoding_walks_both_splits(server: Any) -> None:
    train, val = module(server).predict_dataloader()
    assert list(chain(*ids_of(train))) == list(range(40))
    assert list(chain(*ids_of(val))) == list(range(9))


def test_the_description_tells_one_set_of_shards_from_another(
    server: Any, make_shards: Any
) -> None:
    data = module(server)
    assert data.describe() == module(server).describe()
    assert module(server, shuffle_buffer=1).describe() == data.describe()
    pattern = f"{server.url}/train-{{000..002}}.tar"
    part = ImageDataModule(pattern, image_size=16, val_fraction=0)
    assert part.describe()["files"]["train"] != data.describe()["files"]["train"]


def test_a_corrupt_shard_is_skipped_counted_and_listed(server: Any) -> None:
    (server.folder / "train-001.tar").write_bytes(b"")
    data = module(server, max_bad_share=0.3)
    loader = data.train_dataloader()
    with pytest.warns(UserWarning, match=r"train-001\.tar' \(.*after 0 of 7 images"):
        ids = ids_of(loader)
    assert [len(batch) for batch in ids] == [4] * 10
    assert not {i for batch in ids for i in batch} & set(range(10, 17))
    assert loader.bad_files is not None
    assert len(loader.bad_files) == 7
    listed = (server.folder / LIST_FILE).read_text()
    assert listed.startswith(f"{server.url}/train-001.tar\t")
    again = module(server, max_bad_share=0.3).train_dataloader().bad_files
    assert again is not None
    assert len(again) == 7, "a resumed run knows it"


def test_more_than_the_set_share_stops_the_run(server: Any) -> None:
    for shard in (0, 2):
        (server.folder / f"train-00{shard}.tar").unlink()
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(UserError, match=r"of 49 images cannot be used.*max_bad_share 0\.3"),
    ):
        list(module(server, max_bad_share=0.3).train_dataloader())


def test_on_request_a_lost_shard_stops_the_run(server: Any) -> None:
    (server.folder / "train-003.tar").unlink()
    with pytest.raises(UserError, match=r"cannot use the image '.*train-003\.tar'"):
        list(module(server, on_bad_image="stop").train_dataloader())


def test_a_negative_buffer_is_refused(server: Any) -> None:
    with pytest.raises(UserError, match="shuffle_buffer is -1"):
        module(server, shuffle_buffer=-1)


class Recorder(LightningModule):
    """Learns nothing; writes down which samples it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[int]] = []

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.seen.append(batch["id"].tolist())
        return self.weight.sum()

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAt(Callback):
    """Saves once, after some steps."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


# An epoch has 10 steps.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("step", "num_workers"), [(4, 0), (10, 0), (13, 2)], ids=str)
def test_lightning_resumes_a_stream_exactly(
    server: Any, tmp_path: Path, step: int, num_workers: int
) -> None:
    checkpoint, seen = tmp_path / "a.ckpt", []
    for callbacks, path in (([SaveAt(step, checkpoint)], None), ([], checkpoint)):
        recorder = Recorder()
        trainer = Trainer(
            max_steps=23,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            callbacks=list(callbacks),
            use_distributed_sampler=False,
        )
        data = ImageDataModule(server.url, 16, 4, num_workers, shuffle_buffer=6)
        trainer.fit(recorder, datamodule=data, ckpt_path=path, weights_only=True)
        seen.append(recorder.seen)
    assert len(seen[0]) == 23
    assert seen[1] == seen[0][step:]
