import importlib.util
import inspect
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from varlit.models.group_norm_silu import group_norm_silu

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


@pytest.mark.slow
@needs_triton
def test_interpreted_kernels_are_group_norm_then_silu():
    worker = Path(__file__).with_name("group_norm_worker.py")
    done = subprocess.run(
        [sys.executable, str(worker)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    cases = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(cases) == 20
    for case in cases:
        # Half a unit of bf16 on a GPU; the interpreter cuts the lower half off, which is up to one.
        limit = 1.01 if "bfloat16" in case["case"][-1] else 100
        assert case["same"], f"{case['case']}: another layout or type"
        assert case["units"] < limit, case


@pytest.mark.slow
@needs_triton
def test_kernels_compile_for_an_h100_where_there_is_none():
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from varlit.models import group_norm_kernels

    types = {"eps": "fp32"} | dict.fromkeys(("x", "y", "weight", "bias"), "*bf16")
    types |= dict.fromkeys(("means", "squares", "scale", "shift"), "*fp32")
    tiles = {"BLOCK_P": 64, "BLOCK_C": 64}, {"BLOCK_P": 4096, "BLOCK_C": 1}
    # The launcher makes constants of integers that are one.
    pixel = {"BLOCK_P": 1, "BLOCK_C": 1, "num_pixels": 1, "stride_p": 1, "stride_c": 1}
    joined = {"GROUP": 5, "BLOCK_G": 8, "BLOCK_T": 64, "BLOCK_P": 64}
    single = joined | {"BLOCK_T": 1, "BLOCK_P": 1, "num_pixels": 1, "num_tiles": 1}
    variants = {
        "tile_statistics": (*tiles, pixel),
        "affine_silu": (*tiles, pixel),
        "group_affine": (joined, single),
    }
    for name, choices in variants.items():
        kernel = getattr(group_norm_kernels, name)
        names = inspect.signature(kernel.fn).parameters
        for constants in choices:
            signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in names}
            source = ASTSource(kernel, signature=signature, constexprs=constants)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made = triton.compile(source, target=GPUTarget("cuda", 90, 32))
            assert made.asm["cubin"]


@pytest.mark.gpu
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 160, 256, 256), (1, 640, 16, 16), (3, 32, 9, 7)])
def test_on_a_gpu_it_is_torchs_group_norm_and_silu(shape, dtype, layout):
    x = torch.randn(shape, device="cuda").to(dtype).contiguous(memory_format=layout)
    weight, bias = torch.randn(2, shape[1], device="cuda")
    found = group_norm_silu(x, 32, weight, bias, 1e-6)
    expected = functional.silu(functional.group_norm(x.float(), 32, weight, bias, 1e-6))
    tolerance = 1e-4 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(found.float(), expected, atol=tolerance, rtol=tolerance)
    assert found.is_contiguous(memory_format=layout)
