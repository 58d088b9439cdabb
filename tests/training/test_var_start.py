"""A VAR that starts from another one: what is copied, what is made up, and that it is said."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from varlit.errors import UserError
from varlit.losses.next_scale import next_scale_loss
from varlit.models.config import TokenizerConfig, VARConfig
from varlit.models.files import LoadedVAR, load_var, save_tokenizer, save_var
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE
from varlit.ops.scales import Scales
from varlit.training.lora import LoRAConfig, add_lora
from varlit.training.var_start import start_classes, start_from, start_places

pytestmark = pytest.mark.filterwarnings("ignore:.*(num_workers|bottleneck|GPU available)")

TOKENIZER = TokenizerConfig(32, (1, 1, 1), 1, codebook_size=24, codebook_dim=8, scales=(1, 2, 4))
BODY = VARConfig(depth=2, width=32, num_heads=4)
NAMES = ("cat", "dog", "owl")


@torch.no_grad()
def make_var(body=BODY, tokenizer=TOKENIZER, num_classes=3):
    """A VAR in which every weight has a say: a fresh one's gates are next to closed."""
    var = VAR(body, tokenizer, num_classes).eval()
    for parameter in var.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    return var


@pytest.fixture
def source(tmp_path):
    """A VAR folder with its tokenizer."""
    tokenizer = VQVAE(TOKENIZER)
    save_var(make_var(), tokenizer, tmp_path / "source", NAMES)
    return tmp_path / "source"


def inputs(var, batch_size=3):
    length = var.scales.num_tokens - var.scales.lengths[0]
    return torch.randn(batch_size, length, var.tokenizer_config.codebook_dim)


def bundled(folder):
    return load_var(folder).tokenizer


def test_a_var_of_the_same_shape_starts_as_the_other_to_the_bit(source, capsys):
    own, other = make_var(), load_var(source).var
    start_from(own, str(source), NAMES, bundled(source))
    labels, x = torch.tensor([0, 2, 3]), inputs(own)
    assert torch.equal(own(labels, x), other(labels, x))
    assert capsys.readouterr().out == f"varlit: starts from {source}: all of it\n"


def test_random_numbers_are_not_touched(source):
    own, state = make_var(num_classes=5), torch.get_rng_state()
    start_from(own, str(source), ("a", "b", "c", "d", "e"), bundled(source))
    assert torch.equal(torch.get_rng_state(), state)


def test_classes_are_found_by_name_and_new_ones_start_unconditional(source, capsys):
    own, other = make_var(num_classes=4), load_var(source).var
    start_from(own, str(source), ("Newt", "OWL", "cat", "yak"), bundled(source))
    x = inputs(own, 5)
    found = own(torch.tensor([0, 1, 2, 3, 4]), x)
    expected = other(torch.tensor([3, 2, 0, 3, 3]), x)  # 3 is the other's unconditional label
    assert torch.equal(found, expected)
    said = capsys.readouterr().out
    assert (
        "2 of 4 classes found by name, new ones start as its unconditional one (Newt, yak)" in said
    )


def test_many_new_classes_are_not_all_named(source):
    names = [f"new{i}" for i in range(9)]
    assert "(new0, new1, new2, ...)" in start_classes(9, names, load_var(source)).note


def test_names_that_differ_in_case_alone_are_told_apart(source):
    other = replace(load_var(source), class_names=("Crane", "crane", "owl"))
    table = other.var.class_embedding.weight
    for names, rows in ((["crane", "Crane", "owl"], [1, 0, 2, 3]), (["CRANE", "owl"], [3, 2, 3])):
        part = start_classes(len(names), names, other)
        assert torch.equal(part.weights["class_embedding.weight"], table[rows])


def test_without_names_rows_are_taken_in_order_if_there_are_as_many(source):
    nameless = replace(load_var(source), class_names=())
    table = nameless.var.class_embedding.weight
    part = start_classes(3, NAMES, nameless)
    assert torch.equal(part.weights["class_embedding.weight"], table)
    assert part.note == "its 3 classes in their order, for it has no names"
    fewer = start_classes(2, ("cat", "dog"), nameless)
    assert torch.equal(fewer.weights["class_embedding.weight"], table[[3, 3, 3]])


def test_new_classes_that_start_equal_grow_apart(source):
    own = make_var(num_classes=2)
    start_from(own, str(source), ("newt", "yak"), bundled(source))
    row = own.class_embedding.weight
    assert torch.equal(row[0], row[1])
    assert row[0].norm() > 0
    tokens = torch.randint(24, (4, 21))
    logits = own(torch.tensor([0, 0, 1, 1]), bundled(source).teacher_inputs(tokens))
    next_scale_loss(logits, tokens, own.scales).loss.backward()
    newt, yak, unconditional = row.grad
    assert unconditional.norm() == 0
    assert torch.cosine_similarity(newt, yak, dim=0) < 0.9
    assert min(newt.norm(), yak.norm()) > 0


@pytest.mark.parametrize("scales", [(1, 2, 4, 7), (1, 2, 4, 5, 6), (1, 2, 3)])
def test_scales_that_begin_alike_have_the_same_logits_there(source, scales):
    tokenizer = replace(TOKENIZER, scales=scales)
    own, other = make_var(tokenizer=tokenizer), load_var(source).var
    start_from(own, str(source), NAMES, bundled(source).with_scales(scales))
    same = 21 if scales[2] == 4 else 5  # tokens of the scales that both have
    x = inputs(own)
    theirs = torch.zeros(3, 20, 8)
    theirs[:, : same - 1] = x[:, : same - 1]
    labels = torch.tensor([0, 1, 3])
    found, expected = own(labels, x)[:, :same], other(labels, theirs)[:, :same]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_flat_map_stays_flat_and_a_slope_a_slope(source):
    var = load_var(source).var
    flat, slope = torch.randn(32), torch.arange(4.0).repeat(4)
    var.position[:, 5:] = flat
    part = start_places(Scales((1, 2, 3, 4, 8)), var)
    maps = part.weights["position"]
    assert maps.shape == (1, 94, 32)
    torch.testing.assert_close(maps[:, 5:14], flat.expand(1, 9, 32))  # 3 from 4: shrunk
    torch.testing.assert_close(maps[:, 30:], flat.expand(1, 64, 32))  # 8 from 4: enlarged
    assert torch.equal(maps[:, :5], var.position[:, :5])
    var.position[0, 5:, 0] = slope
    grown = start_places(Scales((1, 8)), var).weights["position"][0, 1:, 0].unflatten(0, (8, 8))
    assert (grown[:, 1:] - grown[:, :-1] > 0)[:, 1:-1].all()
    torch.testing.assert_close(grown[0], grown[-1])


def test_levels_come_from_the_nearest_side_and_it_is_said(source, capsys):
    tokenizer = replace(TOKENIZER, scales=(1, 2, 3, 4, 9))
    own, other = make_var(tokenizer=tokenizer), load_var(source).var
    start_from(own, str(source), NAMES, bundled(source).with_scales(tokenizer.scales))
    levels = other.level_embedding.weight[[0, 1, 2, 2, 2]]  # 3 lies between 2 and 4: the larger
    assert torch.equal(own.level_embedding.weight, levels)
    said = capsys.readouterr().out
    assert "places of scales 3 from 4, 9 from 4 interpolated, the others copied" in said


@pytest.mark.parametrize("whole", [("class_embedding",), ("position", "level_embedding")])
def test_guesses_that_adapters_leave_frozen_are_warned_of(source, whole):
    tokenizer = replace(TOKENIZER, scales=(1, 2, 3, 4))
    own = make_var(tokenizer=tokenizer, num_classes=1)
    add_lora(own, LoRAConfig(rank=2, whole=whole))
    lacking = {"class_embedding", "position", "level_embedding"} - set(whole)
    with pytest.warns(UserWarning, match=r"lora\.whole lacks") as caught:
        start_from(own, str(source), ("newt",), bundled(source).with_scales(tokenizer.scales))
    told = str(caught[0].message).partition(",")[0]
    assert {word for word in told.split() if "embedding" in word or word == "position"} == lacking


def test_a_first_map_of_another_side_brings_its_start_along(source):
    var = load_var(source).var
    part = start_places(Scales((2, 4)), var)
    torch.testing.assert_close(part.weights["start_position"], var.start_position.expand(1, 4, 32))
    assert torch.equal(part.weights["position"], var.position[:, 1:])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"depth": 1}, r"has depth 2, this VAR has 1\. Set --model\.var\.depth 2"),
        ({"width": 64}, r"--model\.var\.width 32"),
        ({"num_heads": 2}, r"--model\.var\.num_heads 4"),
        ({"mlp_ratio": 2.0}, r"--model\.var\.mlp_ratio 4"),
        ({"qk_l2_norm": False}, r"--model\.var\.qk_l2_norm true"),
        ({"shared_adaln": True}, r"--model\.var\.shared_adaln false"),
    ],
)
def test_a_body_of_another_shape_is_refused_with_the_flag_that_mends_it(source, change, told):
    with pytest.raises(UserError, match=told):
        start_from(make_var(replace(BODY, **change)), str(source), NAMES, bundled(source))


@pytest.mark.parametrize("change", [{"codebook_size": 12}, {"codebook_dim": 4}])
def test_codes_of_another_shape_are_refused(source, change):
    tokenizer = replace(TOKENIZER, **change)
    with pytest.raises(UserError, match=rf"{next(iter(change))} .* --data\.tokens a cache"):
        start_from(make_var(tokenizer=tokenizer), str(source), NAMES, VQVAE(tokenizer))


def test_another_codebook_is_warned_of_and_the_same_one_is_not(source, recwarn):
    start_from(make_var(), str(source), NAMES, bundled(source))
    assert not recwarn.list
    tuned = bundled(source)
    tuned.quantizer.codebook.weight.data.mul_(1.02)
    with pytest.warns(UserWarning, match="differs by 2% of its length"):
        start_from(make_var(), str(source), NAMES, tuned)
    nn.init.normal_(tuned.quantizer.codebook.weight, std=source_std(source))
    with pytest.warns(UserWarning, match=r"differs by 1[345]\d%"):
        start_from(make_var(), str(source), NAMES, tuned)


def source_std(folder):
    weight = bundled(folder).quantizer.codebook.weight
    return weight.pow(2).mean().sqrt().item()


def test_a_start_without_a_tokenizer_is_warned_of(source, tmp_path):
    save_var(load_var(source).var, None, tmp_path / "alone", NAMES)
    with pytest.warns(UserWarning, match="holds no tokenizer"):
        start_from(make_var(), str(tmp_path / "alone"), NAMES, VQVAE(TOKENIZER))


def test_what_is_no_var_is_refused(source, tmp_path):
    tokenizer = VQVAE(TOKENIZER)
    with pytest.raises(UserError, match=r"no config\.json in gone or runs/gone"):
        start_from(make_var(), "gone", NAMES, tokenizer)
    with pytest.raises(UserError, match="holds a tokenizer, not a VAR"):
        start_from(make_var(), str(source / "tokenizer"), NAMES, tokenizer)
    (tmp_path / "var_d16.pth").touch()
    with pytest.raises(UserError, match=r"varlit convert .*var_d16\.pth"):
        start_from(make_var(), str(tmp_path / "var_d16.pth"), NAMES, tokenizer)


@pytest.fixture
def start(cache, tmp_path):
    """A VAR of the modules' shape, with the tokenizer of their cache."""
    loaded = LoadedVAR(make_var(), None, cache)
    save_var(loaded.var, cache / "tokenizer", tmp_path / "start", ("cat", "dog", "owl"))
    return tmp_path / "start"


def test_training_begins_at_the_start_and_so_does_the_average(
    start, make_var_module, make_trainer, tokens, assert_same
):
    module = make_var_module(init_from=str(start), optim={"lr": 1e-30, "weight_decay": 0.0})
    make_trainer(max_steps=1).fit(module, tokens)
    expected = load_var(start).var.state_dict()
    assert_same(module.network.state_dict(), expected)
    assert_same(module.average.state_dict(), expected)


def test_a_resumed_run_is_the_whole_run_and_needs_the_start_no_more(
    start, make_var_module, make_trainer, tokens, tmp_path, assert_same, save_at, capsys
):
    whole, path = make_var_module(init_from=str(start)), tmp_path / "half.ckpt"
    make_trainer(save_at(2, path), max_steps=4).fit(whole, tokens)
    assert capsys.readouterr().out.count("starts from") == 1
    again = make_var_module(init_from="gone")  # no part of the architecture either
    make_trainer(max_steps=4).fit(again, tokens, ckpt_path=path)
    assert_same(again.state_dict(), whole.state_dict())
    assert "starts from" not in capsys.readouterr().out
    loaded = type(whole).load_from_checkpoint(path, weights_only=True)
    make_trainer(limit_val_batches=1).validate(loaded, tokens, verbose=False)
    assert_same(loaded.state_dict(), torch.load(path, weights_only=True)["state_dict"])


def test_a_second_call_goes_on_instead_of_starting_again(
    start, make_var_module, make_trainer, tokens, assert_same
):
    module = make_var_module(init_from=str(start))
    make_trainer(max_steps=2).fit(module, tokens)
    trained = {k: v.clone() for k, v in module.state_dict().items()}
    make_trainer(limit_val_batches=1).validate(module, tokens, verbose=False)
    assert_same(module.state_dict(), trained)


def test_a_converted_var_is_measured_on_a_cache_without_training(
    start, make_var_module, make_trainer, tokens
):
    module = make_var_module(init_from=str(start))
    (found,) = make_trainer(limit_val_batches=1.0).validate(module, tokens, verbose=False)
    batches = list(tokens.val_dataloader())
    batch = {key: torch.cat([b[key] for b in batches]) for key in ("tokens", "label")}
    other = load_var(start)
    logits = other.var(batch["label"], other.tokenizer.teacher_inputs(batch["tokens"]))
    expected = next_scale_loss(logits, batch["tokens"], tokens.scales).loss.item()
    assert found["val/loss/mean"] == pytest.approx(expected, rel=1e-4)


def test_other_tokenizers_of_the_same_codebook_are_told_from_the_cache_alone(start, tmp_path):
    # As 256 and 512 px share one: the hash differs, the codes do not.
    wide = bundled(start).with_scales((1, 2, 4, 8))
    save_tokenizer(wide, tmp_path / "wide")
    own = make_var(tokenizer=wide.config)
    start_from(own, str(start), NAMES, wide)
    assert own.scales.sides == (1, 2, 4, 8)
