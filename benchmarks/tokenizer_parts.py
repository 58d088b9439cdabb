"""Encoder, decoder and token search of stage 1, each by itself.

python benchmarks/tokenizer_parts.py [--device cuda] [--size imagenet256] [--out benchmarks/results]
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from harness.options import Benchmark, build_parser, compete, exit_code, resolve
from harness.stopwatch import Lap, Rival, lap_of
from tokenizer_sizes import SEED, SIZES, Size, random_images
from torch import Tensor

from varlit.models.vqvae import VQVAE
from varlit.ops.pyramid import shrink, to_sequence
from varlit.ops.quantize import nearest_code, strict_fp32

ENCODER = "encoder"
DECODER = "decoder"
PYRAMID = "token search, all scales"
CACHING = "encode, strict fp32 (as the token cache)"
NAIVE = "nearest codes, distances in full (reference)"
SEARCH = "nearest codes (ours)"


def naive_search(z: Tensor, codebook: Tensor) -> Tensor:
    """Nearest codes as VQ code is mostly written: all distances, each term a new tensor.

    Args:
        z: Vectors (N, C).
        codebook: Codes (V, C).

    Returns:
        Integer tensor (N,).
    """
    squares = z.square().sum(1, keepdim=True) + codebook.square().sum(1)
    distances = squares - 2 * torch.matmul(z, codebook.T)  # (N, V)
    return distances.argmin(dim=1)


def assert_same_tokens(z: Tensor, codebook: Tensor, a: Tensor, b: Tensor) -> None:
    """Hold two searches to the same answer, but for codes that are equally near in fp32."""
    differ = (a != b).nonzero().flatten()
    z64, codes = z[differ].double(), codebook.double()
    distances = [(z64 - codes[tokens[differ]]).square().sum(1) for tokens in (a, b)]
    # Rounding is relative to the terms that cancel, |z|^2 and |e|^2.
    scale = z64.square().sum(1) + codes.square().sum(1).max()
    assert ((distances[0] - distances[1]).abs() <= 1e-5 * scale).all(), "searches disagree"
    assert len(differ) <= 1e-3 * len(z) + 1, f"{len(differ)} of {len(z)} tokens differ"


class Parts:
    """A tokenizer with random weights, and what flows between its parts."""

    def __init__(
        self, size: Size, batch_size: int, device: torch.device, precision: str, nhwc: bool
    ) -> None:
        torch.manual_seed(SEED)
        self.network = VQVAE(size.tokenizer).eval().requires_grad_(False).to(device)
        self.device, self.is_bf16 = device, precision == "bf16-mixed"
        if nhwc:
            self.network.to(memory_format=torch.channels_last)
        self.images = random_images(size, batch_size, device, nhwc)
        with self.autocast():
            self.features = self.network.features(self.images)
        # Codes as large as the features are: else one code would be nearest to all.
        self.codebook = self.network.quantizer.codebook.weight
        self.codebook.normal_(std=self.features.std().item())
        self.tokens = self.network.quantizer.encode(self.features)
        self.latents = self.network.quantizer.decode(self.tokens)
        self.vectors = self._vectors()

    def autocast(self) -> torch.autocast:
        """The precision that was asked for."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.is_bf16)

    def encode(self) -> object:
        """Images to latent maps."""
        with self.autocast():
            return self.network.features(self.images)

    def decode(self) -> object:
        """Latent maps to images."""
        with self.autocast():
            return self.network.decode_features(self.latents)

    def search(self, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Nearest codes of all vectors of the batch."""
        with strict_fp32(self.device):
            return function(self.vectors, self.codebook)

    def _vectors(self) -> Tensor:
        """Everything that is looked up when the batch is encoded.  # (B * L, C)"""
        quantizer, found = self.network.quantizer, []
        f_hat = quantizer.empty(len(self.images))
        for k, part in enumerate(quantizer.scales.split(self.tokens)):
            found.append(to_sequence(shrink(self.features - f_hat, quantizer.scales.sides[k])))
            f_hat = quantizer.accumulate(f_hat, quantizer.embed(part, k), k)
        return torch.cat(found, dim=1).flatten(0, 1)


def build_rivals(parts: Parts) -> list[Rival]:
    """Rows of the table, without gradients."""
    ours, naive = parts.search(nearest_code), parts.search(naive_search)
    assert_same_tokens(parts.vectors, parts.codebook, ours, naive)
    network = parts.network
    functions: dict[str, Callable[[], object]] = {
        ENCODER: parts.encode,
        DECODER: parts.decode,
        CACHING: lambda: network.encode(parts.images),
        PYRAMID: lambda: network.quantizer.encode(parts.features),
        NAIVE: lambda: parts.search(naive_search),
        SEARCH: lambda: parts.search(nearest_code),
    }

    def builder(function: Callable[[], object]) -> Callable[[], Lap]:
        def without_gradients() -> None:
            with torch.inference_mode():
                function()

        return lambda: lap_of(without_gradients, parts.device)

    return [
        Rival(
            name,
            builder(function),
            len(parts.images),
            reference=NAIVE if name == SEARCH else "",
            is_counted=name in {ENCODER, DECODER},  # the others compute in fp32
        )
        for name, function in functions.items()
    ]


def main(words: list[str]) -> int:
    """Run the benchmark.

    Args:
        words: The command line.
    """
    parser = build_parser("Time of encoder, decoder and token search of stage 1.", list(SIZES))
    args = resolve(parser.parse_args(words), cpu_size="photos64", cuda_size="imagenet256")
    torch.backends.cudnn.benchmark = True
    size = SIZES[args.size]
    batch_size = args.batch or size.batch_size
    parts = Parts(size, batch_size, args.device, args.precision, args.channels_last)
    settings = {
        "size": args.size,
        "image": f"{size.tokenizer.image_size} px",
        "batch": batch_size,
        "precision": args.precision,
        "layout": "NHWC" if args.channels_last else "NCHW",
        "vectors": len(parts.vectors),
        "codes": len(parts.codebook),
        "rounds": args.rounds,
    }
    notes = ("Token search runs in strict fp32 whatever the precision is.",)
    rivals = build_rivals(parts)
    return compete(Benchmark(Path(__file__), rivals, settings, notes), args, words)


if __name__ == "__main__":
    sys.exit(exit_code(main))
