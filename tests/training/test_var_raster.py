"""The raster-scan baseline goes through every part of stage 2 that next-scale prediction does."""

import math
from contextlib import nullcontext

import pytest
import torch

from varlit.callbacks.completions import Completions, given_steps
from varlit.callbacks.samples import Samples
from varlit.data.tokens.manifest import TOKENIZER_FOLDER
from varlit.data.tokens.module import TokenDataModule
from varlit.errors import UserError
from varlit.generation.sampler import Sampler
from varlit.losses.next_scale import next_scale_loss
from varlit.models.config import VARConfig
from varlit.models.files import load_var, save_var
from varlit.ops.costs import TransformerShape, transformer_costs
from varlit.ops.raster import RasterScan
from varlit.ops.scales import OFFICIAL_SCALES, Scales
from varlit.training.evaluation_config import EvaluationConfig
from varlit.training.lora import LoRAConfig
from varlit.training.optim import OptimConfig
from varlit.training.var import VARModule
from varlit.training.var_evaluation import published_beside, subject_of

pytestmark = pytest.mark.filterwarnings("ignore")

SHAPE = VARConfig(depth=2, width=32, num_heads=4, drop_path=0.0, class_dropout=0.0, order="raster")
LABELS = torch.tensor([0, 1, 2])


@pytest.fixture
def tokens(raster_cache):
    return TokenDataModule(str(raster_cache), batch_size=4)


@pytest.fixture
def make_module(raster_cache):
    def make(**others):
        torch.manual_seed(1)
        return VARModule(
            var=others.pop("var", SHAPE),
            optim=OptimConfig(ema_decay=0.9, lr=1e-2),
            num_classes=3,
            tokenizer=str(raster_cache / TOKENIZER_FOLDER),
            **others,
        )

    return make


def test_it_trains_draws_and_is_saved(make_module, make_trainer, tokens, tmp_path):
    module = make_module()
    pictures = Samples(every_n_steps=2, columns=1), Completions(every_n_steps=2)
    trainer = make_trainer(*pictures, max_steps=2)
    trainer.fit(module, tokens)
    assert math.isfinite(trainer.callback_metrics["scale_loss/04x04"])
    for name in ("samples", "growing", "completions"):
        assert (tmp_path / "pictures" / name / "step-0000002.png").exists()
    drawn = module.draw(LABELS, seed=3)
    assert (drawn.images.shape, len(drawn.frames)) == ((3, 3, 16, 16), 4)
    module.export(tmp_path / "out")
    assert load_var(tmp_path / "out").var.steps == RasterScan(4)


def test_it_is_evaluated_as_any_other_and_no_published_figure_stands_beside_it(make_module):
    module = make_module()
    sampler = Sampler(module.averaged.eval(), module.tokenizer)
    subject = subject_of(sampler, EvaluationConfig(quick=3), "fp32", nullcontext)
    assert subject.num_classes == 3
    assert published_beside(module, None) == {}


def test_the_loss_is_that_of_the_token_after(make_module, tokens):
    module = make_module().eval()
    batch = next(iter(tokens.train_dataloader()))
    codes = module.tokenizer.quantizer.codebook(batch["tokens"])
    logits = module.network(batch["label"], codes[:, :-1])
    expected = next_scale_loss(logits, batch["tokens"], Scales((4,))).loss
    assert torch.equal(module._terms(batch, module.network, with_details=False).loss, expected)


def test_it_learns_a_rule_from_token_to_token(make_module):
    module = make_module().train()
    # Each token is the one before it plus one; the first one is free.
    first = torch.randint(24, (8, 1))
    batch = {"tokens": (first + torch.arange(16)) % 24, "label": torch.zeros(8, dtype=torch.long)}
    optimizer = torch.optim.AdamW(module.network.parameters(), lr=1e-2)
    losses = []
    for _ in range(80):
        loss = module._terms(batch, module.network, with_details=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 3.0
    assert losses[-1] < 0.5


def test_operations_are_those_of_its_own_order(make_module):
    module = make_module()
    shape = TransformerShape(2, 32, 128, 24, RasterScan(4))
    assert module.training_flops_per_image == transformer_costs(shape).training


def test_a_checkpoint_that_is_older_than_the_order_goes_on(
    make_var_module, make_trainer, tmp_path, cache
):
    data = TokenDataModule(str(cache), batch_size=4)
    trainer = make_trainer(max_steps=1)
    trainer.fit(make_var_module(), data)
    path = tmp_path / "old.ckpt"
    trainer.save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["hyper_parameters"]["var"]["order"]
    torch.save(checkpoint, path)
    again = make_trainer(max_steps=2)
    again.fit(make_var_module(), data, ckpt_path=path)
    assert again.global_step == 2


def test_a_run_does_not_change_its_order(make_module, make_trainer, tokens, tmp_path):
    trainer = make_trainer(max_steps=1)
    trainer.fit(make_module(), tokens)
    trainer.save_checkpoint(tmp_path / "raster.ckpt")
    other = make_module(var=VARConfig.of(SHAPE.to_dict() | {"order": "next_scale"}))
    with pytest.raises(UserError, match=r"var\.order = raster"):
        make_trainer(max_steps=2).fit(other, tokens, ckpt_path=tmp_path / "raster.ckpt")


def test_it_starts_from_another_raster_scan_with_lora_and_from_no_other_order(
    make_module, make_trainer, tokens, tmp_path
):
    for name, order in (("raster", "raster"), ("plain", "next_scale")):
        source = make_module(var=VARConfig.of(SHAPE.to_dict() | {"order": order}))
        save_var(source.network, source.tokenizer_folder, tmp_path / name, ["a", "b", "c"])
    module = make_module(init_from=str(tmp_path / "raster"), lora=LoRAConfig(rank=2))
    make_trainer(max_steps=1).fit(module, tokens)
    with pytest.raises(UserError, match=r"order next_scale.*--model\.var\.order next_scale"):
        make_trainer(max_steps=1).fit(make_module(init_from=str(tmp_path / "plain")), tokens)


def test_a_cache_of_several_scales_is_refused(cache):
    with pytest.raises(UserError, match="single token map"):
        VARModule(var=SHAPE, num_classes=3, tokenizer=str(cache / TOKENIZER_FOLDER))


def test_completions_of_long_scans_have_few_columns():
    assert list(given_steps(Scales(OFFICIAL_SCALES[1024]))) == list(range(15))
    assert list(given_steps(RasterScan(4)).items())[:2] == [(0, "class alone"), (4, "to row 01")]
    assert list(given_steps(RasterScan(16))) == [0, 64, 128, 192, 256]
