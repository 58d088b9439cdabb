"""Encoding a data set: the callback that turns predicted tokens into a token cache."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from varlit.data.module import EncodingPlan, LabelledImageDataModule
from varlit.data.tokens.manifest import TOKENIZER_FOLDER, CacheSpec, Manifest, begin_cache
from varlit.data.tokens.writer import TokenShardWriter, merge_manifest, missing_shards
from varlit.errors import UserError
from varlit.models.files import save_tokenizer, tokenizer_hash
from varlit.models.vqvae import VQVAE

DEFAULT_SHARD_SIZE = 16_384


class TokenWriter(Callback):
    """Writes the token cache of a data set while the trainer predicts.

    The module's `predict_step` returns tokens (B, L), label (B,), id (B,) and crop (B,); its
    `averaged` is the VQVAE that encodes. Every process writes the shards that it owns; a run that
    was cut off goes on when the same command is run again.

    Args:
        folder: The cache; by default `tokens` in the run's folder.
        num_crops: Views of each image: the centre crop, then random ones.
        shard_size: Images of a file; more than a file for each device keeps all devices busy.
    """

    def __init__(
        self, folder: str = "", num_crops: int = 1, shard_size: int = DEFAULT_SHARD_SIZE
    ) -> None:
        self.folder, self.num_crops, self.shard_size = folder, num_crops, shard_size
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

        def plan(num_images: Mapping[str, int]) -> EncodingPlan:
            # Called when the loaders are made, which is after the checkpoint has been loaded.
            return self._plan(trainer, pl_module, data, num_images)

        data.plan_encoding = plan

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
            trainer.strategy.barrier("token shards")
            self._finish(trainer)

    def _plan(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        data: LabelledImageDataModule,
        num_images: Mapping[str, int],
    ) -> EncodingPlan:
        network = pl_module.averaged
        assert isinstance(network, VQVAE)
        config = network.config
        self._network = network
        self._spec = CacheSpec(
            tokenizer_hash=tokenizer_hash(network),
            scales=config.scales,
            codebook_size=config.codebook_size,
            codebook_dim=config.codebook_dim,
            class_names=data.class_names,
            num_crops=self.num_crops,
            shard_size=self.shard_size,
            num_images=num_images,
            transform=data.describe(),
        )
        folder = self._cache_folder(trainer)
        begin_cache(folder, self._spec)
        self._writers = [
            TokenShardWriter(folder, split, self._spec, trainer.global_rank, trainer.world_size)
            for split in num_images
        ]
        pending = {writer.split: writer.pending_ids() for writer in self._writers}
        return EncodingPlan(pending, self.num_crops)

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
        save_tokenizer(self._network, folder / TOKENIZER_FOLDER)
        print(summary(merge_manifest(folder, spec)))

    def _cache_folder(self, trainer: Trainer) -> Path:
        return Path(self.folder) if self.folder else Path(trainer.default_root_dir) / "tokens"


def summary(manifest: Manifest) -> str:
    """Say in one line what a cache holds."""
    parts = [f"{manifest.count(split):,} {split}" for split in manifest.splits]
    skipped = sum(manifest.skipped(split) for split in manifest.splits)
    spec = manifest.spec
    crops = "" if spec.num_crops == 1 else f", {spec.num_crops} crops"
    return (
        f"cached {' + '.join(parts)} images ({skipped} skipped{crops}), {spec.num_tokens} tokens "
        f"each, {manifest.num_bytes() / 2**20:.1f} MiB in {manifest.folder}"
    )
