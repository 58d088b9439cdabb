"""Filtering and drawing without a full sort of the vocabulary.

`varlit.ops.filtering` says what is drawn. `filter_exactly` and `draw_exactly_at` return the same,
bit for bit; `draw_sorted` draws from the same distribution, with other tokens. (`draw` stays: its
order of random numbers, one for each code, is the official one, and is most of its time.)
On few CPU threads numpy's partition finds the largest logits, in a third of torch's topk's time.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from varlit.ops.filtering import draw_at, filter_logits

BLOCK_SIZE, MIN_BLOCK_SIZE = 64, 8
# A sum of fp32 probabilities is within 2e-6 of the fp64 one: roundings of exp, and of 64 terms.
UNSURE = 1e-5
MAX_NUMPY_THREADS = 4  # numpy has one; with more, torch's topk catches up


def filter_exactly(logits: Tensor, top_k: int = 0, top_p: float = 0.0) -> Tensor:
    """`filter_logits`, bit for bit: thresholds found among the sorted top-k values.

    On CUDA a parallel sum may fall back by a rounding; where that happens at the very threshold,
    which codes top-p excludes is not defined by the plain way either.

    Args:
        logits: (B, L, V).
        top_k: As `filter_logits`.
        top_p: As `filter_logits`.
    """
    if not 0 < top_p < 1:
        return _filter_top_k(logits, top_k)
    ascending = _ascending(logits, top_k)
    num_cut = _num_cut(_cumulative(ascending), top_p)
    threshold = ascending.gather(-1, num_cut)
    excluded = logits < threshold
    # Of codes that tie with the threshold a stable sort cuts the first ones.
    num_tied_cut = num_cut - torch.searchsorted(ascending, threshold)
    if not (_is_on_cpu(logits) and (num_tied_cut == 0).all()):
        tied = logits == threshold
        excluded |= tied & (tied.cumsum(dim=-1, dtype=torch.int32) <= num_tied_cut)
    return torch.where(excluded, -torch.inf, logits)


def draw_exactly_at(logits: Tensor, uniform: Tensor) -> Tensor:
    """`draw_at`, bit for bit: on a CPU in fp32 by blocks, in fp64 where a number is near an edge.

    Args:
        logits: Filtered logits (B, L, V).
        uniform: (B, L).
    """
    size = math.gcd(logits.shape[-1], BLOCK_SIZE)
    if not _is_on_cpu(logits) or size < MIN_BLOCK_SIZE:
        return draw_at(logits, uniform)
    blocks = logits.softmax(dim=-1).unflatten(-1, (-1, size))
    ends = blocks.sum(dim=-1).double().cumsum(dim=-1)
    target = uniform.double().unsqueeze(-1) * ends[..., -1:]
    block = torch.searchsorted(ends, target, right=True).clamp(max=ends.shape[-1] - 1)
    start = ends.gather(-1, (block - 1).clamp(min=0)).masked_fill(block == 0, 0.0)
    inside = blocks.take_along_dim(block.unsqueeze(-1), dim=-2).squeeze(-2).double()
    edges = torch.cat((start, start + inside.cumsum(dim=-1)), dim=-1)
    place = torch.searchsorted(edges[..., 1:].contiguous(), target, right=True)
    below, above = edges.gather(-1, place), edges.gather(-1, (place + 1).clamp(max=size))
    # Written so that NaN is unsure.
    unsure = ~((target - below > UNSURE) & (above - target > UNSURE)).squeeze(-1)
    tokens = (block * size + place).squeeze(-1)
    if unsure.any():
        tokens[unsure] = draw_at(logits[unsure].unsqueeze(0), uniform[unsure].unsqueeze(0))[0]
    return tokens


def draw_sorted(logits: Tensor, uniform: Tensor, top_k: int = 0, top_p: float = 0.0) -> Tensor:
    """Filter and draw by inverting the cumulative distribution of the sorted logits.

    The distribution is that of `filter_logits` and `draw_at`; another order of the codes gives
    another token for the same number. A token depends on its own number alone here too.

    Args:
        logits: (B, L, V), not filtered.
        uniform: In [0, 1), (B, L).
        top_k: As `filter_logits`.
        top_p: As `filter_logits`.
    """
    has_top_k, has_top_p = 0 < top_k < logits.shape[-1], 0 < top_p < 1
    if not has_top_k and not has_top_p:
        return draw_exactly_at(logits, uniform)
    ascending = _ascending(logits, top_k)
    cumulative = _cumulative(ascending)
    target = uniform.unsqueeze(-1)
    if has_top_p:
        num_cut = _num_cut(cumulative, top_p)
        cut = cumulative.gather(-1, (num_cut - 1).clamp(min=0)).masked_fill(num_cut == 0, 0.0)
        target = cut + target * (cumulative[..., -1:] - cut)
    else:
        target = target * cumulative[..., -1:]
    index = torch.searchsorted(cumulative, target.contiguous(), right=True)
    # Rounding may push a number past either end.
    index = index.clamp(max=logits.shape[-1] - 1)
    if has_top_p:
        index = index.maximum(num_cut)
    value = ascending.gather(-1, index)
    return _place(logits, value, index - torch.searchsorted(ascending, value))


def _filter_top_k(logits: Tensor, top_k: int) -> Tensor:
    cut = logits.shape[-1] - top_k
    if not (_prefers_numpy(logits) and 0 < top_k < logits.shape[-1]):
        return filter_logits(logits, top_k)
    parted = logits.clone()
    parted.numpy().partition(cut, axis=-1)  # the same memory
    return torch.where(logits < parted[..., cut : cut + 1], -torch.inf, logits)


def _ascending(logits: Tensor, top_k: int) -> Tensor:
    """Sorted logits, those that top-k excludes at -inf; ties with the k-th stay.  # (B, L, V)"""
    size = logits.shape[-1]
    k = top_k if 0 < top_k < size else size
    if _prefers_numpy(logits):
        return _ascending_by_numpy(logits, size - k)
    if k == size:
        return logits.sort(dim=-1).values
    largest = logits.topk(k, dim=-1).values.flip(-1)
    kth = largest[..., :1]
    num_tied = (logits >= kth).sum(dim=-1, keepdim=True) - k
    return torch.cat((_front(kth, num_tied, size - k), largest), dim=-1)


def _ascending_by_numpy(logits: Tensor, cut: int) -> Tensor:
    out = logits.clone(memory_format=torch.contiguous_format)
    array = out.numpy()  # the same memory
    if cut == 0:
        array.sort(axis=-1)
        return out
    array.partition(cut, axis=-1)
    array[..., cut:].sort(axis=-1)
    front, kth = out[..., :cut], out[..., cut : cut + 1]
    if (front.amax(dim=-1, keepdim=True) == kth).any():
        front.copy_(_front(kth, (front == kth).sum(dim=-1, keepdim=True), cut))
    else:
        front.fill_(-torch.inf)
    return out


def _front(kth: Tensor, num_tied: Tensor, size: int) -> Tensor:
    """What stands before the k largest: those that tie with the k-th at the end, else -inf."""
    is_tied = torch.arange(size, device=kth.device) >= size - num_tied
    return torch.where(is_tied, kth, -torch.inf)


def _cumulative(ascending: Tensor) -> Tensor:
    return ascending.softmax(dim=-1).cumsum_(dim=-1)


def _num_cut(cumulative: Tensor, top_p: float) -> Tensor:
    """How many of the smallest top-p excludes, never all.  # (B, L, 1)"""
    rest = torch.full_like(cumulative[..., :1], 1 - top_p)
    return torch.searchsorted(cumulative, rest, right=True).clamp(max=cumulative.shape[-1] - 1)


def _place(logits: Tensor, value: Tensor, rank: Tensor) -> Tensor:
    """Where a value stands in each row, the rank-th of equal ones.  # (B, L)"""
    if _is_on_cpu(logits) and (rank == 0).all():
        return torch.from_numpy((logits.numpy() == value.numpy()).argmax(axis=-1))
    seen = (logits == value).cumsum(dim=-1, dtype=torch.int32)
    return (seen <= rank).sum(dim=-1)


def _is_on_cpu(logits: Tensor) -> bool:
    return logits.device.type == "cpu" and logits.dtype == torch.float32


def _prefers_numpy(logits: Tensor) -> bool:
    return _is_on_cpu(logits) and torch.get_num_threads() <= MAX_NUMPY_THREADS
