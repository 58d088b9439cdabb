import shutil
from weakref import WeakKeyDictionary

import pytest
import torch

from varlit.models import decoder_speed
from varlit.models.autoencoder import NormSiLU
from varlit.models.config import TokenizerConfig
from varlit.models.decoder_speed import (
    EAGER_WAYS,
    MAX_DIFFERENCE,
    PREFERENCE,
    DecoderChoice,
    DecoderTiming,
    build_decoder,
    choose_decoder,
    prefer_decoder,
    preference,
    rows_at_a_time,
)
from varlit.models.vqvae import VQVAE


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch):
    monkeypatch.setattr(decoder_speed, "_CHOICES", WeakKeyDictionary())
    monkeypatch.setattr(decoder_speed, "_PREFERENCES", WeakKeyDictionary())


@pytest.fixture
def tokenizer(make_tokenizer):
    return make_tokenizer()


@pytest.fixture
def f_hat(tokenizer):
    return tokenizer.quantizer.decode(torch.randint(24, (3, 21)))


def test_fp32_is_the_tokenizer_itself(tokenizer, f_hat):
    expected = tokenizer.decode_features(f_hat)
    assert torch.equal(build_decoder(tokenizer, "fp32")(f_hat), expected)


def test_bf16_is_near_and_leaves_the_tokenizer_as_it_was(tokenizer, f_hat):
    expected = tokenizer.decode_features(f_hat)
    images = build_decoder(tokenizer, "bf16")(f_hat)
    assert (images.dtype, images.shape) == (torch.float32, expected.shape)
    assert 0 < (images - expected).abs().mean() < MAX_DIFFERENCE
    assert images.abs().max() <= 1
    assert all(weight.dtype == torch.float32 for weight in tokenizer.parameters())
    assert torch.equal(tokenizer.decode_features(f_hat), expected)


def test_half_precision_does_not_depend_on_the_autocast_around_it(tokenizer, f_hat):
    decode = build_decoder(tokenizer, "bf16")
    expected = decode(f_hat)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(decode(f_hat), expected)


def test_large_batches_are_cut_and_give_the_same_images(tokenizer, f_hat, monkeypatch):
    expected = build_decoder(tokenizer, "bf16")(f_hat)
    monkeypatch.setattr(decoder_speed, "MAX_ROWS", 2)
    found = build_decoder(tokenizer, "bf16")(f_hat)
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)


def test_fused_norms_get_what_the_norm_has(tokenizer, f_hat, monkeypatch):
    seen = []

    def fused(x, num_groups, weight, bias, eps):
        seen.append((x.is_contiguous(memory_format=torch.channels_last), num_groups, eps))
        y = torch.nn.functional.group_norm(x, num_groups, weight, bias, eps)
        return torch.nn.functional.silu(y)

    monkeypatch.setattr(decoder_speed, "group_norm_silu", fused)
    monkeypatch.setattr(decoder_speed.importlib.util, "find_spec", lambda name: object())
    expected = build_decoder(tokenizer, "bf16")(f_hat)
    found = build_decoder(tokenizer, "bf16_fused")(f_hat)
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0)
    norms = [m for m in tokenizer.decoder.modules() if isinstance(m, NormSiLU)]
    assert [call[1:] for call in seen] == [(32, 1e-6)] * len(norms)
    assert seen[0][0], "the layout arrives"
    assert all(norm.fused is None for norm in norms), "the tokenizer's own are left alone"


def test_it_is_measured_once_for_a_shape_and_what_fails_is_named(tokenizer, monkeypatch):
    built, build = [], build_decoder

    def some_fail(tokenizer, way):
        built.append(way)
        if way == "bf16_compiled":
            raise RuntimeError("no compiler\nat all")
        return build(tokenizer, way)

    monkeypatch.setattr(decoder_speed, "build_decoder", some_fail)
    ways = ("bf16", "bf16_compiled")
    choice = choose_decoder(tokenizer, 2, ways)
    assert {timing.way for timing in choice.timings} == {"fp32", "bf16"}
    assert choice.skipped == ("bf16_compiled: RuntimeError: no compiler",)
    assert choice.timings[0].seconds <= choice.timings[1].seconds
    assert choose_decoder(tokenizer, 2, ways) is choice
    assert built == ["bf16", "bf16_compiled"], "fp32 is the tokenizer itself"
    choose_decoder(tokenizer, 3, ways)
    assert len(built) == 4, "another shape is measured"


@pytest.fixture
def built(monkeypatch):
    """The ways that were built, on a device that suits all, whatever the clock says."""
    ways, build = [], build_decoder

    def some_are_wrong(tokenizer, way):
        ways.append(way)
        if way == "bf16_compiled_nhwc":
            raise RuntimeError("no compiler")
        decode = build(tokenizer, "bf16")
        shift = 2 * MAX_DIFFERENCE if way == "bf16_fused" else 0.0
        return lambda f_hat: decode(f_hat) + shift

    def no_clock(*_):
        raise AssertionError("the choice looks at a clock")

    monkeypatch.setattr(decoder_speed, "build_decoder", some_are_wrong)
    monkeypatch.setattr(decoder_speed, "preference", lambda device: PREFERENCE)
    monkeypatch.setattr(decoder_speed, "seconds_of", no_clock)
    return ways


def test_the_order_of_preference_is_fixed_and_what_is_wrong_is_passed_over(tokenizer, built):
    assert prefer_decoder(tokenizer, 2) == "bf16_compiled"
    assert built == ["bf16_compiled_nhwc", "bf16_fused", "bf16_compiled"]
    assert prefer_decoder(tokenizer, 3) == "bf16_compiled", "another size is decoded alike"
    assert len(built) == 3
    assert prefer_decoder(tokenizer, 2, EAGER_WAYS) == "bf16"
    assert prefer_decoder(tokenizer, 2, ()) == "fp32"


def test_each_tokenizer_is_checked_by_its_weights_and_not_by_its_shape(
    make_tokenizer, built, monkeypatch
):
    first, second = make_tokenizer(), make_tokenizer()
    assert first.config == second.config
    prefer_decoder(first, 2, EAGER_WAYS)
    monkeypatch.setattr(decoder_speed, "MAX_DIFFERENCE", -1.0)
    assert prefer_decoder(first, 2, EAGER_WAYS) == "bf16", "remembered"
    assert prefer_decoder(second, 2, EAGER_WAYS) == "fp32"
    with torch.no_grad():
        first.last_layer.mul_(2)
    assert prefer_decoder(first, 2, EAGER_WAYS) == "fp32", "other weights"


def test_timings_are_of_a_tokenizer_and_its_weights(make_tokenizer):
    first, second = make_tokenizer(), make_tokenizer()
    before = choose_decoder(first, 1, ())
    assert choose_decoder(second, 1, ()) is not before
    assert choose_decoder(first, 1, ()) is before
    with torch.no_grad():
        first.last_layer.mul_(2)
    assert choose_decoder(first, 1, ()) is not before


def test_only_devices_that_compute_in_bf16_are_asked_to(monkeypatch):
    gpu = torch.device("cuda", 0)
    assert preference(torch.device("cpu")) == ("fp32",)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert preference(gpu) == ("fp32",)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert preference(gpu) == PREFERENCE


def test_the_fastest_within_the_bound_is_taken():
    timings = (
        DecoderTiming("bf16_fused", 1.0, 2 * MAX_DIFFERENCE),
        DecoderTiming("bf16", 2.0, MAX_DIFFERENCE / 2),
        DecoderTiming("fp32", 3.0, 0.0),
    )
    assert DecoderChoice(timings, ()).way == "bf16"
    assert DecoderChoice((timings[0], timings[2]), ()).way == "fp32"


def test_measuring_leaves_the_random_stream_alone(tokenizer):
    before = torch.get_rng_state()
    choose_decoder(tokenizer, 1, ())
    assert torch.equal(torch.get_rng_state(), before)


def test_rows_at_a_time_keep_a_layer_below_what_32_bits_count():
    def rows(side):
        network = VQVAE.__new__(VQVAE)
        torch.nn.Module.__init__(network)
        network.config = TokenizerConfig(scales=(1, side))
        return rows_at_a_time(network)

    assert (rows(16), rows(32), rows(64)) == (64, 16, 4)
    assert rows(32) * 160 * 512**2 < 2**31


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_a_compiled_decoder_is_near_too(tokenizer, f_hat):
    images = build_decoder(tokenizer, "bf16_compiled_nhwc")(f_hat)
    assert (images - tokenizer.decode_features(f_hat)).abs().mean() < MAX_DIFFERENCE


@pytest.mark.gpu
def test_a_gpu_builds_every_way(make_tokenizer):
    choice = choose_decoder(make_tokenizer().cuda(), 4)
    assert choice.skipped == ()
    assert all(timing.difference <= MAX_DIFFERENCE for timing in choice.timings)
