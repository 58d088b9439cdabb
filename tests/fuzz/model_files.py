"""What travels: model folders, references, statistics, images to judge, recipes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from tests.fuzz.kinds import Kind, Refused
from tests.fuzz.mutations import mutate_bytes, mutate_json, mutate_text, mutate_zip
from tests.fuzz.training_files import Colours
from varlit.cli.config.recipes import read_yaml
from varlit.cli.results.measured import read_result
from varlit.cli.results.page import page, table
from varlit.metrics.frechet import FeatureStatistics, read_statistics
from varlit.metrics.networks import FeatureNetwork
from varlit.metrics.npz_images import NpzImages
from varlit.metrics.reference_files import Reference, read_own, write_reference
from varlit.models.config import TokenizerConfig, VARConfig
from varlit.models.files import load_tokenizer, load_var, save_tokenizer, save_var
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE

TOKENIZER = TokenizerConfig(32, (1, 1), 1, 0.0, 16, 4, (1, 2), num_phi=1)


def make_tokenizer(folder: Path) -> None:
    torch.manual_seed(0)
    save_tokenizer(VQVAE(TOKENIZER), folder)


def described(network: torch.nn.Module) -> dict[str, Any]:
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def read_tokenizer(folder: Path) -> Any:
    network = load_tokenizer(folder)
    image = torch.zeros(1, 3, network.config.image_size, network.config.image_size)
    if network.config.image_size <= 64:
        network.decode(network.encode(image))
    return described(network)


def make_var(folder: Path) -> None:
    torch.manual_seed(0)
    save_var(VAR(VARConfig(1, 64), TOKENIZER, 2), VQVAE(TOKENIZER), folder, ("cat", "dog"))


def read_var(folder: Path) -> Any:
    loaded = load_var(folder)
    labels = torch.zeros(1, dtype=torch.int64)
    assert all(isinstance(name, str) for name in loaded.class_names)
    dim = loaded.var.tokenizer_config.codebook_dim
    shape = loaded.var.scales.num_tokens - loaded.var.scales.lengths[0]
    loaded.var(labels, torch.zeros(1, shape, dim))
    return described(loaded.var)


def make_statistics(folder: Path) -> None:
    features = np.random.default_rng(0).normal(size=(20, 4))
    np.savez(folder / "ref.npz", mu=features.mean(0), sigma=np.cov(features.T), count=np.array(20))


def read_npz(folder: Path) -> Any:
    found = read_statistics(folder / "ref.npz")
    return {"mean": found.mean, "cov": found.cov, "count": found.count}


def judge_statistics(got: Any, original: Any) -> str:
    right = got["cov"].shape == (len(got["mean"]),) * 2 and bool(got["cov"].isfinite().all())
    right &= got["count"] is None or got["count"] >= 0
    return "" if right else f"{got}"


def make_own(folder: Path) -> None:
    features = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pool = FeatureStatistics(features.mean(0), features.T.cov(), 20)
    network = FeatureNetwork(Colours(), "colours")
    rows = features[:5].float()
    write_reference(
        Reference("toy", "0" * 64, "colours", network.hash, pool, None, rows, 8), folder / "own.npz"
    )


def read_reference(folder: Path) -> Any:
    own = read_own(folder / "own.npz", FeatureNetwork(Colours(), "colours"))
    if own is None:
        raise Refused("made anew")
    protocol = own.protocol()
    assert own.rows is None or len(own.subset(2)) <= 2
    return {"mean": own.pool.mean, "cov": own.pool.cov, "rows": own.rows, "px": own.image_px} | {
        "count": own.pool.count,
        "protocol": protocol,
    }


def judge_reference(got: Any, original: Any) -> str:
    rows = got["rows"]
    right = rows is None or (rows.dtype == torch.float32 and rows.shape[1:] == got["mean"].shape)
    right &= got["px"] is None or (type(got["px"]) is int and got["px"] > 0)
    right &= all(isinstance(got["protocol"][k], str) for k in ("reference", "reference_sha256"))
    return judge_statistics(got, original) if right else f"{got}"


def make_images(folder: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (5, 4, 4, 3), dtype=np.uint8)
    np.savez(folder / "images.npz", arr_0=images)


def read_images(folder: Path) -> Any:
    images = NpzImages(folder / "images.npz")
    return [(ids, batch) for ids, batch in images.batches(2)]


def judge_images(got: Any, original: Any) -> str:
    """A remade file may hold other images, and fewer."""
    right = all(batch.dtype == torch.uint8 and batch.ndim == 4 for _, batch in got)
    return "" if right and sum(len(ids) for ids, _ in got) <= 5 else f"{len(got)} batches"


METRICS = {
    "fid": 3.5,
    "inception_score_mean": 250.0,
    "precision": 0.8,
    "num_images": 50_000,
    "protocol": {
        "num_images": 50_000,
        "drawing_s": 99.5,
        "sampling": {"cfg_scale": 1.5, "top_k": 900, "keep": 1.0},
        "reference": "a.npz",
        "reference_sha256": "0" * 64,
        "versions": {"gpu": "none"},
        "num_processes": 1,
    },
}


def make_metrics(folder: Path) -> None:
    make_var(folder)
    (folder / "metrics.json").write_text(json.dumps(METRICS))


def read_metrics(folder: Path) -> Any:
    result = read_result(str(folder), folder)
    return [table([result]), page([result]), result.how, result.machine, result.figures]


def judge_metrics(got: Any, original: Any) -> str:
    right = all(isinstance(text, str) for text in got[:4])
    return "" if right and all(isinstance(n, float) for n in got[4].values()) else f"{got}"


RECIPE = {
    "seed_everything": 0,
    "trainer": {"max_epochs": 2, "callbacks": [{"class_path": "varlit.callbacks.best.KeepBest"}]},
    "model": {"tokenizer": {"scales": [1, 2, 4], "channels": 32}, "evaluation": {"quick": 100}},
    "data": {"class_path": "ImageDataModule", "init_args": {"root": "photos", "val_share": 0.1}},
}


def make_recipe(folder: Path) -> None:
    (folder / "fit.yaml").write_text("# Run: varlit tokenizer fit\n" + yaml.safe_dump(RECIPE))


def read_recipe(folder: Path) -> Any:
    return read_yaml(folder / "fit.yaml")


def judge_plain(got: Any, original: Any) -> str:
    """What is read is plain data: it can be written as YAML, and read as the same."""
    again = yaml.safe_load(yaml.safe_dump(got, sort_keys=False))
    return "" if isinstance(got, dict) and repr(again) == repr(got) else f"{got!r}"[:300]


WEIGHTS = "*.safetensors"
KINDS = (
    Kind(
        "figures of a run",
        make_metrics,
        read_metrics,
        {"metrics.json": (mutate_json, mutate_json, mutate_bytes)},
        judge_metrics,
        right="figures",
    ),
    Kind(
        "tokenizer folder",
        make_tokenizer,
        read_tokenizer,
        {"config.json": (mutate_json, mutate_json, mutate_bytes), WEIGHTS: (mutate_bytes,)},
        right="weights of those shapes",
    ),
    Kind(
        "VAR folder",
        make_var,
        read_var,
        {"config.json": (mutate_json, mutate_json, mutate_bytes), WEIGHTS: (mutate_bytes,)},
        right="weights of those shapes",
    ),
    Kind(
        "statistics (.npz)",
        make_statistics,
        read_npz,
        {"*": (mutate_bytes, mutate_zip)},
        judge_statistics,
        right="statistics",
    ),
    Kind(
        "reference (.npz)",
        make_own,
        read_reference,
        {"*": (mutate_bytes, mutate_zip)},
        judge_reference,
        right="a reference",
    ),
    Kind("images (.npz)", make_images, read_images),
    Kind(
        "images (.npz), remade",
        make_images,
        read_images,
        {"*": (mutate_zip,)},
        judge_images,
        right="images",
    ),
    Kind(
        "recipe (YAML)",
        make_recipe,
        read_recipe,
        {"*": (mutate_bytes, mutate_text, mutate_text)},
        judge_plain,
        right="plain data",
    ),
)
