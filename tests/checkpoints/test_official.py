"""Official files in and out: the same bits, and a clear word where they cannot be."""

from pathlib import Path

import pytest
import torch
from torch import nn

from varlit.checkpoints.official import (
    derived_buffers,
    load_official,
    official_state,
    read_surplus,
    save_official,
    save_surplus,
    speak,
)
from varlit.checkpoints.official_shapes import HIT_STATISTIC
from varlit.errors import UserError
from varlit.models.config import TokenizerConfig, VARConfig
from varlit.models.files import load_tokenizer, load_var, save_tokenizer, save_var
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference" / "a_base256"
FIXTURE = Path(__file__).parents[1] / "fixtures" / "official.pt"
TOKENIZER = TokenizerConfig(
    channels=32,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    codebook_size=12,
    codebook_dim=4,
    scales=(1, 2, 4),
)
VAR_SHAPE = {"depth": 2, "width": 128, "num_heads": 2}
VARIANTS = [
    {},
    {"shared_adaln": True},
    {"qk_l2_norm": False},
    {"shared_adaln": True, "qk_l2_norm": False, "mlp_ratio": 1.5},
]


def lively(network):
    """Every number differs from every other, so that no two weights can be mixed up."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network.eval()


def make_var(scales=(1, 2, 4), **fields):
    tokenizer = TokenizerConfig(codebook_size=12, codebook_dim=4, scales=scales)
    return lively(VAR(VARConfig(**(VAR_SHAPE | fields)), tokenizer, 3))


def make_tokenizer(**fields):
    return lively(VQVAE(TokenizerConfig(**(TOKENIZER.to_dict() | fields))))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.pth"


def write(network, path, surplus=None, **changes):
    """An official file of a network, with some of its content changed; None removes."""
    state = official_state(network, surplus) | changes
    torch.save({name: value for name, value in state.items() if value is not None}, path)
    return path


def assert_same_bits(got, expected):
    assert list(got) == list(expected)
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype, name
        assert torch.equal(got[name], tensor), name


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
@pytest.mark.parametrize("scales", [(1, 2, 4), (1, 3), (2, 5)], ids=str)
def test_a_var_goes_there_and_back_bit_by_bit(fields, scales, path, tmp_path):
    var = make_var(scales, **fields)
    expected = torch.load(write(var, path), weights_only=True)
    found = load_official(path).var
    assert not found.training
    assert not any(p.requires_grad for p in found.parameters())
    save_var(found, None, tmp_path / "d2")
    save_official(load_var(tmp_path / "d2").var, tmp_path / "back.pth")
    assert_same_bits(torch.load(tmp_path / "back.pth", weights_only=True), expected)


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
def test_a_converted_var_says_the_same(fields, path):
    var = make_var(**fields)
    found = load_official(write(var, path)).var
    inputs = torch.randn(2, 20, 4)
    labels = torch.tensor([0, 3])
    assert torch.equal(found(labels, inputs), var(labels, inputs))


@pytest.mark.parametrize("num_phi", [4, 2, 1, 0])
@pytest.mark.parametrize("scales", [(1, 2, 4), (1, 2, 3, 5, 6)], ids=str)
def test_a_tokenizer_goes_there_and_back_bit_by_bit(num_phi, scales, path, tmp_path):
    tokenizer = make_tokenizer(num_phi=num_phi, scales=scales)
    hits = {HIT_STATISTIC: torch.rand(len(scales), 12)}
    expected = torch.load(write(tokenizer, path, hits), weights_only=True)
    found = load_official(path, scales)
    assert found.tokenizer.config == tokenizer.config
    save_tokenizer(found.tokenizer, tmp_path / "tok")
    save_surplus(found.surplus, tmp_path / "tok")
    save_official(
        load_tokenizer(tmp_path / "tok"), tmp_path / "back.pth", read_surplus(tmp_path / "tok")
    )
    assert_same_bits(torch.load(tmp_path / "back.pth", weights_only=True), expected)
    images = torch.rand(1, 3, 2 * scales[-1], 2 * scales[-1])
    assert torch.equal(found.tokenizer.reconstruct(images), tokenizer.reconstruct(images))


@pytest.mark.parametrize("name", ["var_sd.pt", "vae_sd.pt"])
def test_what_the_official_code_wrote_comes_back_bit_by_bit(name, path):
    if not (REFERENCE / name).is_file():
        pytest.skip(f"needs the reference tensors: {REFERENCE / name}")
    models = load_official(REFERENCE / name)
    network = models.var or models.tokenizer
    save_official(network, path, models.surplus)
    expected = torch.load(REFERENCE / name, weights_only=True)
    assert_same_bits(torch.load(path, weights_only=True), expected)


def test_a_converted_var_says_what_the_official_code_says():
    if not REFERENCE.is_dir():
        pytest.skip(f"needs the reference tensors: {REFERENCE}")
    var = load_official(REFERENCE / "var_sd.pt").var
    said = torch.load(REFERENCE / "ref.pt", weights_only=True, mmap=True)
    logits = var(said["label"], said["var_input"])
    torch.testing.assert_close(logits, said["logits"], atol=2e-4, rtol=0)


def test_full_size_files_have_the_official_names_and_shapes_in_their_order():
    shapes = torch.load(FIXTURE, weights_only=True)["shapes"]
    with torch.device("meta"):
        networks = VQVAE(TokenizerConfig()), VAR(VARConfig(), TokenizerConfig(), 1000)
    buffers = {HIT_STATISTIC: [10, 4096], "lvl_1L": [1, 680]}
    buffers["attn_bias_for_masking"] = [1, 1, 680, 680]
    buffers |= {f"blocks.{i}.attn.zero_k_bias": [1024] for i in range(16)}
    for network, kind in zip(networks, ("tokenizer", "var"), strict=True):
        weights = shapes[kind]
        # Nothing is ever written to the memory that this asks for.
        state = official_state(network.to_empty(device="cpu"))
        assert {name: list(tensor.shape) for name, tensor in state.items()} == weights | {
            name: shape for name, shape in buffers.items() if name in state
        }
        assert [name for name in state if name not in buffers] == list(weights)
        dtypes = {name: tensor.dtype for name, tensor in state.items()}
        assert dtypes.pop("lvl_1L", torch.int64) == torch.int64
        assert set(dtypes.values()) == {torch.float32}
    assert len(state) == 220


def test_buffers_may_be_absent(path):
    var = make_var()
    absent = dict.fromkeys(derived_buffers(var))
    with pytest.raises(UserError, match="--scales"):
        load_official(write(var, path, **absent))
    found = load_official(path, (1, 2, 4)).var
    assert_same_bits(official_state(found), official_state(var))


@pytest.mark.parametrize("name", ["lvl_1L", "attn_bias_for_masking", "blocks.1.attn.zero_k_bias"])
def test_buffers_must_be_what_the_shape_gives(name, path):
    var = make_var()
    odd = derived_buffers(var)[name].clone()
    odd.view(-1)[-1] = 1
    with pytest.raises(UserError, match=rf"`{name}` is not what the scales \[1, 2, 4\] give"):
        load_official(write(var, path, **{name: odd}), (1, 2, 4))


def test_a_training_checkpoint_gives_both_models(path):
    var, tokenizer = make_var((1, 2, 5)), make_tokenizer()
    parts = {"var_wo_ddp": official_state(var), "vae_local": official_state(tokenizer)}
    content = {"epoch": 3, "trainer": {**parts, "var_opt": {}}, "args": {"depth": 2}}
    torch.save(content, path)
    found = load_official(path)
    assert_same_bits(official_state(found.var), official_state(var))
    assert found.tokenizer.config.scales == (1, 2, 5), "those of the VAR"
    assert found.var.tokenizer_config == found.tokenizer.config
    assert_same_bits(found.tokenizer.state_dict(), tokenizer.with_scales((1, 2, 5)).state_dict())
    del content["trainer"]["vae_local"]
    torch.save(content, path)
    assert load_official(path).tokenizer is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_fp32_and_that_is_said(dtype, path):
    var = make_var()
    halves = {k: v.to(dtype) for k, v in official_state(var).items() if k != "lvl_1L"}
    found = load_official(write(var, path, **halves))
    assert str(dtype).removeprefix("torch.") in found.notes[0]
    head = official_state(found.var)["head.weight"]
    assert torch.equal(head, halves["head.weight"].float())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks.1.ffn.fc2.bias": None, "head.bias": None}, r"lacks 2 of the 34 .*`blocks\.1\.ff"),
        ({"lora.weight": torch.zeros(1)}, r"has 1 weights .*no place for.*`lora\.weight`"),
        ({"head.bias": torch.zeros(5)}, r"`head\.bias` has shape \[5\], expected \[12\]"),
        ({"pos_1LC": torch.zeros(4)}, "expected more dimensions"),
        ({"head.bias": torch.zeros(12).int()}, r"`head\.bias` holds torch\.int32"),
        ({"epoch": 3}, "`epoch` is a int, expected a tensor"),
        ({"head.bias": torch.zeros(12).to_sparse()}, "torch.sparse_coo tensor on cpu, expected"),
        ({"head.bias": torch.zeros(12, device="meta")}, "tensor on meta, expected plain numbers"),
    ],
    ids=["missing", "surplus", "shape", "flat", "integers", "number", "sparse", "meta"],
)
def test_a_file_that_is_not_quite_a_var_is_refused(changes, message, path):
    with pytest.raises(UserError, match=message):
        load_official(write(make_var(), path, **changes))


def test_a_file_that_is_not_quite_a_tokenizer_is_refused(path):
    changes = {"decoder.conv_out.bias": None}
    with pytest.raises(UserError, match=r"lacks 1 of the .* of a VQVAE.*`decoder\.conv_out\.bias`"):
        load_official(write(make_tokenizer(), path, **changes), (1, 2, 4))
    write(make_tokenizer(), path, **{HIT_STATISTIC: torch.zeros(3, 5)})
    with pytest.raises(UserError, match="it is a statistic only"):
        load_official(path, (1, 2, 4))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "holds a list"),
        ({"pytorch-lightning_version": "2", "state_dict": {}}, "checkpoint of Lightning"),
        ({"trainer": {}}, "without `trainer.var_wo_ddp`"),
        ({"trainer": {"var_wo_ddp": [1]}}, r"\(var_wo_ddp\) is a list"),
        ({}, "neither an official VQVAE nor"),
    ],
    ids=["list", "lightning", "no var", "no weights", "nothing"],
)
def test_other_content_is_refused(content, message, path):
    torch.save(content, path)
    with pytest.raises(UserError, match=message):
        load_official(path)


def test_the_search_is_what_is_asked_for(path):
    found = load_official(write(make_tokenizer(), path), (1, 2, 4), search="cosine")
    assert found.tokenizer.config.search == "cosine"


def test_a_var_speaks_only_codes_of_its_own_kind():
    var = make_var((1, 2, 5))
    speak(var, TOKENIZER)
    assert var.tokenizer_config.channels == 32
    assert var.tokenizer_config.scales == (1, 2, 5)
    with pytest.raises(UserError, match=r"12 codes of dimension 4.*4,096 of dimension 32"):
        speak(var, TokenizerConfig())


def test_a_damaged_statistic_names_its_file(tmp_path):
    assert read_surplus(tmp_path) == {}
    (tmp_path / "official.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match=r"official\.safetensors is damaged"):
        read_surplus(tmp_path)
