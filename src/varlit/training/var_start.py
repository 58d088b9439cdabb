"""Starting a VAR from another one: the same body, other classes, other scales."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn
from torch import Tensor
from torch.nn import functional as F

from varlit.errors import UserError
from varlit.models.config import VARConfig
from varlit.models.files import TOKENIZER_FOLDER, LoadedVAR, load_var
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE
from varlit.ops.scales import Scales
from varlit.training.lora import load_plain
from varlit.training.start_folder import find_start

CLASSES = "class_embedding.weight"
NUM_NAMES_TOLD = 3


@dataclass(frozen=True)
class Part:
    """Weights made from those of the other VAR, and what people should know of it."""

    weights: dict[str, Tensor]
    note: str = ""
    num_new: int = 0
    """Classes or scales that the other VAR does not have."""


@torch.no_grad()
def start_from(network: VAR, given: str, class_names: Sequence[str], tokenizer: VQVAE) -> None:
    """Give a fresh VAR the weights of another, and say in one line what could not be copied.

    Classes are found by name. A new one starts as the unconditional row: it was trained on images
    of every class, so the network draws something from the first step, which the mean of the old
    rows, a place where it never was, does not promise. Rows that start equal grow apart, because
    each has the gradient of its own images. Places of a side that the other does not have are
    interpolated from the nearest side that it has.

    Args:
        network: Changed in place; its random numbers are not touched.
        given: Folder of a VAR, or the name of its run.
        class_names: Of this VAR, in the order of the labels; may be empty.
        tokenizer: Whose tokens this VAR learns.

    Raises:
        UserError: If there is no such VAR, or its body or its codes are of another shape.
    """
    folder = find_start(given, "VAR")
    other = load_var(folder)
    _check_body(network.config, other.var.config, folder)
    _check_codes(network, other.var, folder)
    _compare_codebooks(tokenizer, other)
    classes = start_classes(network.num_classes, class_names, other)
    places = start_places(network.scales, other.var)
    load_plain(network, other.var.state_dict() | classes.weights | places.weights)
    _warn_of_frozen(network, classes, places)
    notes = "; ".join(note for note in (classes.note, places.note) if note)
    rank_zero_only(print)(f"varlit: starts from {folder}: {notes or 'all of it'}", flush=True)


def start_classes(num_classes: int, names: Sequence[str], other: LoadedVAR) -> Part:
    """The class table of a new VAR: rows of the same name, else the unconditional row.

    Names are compared without regard to case; where the other VAR has none, its rows are taken in
    order if there are as many. The unconditional row, the last, is always carried over.
    """
    table, count = other.var.state_dict()[CLASSES], other.var.num_classes
    if num_classes == count and list(names) == list(other.class_names):
        return Part({CLASSES: table})
    if num_classes == count and not (names and other.class_names):
        which = "it has no names" if names else "none are named here"
        return Part({CLASSES: table}, f"its {count} classes in their order, for {which}")
    rows = _rows_by_name(names, other.class_names)
    rows += [None] * (num_classes - len(rows))
    chosen = [count if row is None else row for row in [*rows, count]]
    new = [i for i, row in enumerate(rows) if row is None]
    note = f"{num_classes - len(new)} of {num_classes} classes found by name"
    if new:
        told = ", ".join(names[i] if i < len(names) else str(i) for i in new[:NUM_NAMES_TOLD])
        more = ", ..." if len(new) > NUM_NAMES_TOLD else ""
        note += f", new ones start as its unconditional one ({told}{more})"
    return Part({CLASSES: table[chosen]}, note, len(new))


def _rows_by_name(names: Sequence[str], others: Sequence[str]) -> list[int | None]:
    """The row of each name: spelt the same, else the only one that differs in case alone."""
    exact = {name: row for row, name in enumerate(others)}
    count = Counter(name.casefold() for name in others)
    loose = {name.casefold(): row for name, row in exact.items() if count[name.casefold()] == 1}
    return [exact.get(name, loose.get(name.casefold())) for name in names]


def start_places(scales: Scales, other: VAR) -> Part:
    """Embeddings of place and level for a schedule: those of a side, else of the nearest side.

    Args:
        scales: The schedule of the new VAR.
        other: Whose maps are copied, or resized bicubically.
    """
    state, known = other.state_dict(), other.scales
    sources = [_nearest(side, known.sides) for side in scales.sides]
    maps = list(zip(scales.sides, sources, strict=True))
    position = [
        _resized(state["position"][:, known.token_slice(source)], side) for side, source in maps
    ]
    weights = {
        "position": torch.cat(position, dim=1),
        "level_embedding.weight": state["level_embedding.weight"][sources],
    }
    if other.config.order == "next_scale":
        weights["start_position"] = _resized(state["start_position"], scales.sides[0])
    made = [f"{s} from {known.sides[k]}" for s, k in maps if s != known.sides[k]]
    if scales == known:
        return Part(weights)
    note = "places of every scale copied by its side"
    if made:
        note = f"places of scales {', '.join(made)} interpolated, the others copied"
    return Part(weights, note, len(made))


def _nearest(side: int, sides: Sequence[int]) -> int:
    """Index of the nearest side, the larger of two: shrinking invents nothing."""
    return min(range(len(sides)), key=lambda k: (abs(sides[k] - side), -sides[k]))


def _resized(embedding: Tensor, side: int) -> Tensor:
    """(1, h * h, C) -> (1, side * side, C)."""
    before = round(embedding.shape[1] ** 0.5)
    if before == side:
        return embedding
    as_map = embedding.unflatten(1, (before, before)).permute(0, 3, 1, 2)  # (1, C, h, h)
    new = F.interpolate(as_map, (side, side), mode="bicubic", antialias=side < before)
    return new.flatten(2).transpose(1, 2)


def _warn_of_frozen(network: VAR, classes: Part, places: Part) -> None:
    tables = {"class_embedding": classes, "position": places, "level_embedding": places}
    frozen = {name.split(".")[0] for name, p in network.named_parameters() if not p.requires_grad}
    lacking = [name for name, part in tables.items() if part.num_new and name in frozen]
    if lacking:
        rank_zero_warn(
            f"lora.whole lacks {' and '.join(lacking)}, which begin with guesses here and then "
            "cannot learn better; add them."
        )


def _check_body(own: VARConfig, other: VARConfig, folder: Path) -> None:
    values = {
        "depth": (own.depth, other.depth),
        "width": (own.resolved_width, other.resolved_width),
        "num_heads": (own.resolved_heads, other.resolved_heads),
        "mlp_ratio": (own.mlp_ratio, other.mlp_ratio),
        "qk_l2_norm": (own.qk_l2_norm, other.qk_l2_norm),
        "shared_adaln": (own.shared_adaln, other.shared_adaln),
        "order": (own.order, other.order),
    }
    for name, (mine, theirs) in values.items():
        if mine != theirs:
            raise UserError(
                f"model.init_from: {folder} has {name} {theirs}, this VAR has {mine}. Set "
                f"--model.var.{name} {str(theirs).lower()}"
            )


def _check_codes(own: VAR, other: VAR, folder: Path) -> None:
    for name in ("codebook_size", "codebook_dim"):
        mine, theirs = (getattr(var.tokenizer_config, name) for var in (own, other))
        if mine != theirs:
            raise UserError(
                f"model.init_from: {folder} speaks of tokens of {name} {theirs}, the token cache "
                f"has {mine}. Give with --data.tokens a cache that its own tokenizer wrote, "
                f"{folder / TOKENIZER_FOLDER}"
            )


def _compare_codebooks(tokenizer: VQVAE, other: LoadedVAR) -> None:
    """Warn where a token means something else: it may be meant, as after tuning a tokenizer."""
    if other.bundled is None:
        rank_zero_warn(
            f"model.init_from: {other.folder} holds no tokenizer, so nobody knows whether its "
            "tokens are those of the cache."
        )
        return
    mine, theirs = (
        network.quantizer.codebook.weight.cpu().float() for network in (tokenizer, other.bundled)
    )
    if torch.equal(mine, theirs):
        return
    share = ((mine - theirs).norm() / theirs.norm()).item()
    rank_zero_warn(
        f"model.init_from: the codebook of {other.folder} is not that of the token cache, it "
        f"differs by {share:.0%} of its length. Above some 100 % it is another one, and every "
        "token means something else; cache the images with its own tokenizer, unless that is meant."
    )
