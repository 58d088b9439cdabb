"""Both stages at toy size on real digits, with a bare Trainer, and a token cache."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from varlit.data.digits import DigitsDataModule
from varlit.data.tokens.manifest import TOKENIZER_FOLDER, CacheSpec, begin_cache
from varlit.data.tokens.module import TokenDataModule
from varlit.data.tokens.writer import TokenShardWriter, merge_manifest
from varlit.losses.tokenizer import TokenizerLossConfig
from varlit.models.config import TokenizerConfig, VARConfig
from varlit.models.discriminator import DiscriminatorConfig
from varlit.models.files import save_tokenizer, tokenizer_hash
from varlit.models.vqvae import VQVAE
from varlit.training.codebook import CodebookConfig
from varlit.training.optim import OptimConfig, TokenizerOptimConfig
from varlit.training.tokenizer import TokenizerModule
from varlit.training.tokenizer_measures import TokenizerMeasuresConfig
from varlit.training.var import VARModule

TOKENIZER = TokenizerConfig(
    channels=32,
    channel_multipliers=(1, 1, 1),
    num_res_blocks=1,
    codebook_size=24,
    codebook_dim=8,
    scales=(1, 2, 4),
)
IMAGE_SIZE_PX = TOKENIZER.image_size  # 16
LOSS = {"perceptual_weight": 0.0}
VAR = VARConfig(depth=2, width=32, num_heads=4, drop_path=0.2, class_dropout=0.3)


class SaveAt(Callback):
    """Saves once, when some steps are done (not again within the next step's accumulation)."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step and not self.path.exists():
            trainer.save_checkpoint(self.path)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def save_at():
    return SaveAt


@pytest.fixture
def digits():
    return DigitsDataModule(batch_size=4, image_size=IMAGE_SIZE_PX)


@pytest.fixture
def make_tokenizer_module():
    """A TokenizerModule whose weights depend on nothing but its settings."""

    def make(tokenizer=None, optim=None, measures=None, codebook=None, init_from="", **loss):
        torch.manual_seed(1)
        return TokenizerModule(
            tokenizer=TokenizerConfig.of(TOKENIZER.to_dict() | (tokenizer or {})),
            loss=TokenizerLossConfig(**(LOSS | loss)),
            discriminator=DiscriminatorConfig(channels=32, num_layers=2),
            optim=TokenizerOptimConfig(**({"ema_decay": 0.9} | (optim or {}))),
            codebook=CodebookConfig(**(codebook or {})),
            measures=TokenizerMeasuresConfig(**(measures or {})),
            image_size=IMAGE_SIZE_PX,
            init_from=init_from,
        )

    return make


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A cache of 40 + 8 random pyramids, with the tokenizer they are said to come from."""
    return write_cache(tmp_path_factory.mktemp("cache"), TOKENIZER)


@pytest.fixture(scope="session")
def raster_cache(tmp_path_factory):
    """The same of a tokenizer with a single scale of 4x4 tokens."""
    return write_cache(tmp_path_factory.mktemp("raster"), replace(TOKENIZER, scales=(4,)))


def write_cache(folder, shape):
    """Random tokens of a random tokenizer."""
    torch.manual_seed(2)
    tokenizer = VQVAE(shape)
    torch.nn.init.normal_(tokenizer.quantizer.codebook.weight)
    spec = CacheSpec(
        tokenizer_hash=tokenizer_hash(tokenizer),
        scales=shape.scales,
        codebook_size=shape.codebook_size,
        codebook_dim=shape.codebook_dim,
        class_names=("cat", "dog", "owl"),
        num_crops={"train": 1, "val": 1},
        shard_size=64,
        num_images={"train": 40, "val": 8},
        transform={},
    )
    begin_cache(folder, spec)
    for split, count in spec.num_images.items():
        ids = torch.arange(count)
        tokens = torch.randint(shape.codebook_size, (count, spec.num_tokens))
        TokenShardWriter(folder, split, spec).add(tokens, ids % 3, ids, torch.zeros_like(ids))
    merge_manifest(folder, spec)
    save_tokenizer(tokenizer, folder / TOKENIZER_FOLDER)
    return folder


@pytest.fixture
def tokens(cache):
    return TokenDataModule(str(cache), batch_size=4)


@pytest.fixture
def make_var_module(cache):
    """A VARModule whose weights depend on nothing but its settings."""

    def make(var=None, optim=None, **others):
        torch.manual_seed(1)
        return VARModule(
            var=VARConfig.of(VAR.to_dict() | (var or {})),
            optim=OptimConfig(**({"ema_decay": 0.9, "lr": 1e-2} | (optim or {}))),
            num_classes=3,
            tokenizer=str(cache / TOKENIZER_FOLDER),
            **others,
        )

    return make


@pytest.fixture
def make_trainer(tmp_path):
    """A quiet trainer on the CPU that validates only when it is told to."""

    def make(*callbacks, max_steps=6, **settings):
        defaults = {
            "limit_val_batches": 0,
            "logger": False,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
        }
        return Trainer(
            accelerator="cpu",
            max_steps=max_steps,
            callbacks=list(callbacks),
            default_root_dir=tmp_path,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            **(defaults | settings),
        )

    return make


def same(a, b):
    """Whether two nests of plain data hold the same, tensors to the bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


@pytest.fixture
def assert_same():
    def check(a, b):
        assert a.keys() == b.keys()
        assert [key for key in a if not same(a[key], b[key])] == []

    return check
