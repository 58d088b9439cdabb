import importlib
import math
import shutil

import pytest
import torch
from torch.nn import functional

from varlit.errors import UserError
from varlit.models.attention import flex_plan, plan_attention
from varlit.models.blocks import Block
from varlit.models.config import TokenizerConfig, VARConfig
from varlit.models.var import VAR
from varlit.ops.scales import Scales

VARIANTS = [
    {},
    {"qk_l2_norm": False},
    {"shared_adaln": True},
    {"shared_adaln": True, "qk_l2_norm": False},
    {"depth": 3, "mlp_ratio": 2.0},
    {"scales": (2, 3)},
]
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
UNCONDITIONAL = 3
# Official sides of the token maps for images of 256, 512 and 1024 px.
OFFICIAL_SIDES = {
    256: TokenizerConfig.scales,
    512: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
    1024: (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64),
}


def teacher(var, batch_size):
    return torch.randn(batch_size, var.scales.num_tokens - var.scales.lengths[0], 8)


def cached(var, labels, teacher_inputs):
    """Logits of all scales, one scale at a time."""
    state, logits = var.begin(labels), []
    start = var.scales.lengths[0]
    for k, length in enumerate(var.scales.lengths):
        begin = var.scales.offsets[k] - start
        part = teacher_inputs[:, begin : begin + length] if k else None
        logits.append(var.advance(state, part))
    return torch.cat(logits, dim=1)


@each_variant
@torch.no_grad()
def test_cached_sampling_equals_the_full_pass_for_a_guided_batch(make_var, variant):
    var = make_var(**variant)
    inputs = teacher(var, 3)
    labels = torch.tensor([0, 2, UNCONDITIONAL])
    full = var(labels, inputs)
    assert full.shape == (3, var.scales.num_tokens, 24)
    torch.testing.assert_close(cached(var, labels, inputs), full, atol=1e-4, rtol=1e-4)
    doubled = torch.cat((labels, torch.full_like(labels, UNCONDITIONAL)))
    both = cached(var, doubled, inputs.repeat(2, 1, 1))
    torch.testing.assert_close(both[:3], full, atol=1e-4, rtol=1e-4)
    unconditional = var(torch.full_like(labels, UNCONDITIONAL), inputs)
    torch.testing.assert_close(both[3:], unconditional, atol=1e-4, rtol=1e-4)
    assert (both[0] - both[3]).abs().max() > 0.1, "the class matters"


@pytest.mark.parametrize("image_size", [256, 512])
@torch.no_grad()
def test_cached_sampling_equals_the_full_pass_over_the_official_scales(make_var, image_size):
    var = make_var(scales=OFFICIAL_SIDES[image_size], depth=1)
    inputs, labels = teacher(var, 1), torch.tensor([1])
    found, full = cached(var, labels, inputs), var(labels, inputs)
    torch.testing.assert_close(found, full, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("image_size", OFFICIAL_SIDES)
@pytest.mark.parametrize("shared_adaln", [False, True])
@pytest.mark.parametrize("qk_l2_norm", [False, True])
def test_every_official_variant_has_the_parameters_of_its_formula(
    image_size, shared_adaln, qk_l2_norm
):
    config = VARConfig(depth=3, shared_adaln=shared_adaln, qk_l2_norm=qk_l2_norm)
    tokenizer = TokenizerConfig(scales=OFFICIAL_SIDES[image_size])
    with torch.device("meta"):
        var = VAR(config, tokenizer, 1000)
    c, adaln = 64 * 3, 6 * (64 * 3 + 1)  # width C; six gates, scales, shifts and their biases
    attention = 4 * c * c + 3 * c + (3 if qk_l2_norm else 0)  # no key bias; a scale a head
    block = attention + 8 * c * c + 5 * c + (6 * c if shared_adaln else adaln * c)
    tokens = (32 + 1) * c + (1000 + 1) * c + (1 + var.scales.num_tokens + var.scales.num_scales) * c
    head = 2 * c * (c + 1) + 4096 * (c + 1)
    expected = 3 * block + tokens + head + (adaln * c if shared_adaln else 0)
    assert sum(parameter.numel() for parameter in var.parameters()) == expected


@each_variant
@torch.no_grad()
def test_logits_of_a_scale_ignore_finer_inputs_and_see_all_of_their_own(make_var, variant):
    var = make_var(**variant)
    scales, labels = var.scales, torch.tensor([1, 2])
    inputs = teacher(var, 2)
    before = var(labels, inputs)
    for k in range(1, scales.num_scales):
        last_of_scale = scales.offsets[k] + scales.lengths[k] - 1
        changed = inputs.clone()
        changed[:, last_of_scale - scales.lengths[0]] += 1
        moved = (var(labels, changed) - before).abs().amax(dim=(0, 2))  # (L,)
        assert (moved[: scales.offsets[k]] < 1e-6).all()
        assert (moved[scales.offsets[k] :] > 1e-6).all(), "within a scale all see all"


@torch.no_grad()
def test_labels_are_dropped_only_while_training(make_var):
    var = make_var(class_dropout=1.0)
    labels, inputs = torch.tensor([0, 1, 2]), teacher(var, 3)
    conditional = var(labels, inputs)
    unconditional = var(torch.full_like(labels, UNCONDITIONAL), inputs)
    assert torch.equal(var.train()(labels, inputs), unconditional)
    assert torch.equal(var.eval()(labels, inputs), conditional)
    assert not torch.equal(conditional, unconditional)
    assert labels.tolist() == [0, 1, 2], "the caller's labels are left alone"


@torch.no_grad()
def test_the_share_of_dropped_labels_is_class_dropout(make_var):
    var = make_var(class_dropout=0.3, depth=1).train()
    labels = torch.zeros(2000, dtype=torch.long)
    seen = []
    var.class_embedding.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    var(labels, torch.zeros(2000, 20, 8))
    assert (seen[0] == UNCONDITIONAL).float().mean().item() == pytest.approx(0.3, abs=0.04)
    assert set(seen[0].tolist()) == {0, UNCONDITIONAL}


def test_stochastic_depth_rises_linearly_to_the_last_block():
    with torch.device("meta"):
        var = VAR(VARConfig(depth=16), TokenizerConfig(), 10)
    found = [block.drop_path.probability for block in var.blocks]
    assert found == pytest.approx([0.1 * 16 / 24 * i / 15 for i in range(16)])


def test_the_state_holds_weights_and_nothing_else(make_var):
    var = make_var()
    before = set(var.state_dict())
    var(torch.tensor([0]), teacher(var, 1))
    var.begin(torch.tensor([0]))
    assert set(var.state_dict()) == before == {name for name, _ in var.named_parameters()}
    assert list(var.buffers()) == []
    assert all(tensor.shape[-2:] != (21, 21) for tensor in var.state_dict().values())


def test_gradients_reach_every_weight(make_var):
    var = make_var()
    labels = torch.tensor([0, 1, 2, UNCONDITIONAL])
    logits = var(labels, teacher(var, 4))
    functional.cross_entropy(logits.flatten(0, 1), torch.randint(24, (84,))).backward()
    silent = [n for n, p in var.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


@torch.no_grad()
def test_an_image_does_not_depend_on_its_batch(make_var):
    var = make_var()
    labels, inputs = torch.tensor([0, 1, 2]), teacher(var, 3)
    whole = var(labels, inputs)
    torch.testing.assert_close(var(labels[1:2], inputs[1:2]), whole[1:2], atol=1e-5, rtol=1e-5)


def test_a_new_transformer_starts_near_chance():
    torch.manual_seed(1)
    tokenizer = TokenizerConfig(codebook_size=512, codebook_dim=8, scales=(1, 2, 4))
    var = VAR(VARConfig(depth=2), tokenizer, 3).eval()
    logits = var(torch.tensor([0, 1]), teacher(var, 2))
    loss = functional.cross_entropy(logits.flatten(0, 1), torch.randint(512, (42,)))
    assert loss.item() == pytest.approx(math.log(512), abs=0.05)


@pytest.mark.parametrize("labels", [[-1], [0, 4]])
@pytest.mark.parametrize("method", ["forward", "begin"])
def test_labels_out_of_range_are_refused(make_var, labels, method):
    var, labels = make_var(), torch.tensor(labels)
    with pytest.raises(UserError, match=r"0\.\.2 \(3 = unconditional\); got"):
        getattr(var, method)(labels, *([teacher(var, len(labels))] * (method == "forward")))


def test_inputs_of_another_shape_are_refused(make_var):
    with pytest.raises(UserError, match=r"must have shape \[2, 20, 8\].*got \[2, 21, 8\]"):
        make_var()(torch.tensor([0, 1]), torch.zeros(2, 21, 8))


def learn(var, labels, inputs):
    """Logits and gradients of a training pass, everything random from one seed."""
    torch.manual_seed(1)
    var.train().zero_grad()
    logits = var(labels, inputs)
    logits.float().square().mean().backward()
    return [logits.detach(), *(parameter.grad.clone() for parameter in var.parameters())]


def random_var(make_var, **changes):
    """All that is random in training, at official scales."""
    shape = {"scales": OFFICIAL_SIDES[256], "depth": 3, "drop_path": 0.4, "class_dropout": 0.5}
    var = make_var(**(shape | changes))
    with torch.no_grad():
        for parameter in var.parameters():
            parameter.mul_(0.3)  # tame, so that rounding stays small
    return var, torch.tensor([0, 1, 2]), teacher(var, 3)


def assert_equal_within_rounding(found, expected):
    for ours, reference in zip(found, expected, strict=True):
        scale = reference.abs().max().item()
        torch.testing.assert_close(ours, reference, atol=1e-4 * scale + 1e-7, rtol=1e-3)


@pytest.mark.parametrize("variant", [{}, {"shared_adaln": True}, {"qk_l2_norm": False}], ids=str)
def test_logits_and_gradients_do_not_depend_on_the_way_to_attend(make_var, variant):
    var, *batch = random_var(make_var, **variant)
    var.use_attention("dense")
    expected = learn(var, *batch)
    for choice in ("segmented", "auto"):
        var.use_attention(choice)
        assert_equal_within_rounding(learn(var, *batch), expected)


def test_a_way_to_attend_is_no_part_of_the_config_or_the_state(make_var):
    var = make_var()
    config, names = var.config, set(var.state_dict())
    var.use_attention("dense")
    assert var.attention_backend == "dense"
    assert (var.config, set(var.state_dict())) == (config, names)
    with pytest.raises(UserError, match="got `flash`"):
        var.use_attention("flash")
    assert var.attention_backend == "dense"


def test_flex_on_a_cpu_is_refused_when_it_is_used(make_var):
    var = make_var()
    var.use_attention("flex")  # the network may be on its way to a GPU
    with pytest.raises(UserError, match="needs a CUDA GPU"):
        var(torch.tensor([0]), teacher(var, 1))


@pytest.mark.parametrize("variant", [{}, {"shared_adaln": True}], ids=str)
def test_checkpointing_keeps_less_and_changes_no_gradient(make_var, variant):
    var, *batch = random_var(make_var, **variant)
    kept = {}
    for what in ("none", "blocks"):
        var.checkpoint_activations = what
        assert var.checkpoint_activations == what
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t
        ):
            torch.manual_seed(1)
            var.train()(*batch)
        kept[what] = sum(sizes), learn(var, *batch)
    assert kept["blocks"][0] < 0.3 * kept["none"][0]
    assert_equal_within_rounding(kept["blocks"][1], kept["none"][1])


def test_checkpointing_of_something_else_is_refused(make_var):
    with pytest.raises(UserError, match="none or blocks; got `all`"):
        make_var().checkpoint_activations = "all"


@pytest.fixture
def compiler():
    """Torch's compiler; what is set for the process is put back afterwards."""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    dynamo = importlib.import_module("torch._dynamo")
    functorch = importlib.import_module("torch._functorch.config")
    with functorch.patch(activation_memory_budget=1.0), dynamo.config.patch(optimize_ddp=True):
        dynamo.reset()
        dynamo.utils.counters.clear()
        yield dynamo
    dynamo.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("memory_budget", [1.0, 0.4])
def test_compiled_blocks_are_one_graph_and_change_no_gradient(make_var, compiler, memory_budget):
    var, *batch = random_var(make_var, scales=(1, 2, 3, 4))
    expected = learn(var, *batch)
    var.compile_blocks(memory_budget=memory_budget)
    found = learn(var, *batch)
    graphs = compiler.utils.counters["stats"]
    assert graphs["unique_graphs"] == 1
    assert_equal_within_rounding(found, expected)
    torch.manual_seed(2)
    assert not torch.allclose(var(*batch), found[0]), "labels and depth are drawn anew"
    var.checkpoint_activations = "blocks"
    assert_equal_within_rounding(learn(var, *batch), expected)
    with torch.no_grad():
        torch.testing.assert_close(cached(var.eval(), *batch), var(*batch))
    assert graphs["unique_graphs"] == 1, "sampling stays eager"
    var.compile_blocks("none")
    assert all(block.compiled is None for block in var.blocks)
    var.compile_blocks(memory_budget=memory_budget)
    learn(var, *batch)
    assert graphs["unique_graphs"] == 1, "what was compiled once is found again"


@pytest.mark.filterwarnings("ignore")
def test_flex_and_segments_are_traced_once_for_all_blocks():
    dynamo = importlib.import_module("torch._dynamo")
    dynamo.reset()
    dynamo.utils.counters.clear()
    run = torch.compile(Block.transform, backend="eager", fullgraph=True, dynamic=False)
    scales = Scales(OFFICIAL_SIDES[256])
    blocks = [Block(VARConfig(depth=2, width=32, num_heads=2), p) for p in (0.0, 0.1, 0.3)]
    x, condition = torch.randn(2, scales.num_tokens, 32), torch.randn(2, 32)
    plans = [plan_attention(scales, "segmented"), flex_plan(scales, torch.device("cpu"))]
    with torch.no_grad():
        for block in blocks:
            m = block.modulation(condition)
            expected = block.transform(x, m, plan_attention(scales, "dense"))
            for plan in plans:
                torch.testing.assert_close(run(block, x, m, plan), expected, atol=1e-5, rtol=1e-4)
    assert dynamo.utils.counters["stats"]["unique_graphs"] == len(plans)
    dynamo.reset()


@pytest.mark.gpu
def test_a_pass_never_waits_for_the_gpu(make_var, make_tokenizer):
    var, labels, _ = random_var(make_var)
    quantizer = make_tokenizer(scales=OFFICIAL_SIDES[256]).requires_grad_(False).quantizer.cuda()
    var, labels = var.cuda(), labels.cuda()
    tokens = torch.randint(24, (3, 680), device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        learn(var, labels, quantizer.teacher_inputs(tokens))  # masks are made at the first pass
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            learn(var, labels, quantizer.teacher_inputs(tokens))
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "reduce-overhead"}, "compile mode must be one of"),
        ({"memory_budget": 1.5}, "memory_budget must lie in 0..1; got 1.5"),
    ],
)
def test_modes_that_do_not_suit_a_block_are_refused(make_var, settings, message):
    with pytest.raises(UserError, match=message):
        make_var().compile_blocks(**settings)


def test_a_look_in_inference_mode_does_not_spoil_training(make_var):
    var, labels = make_var(), torch.tensor([0, 1])
    with torch.inference_mode():
        var(labels, torch.zeros(2, 20, 8))
    var(labels, torch.zeros(2, 20, 8)).sum().backward()


@pytest.mark.parametrize("variant", [{}, {"shared_adaln": True}, {"qk_l2_norm": False}], ids=str)
@torch.no_grad()
def test_it_runs_under_bf16_close_to_fp32(make_var, variant):
    var = make_var(**variant)
    labels, inputs = torch.tensor([0, UNCONDITIONAL]), teacher(var, 2)
    exact = var(labels, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        near, stepwise = var(labels, inputs), cached(var, labels, inputs)
    spread = exact.std().item()
    assert (near - exact).abs().mean().item() < 0.1 * spread
    assert (stepwise - exact).abs().mean().item() < 0.1 * spread
