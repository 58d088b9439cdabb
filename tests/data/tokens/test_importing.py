from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from varlit.data.tokens.exporting import export_llamagen, export_safetensors
from varlit.data.tokens.importing import (
    Pyramids,
    import_tokens,
    numbered_classes,
    open_llamagen,
    open_safetensors,
    recorded_classes,
)
from varlit.data.tokens.manifest import read_manifest
from varlit.data.tokens.reader import open_tokens
from varlit.errors import UserError
from varlit.models.config import TokenizerConfig
from varlit.models.vqvae import VQVAE

NAMES = ("cat", "dog")


@pytest.fixture(scope="module")
def network() -> VQVAE:
    return VQVAE(TokenizerConfig(32, (1, 1), 1, 0.0, 100, 8, (1, 2))).eval()


def llamagen_files(folder: Path, num_images: int = 12, num_crops: int = 10) -> np.ndarray:
    """Files as LlamaGen's script writes them: one image each, int64."""
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, 100, (num_images, num_crops, 5))
    for kind in ("codes", "labels"):
        (folder / f"imagenet256_{kind}").mkdir(parents=True)
    for i in range(num_images):
        np.save(folder / "imagenet256_codes" / f"{i}.npy", tokens[i : i + 1])
        np.save(folder / "imagenet256_labels" / f"{i}.npy", np.array([i % 2]))
    return tokens


def pyramids(tokens: Any, labels: Any) -> dict[str, Pyramids]:
    tokens, labels = np.array(tokens), np.array(labels)
    return {
        "train": Pyramids(
            Path("given"), tokens.shape[1], labels, lambda rows: tokens[rows.start : rows.stop]
        )
    }


def test_files_of_llamagen_become_a_cache(tmp_path: Path, network: VQVAE) -> None:
    tokens = llamagen_files(tmp_path / "in")
    found = {"train": open_llamagen(tmp_path / "in")}
    manifest = import_tokens(found, network, tmp_path / "out", NAMES, "llamagen")
    assert (manifest.count("train"), manifest.spec.num_crops) == (12, {"train": 10})
    dataset = open_tokens(tmp_path / "out", "train")
    assert np.array_equal(dataset.rows(0, 12), tokens)
    assert dataset.labels.tolist() == [0, 1] * 6


def test_what_llamagen_reads_is_written(tmp_path: Path, network: VQVAE) -> None:
    tokens = llamagen_files(tmp_path / "in")
    found = {"train": open_llamagen(tmp_path / "in")}
    import_tokens(found, network, tmp_path / "cache", NAMES, "llamagen")
    export_llamagen(read_manifest(tmp_path / "cache"), tmp_path / "out")
    for path in (tmp_path / "in").rglob("*.npy"):
        other = tmp_path / "out" / path.relative_to(tmp_path / "in")
        assert other.read_bytes() == path.read_bytes()
    assert tokens.dtype == np.int64


def test_shards_go_on_in_the_next_file(
    tmp_path: Path, network: VQVAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("varlit.data.tokens.exporting.ROWS_OF_A_FILE", 5)
    tokens = np.arange(24 * 2 * 5).reshape(24, 2, 5) % 100
    import_tokens(pyramids(tokens, [0] * 24), network, tmp_path / "a", NAMES, "safetensors")
    assert export_safetensors(read_manifest(tmp_path / "a"), tmp_path / "out") == 24
    assert len(list((tmp_path / "out").iterdir())) == 5
    found, metadata = open_safetensors(tmp_path / "out")
    assert recorded_classes(metadata, network, tmp_path) == NAMES
    import_tokens(found, network, tmp_path / "b", NAMES, "safetensors")
    assert np.array_equal(open_tokens(tmp_path / "b", "train").rows(0, 24), tokens)


@pytest.mark.parametrize(
    ("tokens", "labels", "message"),
    [
        ([[[0, 1, 2, 3, 100]]], [0], "tokens 0 to 100, the tokenizer has codes 0 to 99"),
        ([[[0, 1, 2, 3, -1]]], [0], "tokens -1 to 3"),
        ([[[0, 1, 2, 3]]], [0], "4 tokens an image, the tokenizer 5"),
        ([[[0.0, 1, 2, 3, 4]]], [0], "tokens of type float64"),
        ([[[0, 1, 2, 3, 4]]], [2], "1 label.s. such as 2: expected 0 to 1"),
        ([[[0, 1, 2, 3, 4]]], [-1], "1 label.s. such as -1"),
        ([[[0, 1, 2, 3, 4]]], [0.5], "labels of float64"),
    ],
)
def test_ranges_are_not_trusted(
    tmp_path: Path, network: VQVAE, tokens: Any, labels: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        import_tokens(pyramids(tokens, labels), network, tmp_path, NAMES, "llamagen")
    assert list(tmp_path.parent.glob(f"{tmp_path.name}/*")) == []


def test_a_gap_in_the_files_and_other_shapes_are_refused(tmp_path: Path, network: VQVAE) -> None:
    llamagen_files(tmp_path)
    with pytest.raises(UserError, match="is not empty"):
        import_tokens({}, network, tmp_path, NAMES, "llamagen")
    (tmp_path / "imagenet256_labels" / "11.npy").unlink()
    with pytest.raises(UserError, match=r"cannot read '.*labels/11\.npy'.*without a gap"):
        open_llamagen(tmp_path)
    np.save(tmp_path / "imagenet256_labels" / "11.npy", np.array([0]))
    np.save(tmp_path / "imagenet256_codes" / "3.npy", np.zeros((1, 2, 5), np.int64))
    with pytest.raises(UserError, match=r"3\.npy' has shape \(1, 2, 5\)"):
        open_llamagen(tmp_path).read(range(12))
    (tmp_path / "imagenet256_codes" / "3.npy").write_bytes(b"no array")
    with pytest.raises(UserError, match="cannot read"):
        open_llamagen(tmp_path).read(range(12))
    with pytest.raises(UserError, match="has 0 folders called"):
        open_llamagen(tmp_path / "imagenet256_codes")


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    llamagen_files(tmp_path)
    path = tmp_path / "imagenet256_codes" / "0.npy"
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="cannot read"):
        open_llamagen(tmp_path)


def test_damaged_shards_and_those_of_another_tokenizer_are_refused(
    tmp_path: Path, network: VQVAE
) -> None:
    with pytest.raises(UserError, match="holds no shards"):
        open_safetensors(tmp_path)
    (tmp_path / "train-00000.safetensors").write_bytes(b"no shard")
    with pytest.raises(UserError, match="is no shard of tokens"):
        open_safetensors(tmp_path)
    with pytest.raises(UserError, match="made by tokenizer aaaaaaaaaaaa"):
        recorded_classes({"tokenizer_hash": "a" * 64}, network, tmp_path)
    assert recorded_classes({}, network, tmp_path) == ()


def test_classes_are_counted_by_their_labels(tmp_path: Path) -> None:
    assert numbered_classes(pyramids([[[0] * 5]] * 2, [0, 2]), 0) == ("0", "1", "2")
    assert len(numbered_classes({}, 10)) == 10
    with pytest.raises(UserError, match="give --num_classes"):
        numbered_classes(pyramids([[[0] * 5]], [2**40]), 0)


def test_nothing_is_drawn_on_the_way(tmp_path: Path, network: VQVAE) -> None:
    state = torch.get_rng_state()
    import_tokens(pyramids([[[1] * 5]], [0]), network, tmp_path, NAMES, "llamagen")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kept", ["val", "other"])
def test_shards_that_nothing_trains_on_are_refused(
    tmp_path: Path, network: VQVAE, kept: str
) -> None:
    import_tokens(
        pyramids(np.zeros((2, 1, 5), np.int64), [0, 1]),
        network,
        tmp_path / "a",
        NAMES,
        "safetensors",
    )
    export_safetensors(read_manifest(tmp_path / "a"), tmp_path / "out")
    shard = tmp_path / "out" / "train-00000.safetensors"
    shard.rename(shard.with_name(f"{kept}-00000.safetensors"))
    with pytest.raises(UserError, match=f"holds shards of {kept}: expected train"):
        open_safetensors(tmp_path / "out")
