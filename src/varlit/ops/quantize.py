"""Nearest-code search, always in strict fp32, and how evenly it spreads over the codes.

TF32 changes a token in 40 % of the images and bf16 in all of them, and a token that changes at
one scale changes the residual of every finer one (measured; see docs/design.md).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

MAX_MATRIX_ELEMENTS = 2**25  # of vectors x codes at once: 128 MiB in fp32


@contextmanager
def strict_fp32(device: torch.device) -> Iterator[None]:
    """Run without autocast and, on CUDA, without TF32, and restore both afterwards."""
    with torch.autocast(device.type, enabled=False):
        if device.type != "cuda":
            yield
            return
        _TF32.forbid()
        try:
            yield
        finally:
            _TF32.allow_again()


class _TF32Switch:
    """The switches of a process: off while anyone needs it, then as they were.

    They are global, so one thread must not restore them while another still counts on them. The
    older `allow_tf32` cannot be read where somebody has set the newer `fp32_precision`.
    """

    def __init__(self) -> None:
        self.lock, self.depth = threading.Lock(), 0
        self.before: tuple[str, str] = ("none", "none")

    def forbid(self) -> None:
        matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
        with self.lock:
            if self.depth == 0:
                self.before = matmul.fp32_precision, conv.fp32_precision
                matmul.fp32_precision, conv.fp32_precision = "ieee", "ieee"
            self.depth += 1

    def allow_again(self) -> None:
        matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
        with self.lock:
            self.depth -= 1
            if self.depth == 0:
                matmul.fp32_precision, conv.fp32_precision = self.before


_TF32 = _TF32Switch()
forbid_tf32, allow_tf32_again = _TF32.forbid, _TF32.allow_again


def nearest_code(z: Tensor, codebook: Tensor, search: str = "euclidean") -> Tensor:
    """Index of the codebook row nearest to each vector.

    Args:
        z: Vectors (N, C), fp32.
        codebook: Codes (V, C), fp32.
        search: `euclidean` (squared distance) or `cosine` (largest cosine similarity).

    Returns:
        Integer tensor (N,); the first of equally near codes.
    """
    if search == "cosine":
        return (F.normalize(z, dim=1) @ F.normalize(codebook, dim=1).T).argmax(dim=1)
    # |z|^2 stays in the sum although it changes no order: rounding then ties as official VAR's.
    distance = z.square().sum(1, keepdim=True) + codebook.square().sum(1)
    distance.addmm_(z, codebook.T, alpha=-2, beta=1)  # (N, V)
    return distance.argmin(dim=1)


def assignment_entropy(
    z: Tensor,
    codebook: Tensor,
    temperature: float,
    search: str = "euclidean",
    max_elements: int = MAX_MATRIX_ELEMENTS,
) -> Tensor:
    """Mean entropy of the vectors' soft assignments, minus the entropy of their mean.

    Small where every vector is sure of its code and all codes are used equally; lies in
    -ln V .. 0. A vector's assignment is softmax(-d / temperature), d the squared distance, between
    unit vectors for `cosine`. From LFQ (MAGVIT-v2, eq. 5) and IBQ, who take it over affinities.

    It is over the vectors given: in several processes each sees the mean of its own only.

    Args:
        z: Vectors (N, C), fp32, with a gradient.
        codebook: Codes (V, C), fp32, with a gradient unless frozen.
        temperature: In units of d.
        search: `euclidean` or `cosine`.
        max_elements: Vectors go in chunks of at most this many elements of the N x V matrix. The
            backward pass makes each chunk again, so memory is a few such matrices whatever N.

    Returns:
        Scalar.
    """
    if search == "cosine":
        z, codebook = F.normalize(z, dim=1), F.normalize(codebook, dim=1)

    def of_chunk(part: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        # Entered here too, because the backward pass runs this outside of the caller's context.
        with strict_fp32(part.device):
            # |z|^2 is the same for all codes, so the softmax does not see it.
            affinity = 2 * part @ codes.T - codes.square().sum(1)  # (n, V)
            log_share = (affinity / temperature).log_softmax(dim=1)
        share = log_share.exp()
        return -(share * log_share).sum(), share.sum(dim=0)

    entropy, shares = z.new_zeros(()), z.new_zeros(len(codebook))
    for part in z.split(max(1, max_elements // len(codebook))):
        chunk_entropy, chunk_shares = checkpoint(
            of_chunk, part, codebook, use_reentrant=False, preserve_rng_state=False
        )
        entropy, shares = entropy + chunk_entropy, shares + chunk_shares
    mean = shares / len(z)
    # The slope of x ln x is infinite at 0, where shares underflow to.
    return entropy / len(z) + (mean * mean.clamp(min=1e-30).log()).sum()
