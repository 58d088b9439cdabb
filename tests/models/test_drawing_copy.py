import shutil

import pytest
import torch

from varlit.models.blocks import Block
from varlit.models.drawing_copy import compile_drawing, drawing_copy, many_graphs

LABELS = torch.tensor([0, 2])


def logits_of(var, inputs):
    """Logits of all steps, drawn with a cache; `inputs` is a list of (B, l_k, C)."""
    state = var.begin(LABELS)
    return torch.cat([var.advance(state, part) for part in (None, *inputs)], dim=1), state


@pytest.fixture(params=[False, True], ids=["adaln", "shared_adaln"])
def var(request, make_var):
    return make_var(shared_adaln=request.param)


@pytest.fixture
def inputs():
    return [torch.randn(2, 4, 8), torch.randn(2, 16, 8)]


@torch.no_grad()
def test_a_copy_shares_its_memory_and_follows_a_training(var, inputs):
    copy = drawing_copy(var.train())
    assert not copy.training
    assert not any(weight.requires_grad for weight in copy.parameters())
    assert all(weight.requires_grad for weight in var.parameters())
    assert copy.head.weight.data_ptr() == var.head.weight.data_ptr()
    var.head.weight.mul_(2)
    assert torch.equal(logits_of(copy, inputs)[0], logits_of(var.eval(), inputs)[0])


@torch.no_grad()
def test_in_bf16_it_computes_what_autocast_does_bit_for_bit(var, inputs):
    copy = drawing_copy(var, torch.bfloat16)
    found, state = logits_of(copy, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        expected, _ = logits_of(var, inputs)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)
    assert not torch.equal(found.float(), logits_of(var, inputs)[0]), "something is rounded"
    assert {cache.keys.dtype for cache in state.caches} == {torch.bfloat16}


def test_only_what_matrix_products_read_is_cast(var):
    copy = drawing_copy(var, torch.bfloat16)
    kept = {n.split(".")[-1] for n, w in copy.named_parameters() if w.dtype == torch.float32}
    embeddings = {"start_position", "position", "log_scale"}
    assert embeddings <= kept
    assert kept <= embeddings | {"weight", "adaln_offset"}
    assert copy.class_embedding.weight.dtype == torch.float32
    assert all(weight.dtype == torch.float32 for weight in var.parameters())


def test_compiling_is_undone_by_none_and_leaves_training_alone(var, monkeypatch):
    made = []
    monkeypatch.setattr(torch, "compile", lambda fn, **how: made.append((fn, how)) or fn)
    compile_drawing(var, "max-autotune-no-cudagraphs")
    how = {"fullgraph": True, "dynamic": False, "mode": "max-autotune-no-cudagraphs"}
    assert made == [(Block.draw, how)]
    assert all(block.compiled_draw is Block.draw for block in var.layers)
    assert all(block.compiled is None for block in var.layers)
    compile_drawing(var, "none")
    assert all(block.compiled_draw is None for block in var.layers)


@pytest.fixture
def dynamo():
    """Torch's compiler; nothing that it made stays."""
    found = pytest.importorskip("torch._dynamo")
    found.reset()
    found.utils.counters.clear()
    yield found
    found.reset()


@pytest.mark.slow
@torch.no_grad()
def test_blocks_share_one_graph_a_step_however_many_steps(make_var, dynamo, monkeypatch):
    sides = tuple(range(1, 11))  # more steps than the compiler allows graphs by itself
    var = make_var(scales=sides)
    inputs = [torch.randn(2, side * side, 8) for side in sides[1:]]
    copy, compiler = drawing_copy(var), torch.compile
    # Traced in full, but not translated to code, which would take a minute.
    monkeypatch.setattr(
        torch, "compile", lambda f, mode, **how: compiler(f, backend="eager", **how)
    )
    compile_drawing(copy)
    with many_graphs("default"):
        found, _ = logits_of(copy, inputs)
    assert dynamo.utils.counters["stats"]["unique_graphs"] == len(sides)
    assert torch.equal(found, logits_of(var, inputs)[0])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@torch.no_grad()
def test_compiled_blocks_move_logits_by_rounding_only(make_var, inputs, dynamo, dtype):
    copy = drawing_copy(make_var(), dtype)
    expected, _ = logits_of(copy, inputs)
    compile_drawing(copy)
    found, _ = logits_of(copy, inputs)
    tolerance = 1e-4 if dtype is None else 0.1
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
