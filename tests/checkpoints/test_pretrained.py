import copy
import json

import pytest
import torch

import varlit
from varlit.checkpoints.official import official_state
from varlit.checkpoints.official_shapes import HIT_STATISTIC
from varlit.checkpoints.pretrained import PretrainedVAR, PretrainedVQVAE, load
from varlit.errors import UserError
from varlit.generation.sampler import Sampler, SamplingSettings
from varlit.models.files import load_var, save_var
from varlit.models.vqvae import VQVAE

DEFAULTS = SamplingSettings(cfg_scale=1.5, top_k=900, top_p=0.96)


@pytest.fixture
def models(runs):
    return load("tok", runs), load("d1", runs)


def test_a_model_is_loaded_by_the_name_of_its_run_or_by_path(runs):
    for tokenizer in (load("tok", runs), load(runs / "tok"), load(str(runs / "d1" / "tokenizer"))):
        assert isinstance(tokenizer, PretrainedVQVAE)
    var = load("d1", root=str(runs))
    assert isinstance(var, PretrainedVAR)
    assert var.class_names == ("cat", "dog")


def test_what_is_loaded_is_frozen_and_speaks_of_the_same_tokens(models):
    tokenizer, var = models
    assert not var.training
    assert not any(p.requires_grad for p in (*var.parameters(), *tokenizer.parameters()))
    images = torch.rand(2, 3, 2, 2) * 2 - 1
    assert torch.equal(var.tokenizer.encode(images), tokenizer.encode(images))
    assert not any("tokenizer" in name for name in var.state_dict()), "no weights of the VAR"


def test_the_package_offers_it(runs, monkeypatch):
    monkeypatch.chdir(runs.parent)
    assert varlit.load is load
    assert isinstance(varlit.load(runs / "tok"), varlit.VQVAE)
    assert isinstance(varlit.load(runs / "d1"), varlit.VAR)


def test_tokens_inputs_and_logits_have_the_documented_shapes(models):
    tokenizer, var = models
    tokens = tokenizer.encode(torch.zeros(2, 3, 2, 2))
    inputs = tokenizer.teacher_inputs(tokens)
    assert (tokens.shape, inputs.shape) == ((2, 5), (2, 4, 4))
    assert var(torch.tensor([0, 2]), inputs).shape == (2, 5, 8)
    assert tokenizer.decode(tokens).shape == (2, 3, 2, 2)
    assert tokenizer.scales == var.scales


def test_sampling_is_the_sampler_with_official_settings(models):
    tokenizer, var = models
    images, tokens = var.sample(
        [0, 1, None],
        tokenizer=tokenizer,
        generator=torch.Generator().manual_seed(3),
        return_tokens=True,
        batch_size=1,
    )
    labels, generator = torch.tensor([0, 1, 2]), torch.Generator().manual_seed(3)
    expected = Sampler(var, tokenizer).draw(labels, DEFAULTS, generator)
    assert torch.equal(tokens, expected.tokens), "one batch, whatever batch_size says"
    assert torch.equal(images, expected.images)


def test_a_seed_gives_each_image_its_own_whatever_the_batch(models):
    tokenizer, var = models
    images, tokens = var.sample([0, 1, 0], seed=4, return_tokens=True)
    one_by_one, same = var.sample([0, 1, 0], tokenizer, seed=4, batch_size=1, return_tokens=True)
    assert torch.equal(tokens, same)
    torch.testing.assert_close(images, one_by_one)
    assert torch.equal(tokens[1:], var.sample([1, 0], seed=[5, 6], return_tokens=True)[1])


def test_nothing_but_the_official_defaults_and_both_guidances_are_selectable(models):
    _, var = models
    settings = {"cfg_scale": 3.0, "top_k": 0, "top_p": 0.0, "seed": 0}
    ramp = var.sample([0] * 8, **settings)
    usual = var.sample([0] * 8, guidance="constant", **settings)
    assert ramp.shape == usual.shape == (8, 3, 2, 2)
    with pytest.raises(UserError, match="guidance must be one of"):
        var.sample(0, guidance="strong")


def test_editing_keeps_what_is_not_masked(models):
    tokenizer, var = models
    images = torch.rand(2, 3, 2, 2) * 2 - 1
    nothing = torch.zeros(2, 2)
    with pytest.warns(UserWarning, match="the mask is empty"):
        assert torch.equal(var.edit(images, nothing, seed=0), tokenizer.reconstruct(images))
    mask = torch.tensor([[True, False], [False, False]])
    edited, tokens = var.edit(images, mask, [0, 1], tokenizer, seed=0, return_tokens=True)
    own = tokenizer.encode(images)
    kept = torch.tensor([True, False, True, True, True])
    assert torch.equal(tokens[:, kept], own[:, kept])
    assert edited.shape == images.shape
    with pytest.raises(UserError, match="a label for each of 2 images"):
        var.edit(images, mask, [0])


def test_variants_keep_the_known_pixels_and_have_seeds_of_their_own(models):
    _, var = models
    images = torch.rand(2, 3, 2, 2) * 2 - 1
    mask = torch.tensor([[True, False], [False, False]])
    fields = {"keep_known_pixels": True, "feather_px": 0, "top_k": 0, "top_p": 0.0}
    edited, tokens = var.edit(images, mask, 1, variants=3, seed=4, return_tokens=True, **fields)
    assert (edited.shape, tokens.shape) == ((6, 3, 2, 2), (6, 5))
    assert torch.equal(edited[..., ~mask], images.repeat_interleave(3, 0)[..., ~mask])
    third, same = var.edit(images[1:], mask, 1, seed=9, return_tokens=True, **fields)
    assert torch.equal(tokens[5:], same)
    torch.testing.assert_close(edited[5:], third)


def test_a_picture_is_continued_on_a_canvas_of_another_ratio(models):
    tokenizer, var = models
    images = torch.rand(1, 3, 2, 2) * 2 - 1
    wide = var.outpaint(images, (2, 5), [0], tokenizer, variants=2, feather_px=0, seed=1)
    assert wide.shape == (2, 3, 2, 5)
    assert torch.equal(wide[..., 1:3], images.expand(2, -1, -1, -1))
    right = var.outpaint(images, (2, 3), corner=(0, 0), feather_px=0, seed=1)
    assert torch.equal(right[..., :2], images)
    with pytest.raises(UserError, match="does not lie inside a canvas of 2x1 px"):
        var.outpaint(images, (1, 2))


def test_a_model_is_saved_as_it_was_loaded(models, tmp_path):
    for model in models:
        again = load(model.save_pretrained(tmp_path / model.kind))
        assert type(again) is type(model)
        found, expected = again.state_dict(), model.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)
    assert torch.equal(again.sample([0], seed=0), model.sample([0], seed=0))
    assert again.class_names == model.class_names


def test_a_class_loads_its_own_kind_and_refuses_the_other(runs):
    assert isinstance(PretrainedVAR.from_pretrained(runs / "d1"), PretrainedVAR)
    assert isinstance(PretrainedVQVAE.from_pretrained(runs / "tok"), VQVAE)
    with pytest.raises(UserError, match="is not a tokenizer"):
        PretrainedVQVAE.from_pretrained(runs / "d1")


def test_a_model_goes_to_the_hub_as_the_folder_that_it_is_loaded_from(models, monkeypatch):
    sent = {}

    def upload(folder, repo_id, kind, private):
        sent[kind] = sorted(str(p.relative_to(folder)) for p in folder.rglob("*.*"))
        assert torch.equal(load(folder).sample([1], seed=0), models[1].sample([1], seed=0))
        return f"{repo_id} {private}"

    monkeypatch.setattr("varlit.checkpoints.hub.upload", upload)
    assert models[1].push_to_hub("you/d1", private=True) == "you/d1 True"
    names = ["config.json", "model.safetensors"]
    assert sent == {"VAR": [*names, *(f"tokenizer/{name}" for name in names)]}


def test_a_hub_name_is_asked_of_the_hub_and_local_folders_come_first(runs, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "varlit.checkpoints.store.fetch", lambda *args: asked.append(args) or runs / "tok"
    )
    monkeypatch.chdir(runs)
    assert isinstance(load("you/tok", revision="v2"), PretrainedVQVAE)
    assert isinstance(load("d1/tokenizer"), PretrainedVQVAE)
    assert asked == [("you/tok", "v2")]


def test_a_var_without_a_tokenizer_computes_but_says_what_drawing_needs(runs, models):
    tokenizer, var = models
    save_var(load_var(runs / "d1").var, None, runs / "alone")
    alone = load("alone", runs)
    assert torch.equal(alone.sample([0], tokenizer, seed=0), var.sample([0], seed=0))
    with pytest.raises(UserError, match=r"holds no tokenizer.*--tokenizer RUN"):
        alone.sample([0])
    assert json.loads((runs / "alone" / "config.json").read_text())["tokenizer_hash"] == ""


def test_a_tokenizer_of_other_scales_is_bundled_with_those_of_the_var(runs):
    var = load_var(runs / "d1").var
    tokenizer = load("tok", runs).with_scales((1, 3))
    tokenizer.save_pretrained(runs / "other")
    save_var(var, runs / "other", runs / "d2")
    assert load("d2", runs).tokenizer.scales == var.scales


def test_the_tokenizer_of_a_var_is_one_object_and_the_var_holds_its_weights_once(models):
    _, var = models
    assert var.tokenizer is var.tokenizer
    held = [value for value in var.__dict__.values() if isinstance(value, torch.nn.Module)]
    assert held == [var.tokenizer], "after .half() a second network would keep the old weights"


def test_a_var_in_half_precision_draws_with_the_tokenizer_in_full(models):
    _, var = models
    for dtype in (torch.bfloat16, torch.float16):
        images = var.to(dtype).sample([0, None], seed=0)
        assert (images.dtype, var.tokenizer.last_layer.dtype) == (torch.float32, torch.float32)
        assert var.edit(images, torch.ones(2, 2), seed=0).isfinite().all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": [-1]}, r"labels must lie in 0\.\.1.*got -1"),
        ({"seed": 1.5}, "a seed must be a whole number"),
        ({"generator": 3}, r"a torch\.Generator"),
        ({"tokenizer": "runs/tokenizer"}, "must be a tokenizer"),
        ({"batch_size": 0}, "at least 1"),
        ({"batch_size": 1.5}, "batch_size must be a whole number; got 1.5"),
        ({"draw": "quick"}, "draw must be one of"),
    ],
)
def test_what_cannot_be_drawn_is_refused(models, fields, message):
    _, var = models
    with pytest.raises(UserError, match=message):
        var.sample(**({"labels": [0]} | fields))
    fields = {"labels": [0]} | fields
    with pytest.raises(UserError, match=message):
        var.edit(torch.zeros(1, 3, 2, 2), torch.ones(2, 2), **fields)


def test_what_was_noted_of_an_official_file_is_a_warning(models, tmp_path):
    state = {k: v for k, v in official_state(models[0]).items() if k != HIT_STATISTIC}
    torch.save(state, tmp_path / "vae.pth")
    with pytest.warns(UserWarning, match="does not tell its scales"):
        load(tmp_path / "vae.pth")


def by_colour(images):
    """Logits of two classes: the redder, the more a cat; the bluer, the more a dog."""
    return 30 * images.mean(dim=(2, 3))[:, [0, 2]]


def test_a_classifier_keeps_the_best_of_each_class(models):
    _, var = models
    labels = [0, 1, 0, 1]
    options = {"top_k": 0, "top_p": 0.0, "return_tokens": True}
    images, tokens = var.sample(
        labels, seed=3, keep=0.25, classifier=by_colour, batch_size=3, **options
    )
    for label in (0, 1):
        seeds = [4 * (3 + i) + r for i, one in enumerate(labels) if one == label for r in range(4)]
        drawn, _ = var.sample([label] * 8, seed=seeds, **options)
        logits = by_colour(drawn)
        odds = logits[:, label] - logits[:, 1 - label]
        best = drawn[odds.topk(2).indices.sort().values]
        torch.testing.assert_close(images[label::2], best, rtol=0, atol=1e-6)
    assert tokens.shape == (4, 5)


def test_the_classes_of_a_classifier_are_those_of_the_model_or_listed(models):
    _, var = models
    fixed = {"seed": 0, "keep": 0.5}
    with pytest.raises(UserError, match="has 3 classes and the model 2"):
        var.sample([0, 1], classifier=lambda x: x.mean(dim=(2, 3)), **fixed)
    with pytest.warns(UserWarning, match=r"does not know the classes \[1\]"):
        var.sample(
            [0, 1], classifier=lambda x: x.mean(dim=(2, 3)), classifier_classes=[2, None], **fixed
        )
    with pytest.warns(UserWarning, match=r"does not know the classes \[2\]"):
        var.sample([0, None], classifier=by_colour, **fixed)


def test_a_choice_without_what_it_needs_is_refused(models):
    _, var = models
    with pytest.raises(UserError, match="needs a classifier"):
        var.sample([0], seed=0, keep=0.5)
    with pytest.raises(UserError, match="above 0 and up to 1; got 2"):
        var.sample([0], seed=0, keep=2, classifier=by_colour)
    with pytest.raises(UserError, match="needs a seed"):
        var.sample([0], generator=torch.Generator(), keep=0.5, classifier=by_colour)
    with pytest.raises(UserError, match="is not a number"):
        var.sample([0], seed=0, keep=0.5, classifier=lambda x: by_colour(x) * float("nan"))


def test_without_a_seed_the_choice_follows_torch_s_global_stream(models):
    _, var = models
    drawn = []
    for start in (0, 0, 1):
        torch.manual_seed(start)
        drawn.append(var.sample([0, 1], keep=0.5, classifier=by_colour))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_pictures_start_from_the_coarse_maps_of_given_ones(models):
    tokenizer, var = models
    given = tokenizer.encode(torch.rand(2, 3, 2, 2) * 2 - 1)
    start = {"coarse_tokens": given, "keep_scales": 1, "return_tokens": True}
    _, tokens = var.sample([0, 1], tokenizer=tokenizer, seed=0, **start)
    assert torch.equal(tokens[:, :1], given[:, :1])
    start["coarse_tokens"] = tokens[:1]
    _, others = var.sample([0] * 8, tokenizer=tokenizer, seed=range(5, 13), batch_size=3, **start)
    assert (others[:, :1] == tokens[:1, :1]).all()
    assert len(others[:, 1:].unique(dim=0)) > 1
    _, again = var.sample([0], tokenizer=tokenizer, seed=0, **start)
    assert torch.equal(again, tokens[:1]), "a seed draws its own picture again"
    with pytest.raises(UserError, match=r"keep_scales must lie in 1\.\.1"):
        var.sample([0], coarse_tokens=given[:1])
    with pytest.raises(UserError, match="coarse_tokens or keep"):
        var.sample([0], coarse_tokens=given[:1], keep_scales=1, keep=0.5)


def test_every_verb_draws_among_sorted_codes_where_asked(models):
    _, var = models
    images, mask = torch.rand(9, 3, 2, 2) * 2 - 1, torch.ones(2, 2)
    for weight in var.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    free = {"seed": 0, "top_k": 4, "top_p": 0.0, "cfg_scale": 0.0}
    verbs = (
        lambda **how: var.sample([0] * 9, **free, **how),
        lambda **how: var.edit(images, mask, **free, **how),
        lambda **how: var.outpaint(images, (2, 4), **free, **how),
    )
    for draw in verbs:
        exact, sorted_codes = draw(), draw(draw="sorted")
        assert torch.equal(exact, draw(draw="exact"))
        assert not torch.equal(exact, sorted_codes)


def test_a_model_keeps_its_cast_weights_from_call_to_call(models, casts):
    _, var = models
    with torch.autocast("cpu", torch.bfloat16), casts(var) as seen:
        for seed in (0, 1):
            var.sample([0, 1], seed=seed)
        var.outpaint(torch.zeros(1, 3, 2, 2), (2, 6), seed=0)
    assert seen.most == 1
    assert torch.equal(copy.deepcopy(var).sample(0, seed=3), var.sample(0, seed=3))
