"""Encoding a data set: the callback that turns predicted tokens into a token cache."""

import json
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from varlit.data.class_titles import titles
from varlit.data.module import LabelledImageDataModule
from varlit.data.order import EncodingBatches
from varlit.data.tokens.manifest import (
    DEFAULT_BATCH_SIZE,
    TOKENIZER_FOLDER,
    CacheSpec,
    Manifest,
    begin_cache,
)
from varlit.data.tokens.rounding import describe_encoder, fixed_rounding
from varlit.data.tokens.writer import (
    TokenShardWriter,
    merge_manifest,
    missing_shards,
    remove_leftovers,
)
from varlit.disks import append_line, may_be_lost
from varlit.errors import UserError
from varlit.models.files import save_tokenizer, tokenizer_hash
from varlit.models.vqvae import VQVAE

DEFAULT_SHARD_SIZE = 16_384
DEFAULT_NUM_CROPS = 10


class TokenWriter(Callback):
    """Writes the token cache of a data set while the trainer predicts.

    The module's `predict_step` returns tokens (B, L), label (B,), id (B,) and crop (B,); its
    `averaged` is the VQVAE that encodes. Every process writes the shards that it owns; a run that
    was cut off goes on when the same command is run again. The files are the same to the byte,
    however many processes wrote them and however often they were cut off.

    Args:
        folder: The cache; by default `tokens` in the run's folder.
        num_crops: Views of each training image: 1 is the centre crop, more are random crops. By
            default 10, or 1 where all views are alike. Validation has the centre crop.
        shard_size: Images of a file; more than a file for each device keeps all devices busy.
        batch_size: Most crops that are encoded at once, on each device; whole images go together.
        num_threads: Threads of a CPU that encodes: with another number it rounds otherwise.
    """

    def __init__(
        self,
        folder: str = "",
        num_crops: int | None = None,
        shard_size: int = DEFAULT_SHARD_SIZE,
        batch_size: int = DEFAULT_BATCH_SIZE,
        num_threads: int = 1,
    ) -> None:
        if num_threads < 1:
            raise UserError(f"cache.num_threads is {num_threads}: expected at least 1.")
        self.folder, self.num_crops, self.shard_size = folder, num_crops, shard_size
        self.batch_size, self.num_threads = batch_size, num_threads
        self._rounding = ExitStack()
        self._network: VQVAE | None = None
        self._spec: CacheSpec | None = None
        self._writers: list[TokenShardWriter] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ask the data module for what the cache still lacks.

        Raises:
            UserError: If the trainer's data are not labelled images.
        """
        if stage != "predict":
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, LabelledImageDataModule):
            raise UserError(
                f"cannot encode {type(data).__name__}: expected images, such as DigitsDataModule, "
                "ImageDataModule or ImageNetDataModule."
            )
        self._writers, self._spec = [], None

        def plan(num_images: Mapping[str, int]) -> Mapping[str, EncodingBatches]:
            # Called when the loaders are made, which is after the checkpoint has been loaded.
            return self._plan(trainer, pl_module, data, num_images)

        data.plan_encoding = plan
        self._rounding.enter_context(fixed_rounding(self.num_threads))

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Hand the batch to the writer of its split."""
        rows: Mapping[str, Tensor] = outputs
        self._writers[dataloader_idx].add(rows["tokens"], rows["label"], rows["id"], rows["crop"])

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Join the shards of all processes.

        Here and not in `on_predict_end`: a process that has no shard to write skips the whole
        loop, and would leave the others waiting. After an exception Lightning comes to neither.
        """
        if stage == "predict":
            self._rounding.close()
            trainer.strategy.barrier("token shards")
            self._finish(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Round as before: there is no teardown."""
        self._rounding.close()

    def _plan(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        data: LabelledImageDataModule,
        num_images: Mapping[str, int],
    ) -> dict[str, EncodingBatches]:
        network = pl_module.averaged
        assert isinstance(network, VQVAE)
        config = network.config
        self._network = network
        transform = data.describe()
        self._spec = CacheSpec(
            tokenizer_hash=tokenizer_hash(network),
            scales=config.scales,
            codebook_size=config.codebook_size,
            codebook_dim=config.codebook_dim,
            class_names=titles(data.class_names),
            num_crops={split: self._crops_of(split, data) for split in num_images},
            shard_size=self.shard_size,
            num_images=num_images,
            files=transform.pop("files", {}),
            transform=transform,
            encoder=describe_encoder(network.last_layer.device, self.num_threads),
            batch_size=self.batch_size,
        )
        folder = self._cache_folder(trainer)
        begin_cache(folder, self._spec)
        self._writers = [
            TokenShardWriter(folder, split, self._spec, trainer.global_rank, trainer.world_size)
            for split in num_images
        ]
        return {writer.split: writer.pending() for writer in self._writers}

    def _crops_of(self, split: str, data: LabelledImageDataModule) -> int:
        if split != "train":
            return 1
        if self.num_crops is None:
            return DEFAULT_NUM_CROPS if data.has_random_views else 1
        if self.num_crops > 1 and not data.has_random_views:
            warnings.warn(
                f"cache.num_crops {self.num_crops} writes the same tokens so many times: "
                f"{type(data).__name__} has no random views.",
                stacklevel=2,
            )
        return self.num_crops

    def _finish(self, trainer: Trainer) -> None:
        spec, self._spec = self._spec, None
        if spec is None or self._network is None or not trainer.is_global_zero:
            return
        folder = self._cache_folder(trainer)
        missing = missing_shards(folder, spec)
        if missing:
            print(
                f"the token cache '{folder}' lacks {len(missing)} shard(s), such as {missing[0]}: "
                "run the same command again to go on"
            )
            return
        remove_leftovers(folder)
        tokenizer = folder / TOKENIZER_FOLDER
        save_tokenizer(self._network, tokenizer)
        for leftover in tokenizer.glob("*.tmp*"):
            leftover.unlink()
        data = trainer.datamodule  # type: ignore[attr-defined]
        told = summary(merge_manifest(folder, spec, image_settings(data)))
        _log(folder, f"{told}, by {trainer.world_size} process(es)")
        print(told)

    def _cache_folder(self, trainer: Trainer) -> Path:
        return Path(self.folder) if self.folder else Path(trainer.default_root_dir) / "tokens"


def image_settings(data: LabelledImageDataModule) -> dict[str, Any]:
    """Return the data module and its arguments as plain data, but for those of speed alone."""
    kind = type(data)
    arguments = {k: v for k, v in data.settings.items() if k not in ("batch_size", "num_workers")}
    plain = json.loads(json.dumps(arguments, default=str))
    return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": plain}


def summary(manifest: Manifest) -> str:
    """Say in one line what a cache holds."""
    parts = [f"{manifest.count(split):,} {split}" for split in manifest.splits]
    skipped = sum(manifest.skipped(split) for split in manifest.splits)
    spec = manifest.spec
    crops = max(spec.num_crops.values(), default=1)
    many = "" if crops == 1 else f", {crops} random crops to train on"
    return (
        f"cached {' + '.join(parts)} images ({skipped} skipped{many}), {spec.num_tokens} tokens "
        f"each, {manifest.num_bytes() / 2**20:.1f} MiB in {manifest.folder}"
    )


def _log(folder: Path, line: str) -> None:
    """Note when a cache was finished; beside it, because no file within holds a time."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    path = folder.with_name(f"{folder.name}.log")
    with may_be_lost("lines of the log", path):
        append_line(path, f"{now} {line}\n")
