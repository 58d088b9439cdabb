"""`varlit data`: images into tar shards, shards listed, and what a data set holds."""

import os
import shlex
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from varlit.cli.arguments import VerbParser
from varlit.cli.running.quiet import quieten
from varlit.cli.verbs import parse_verb, typed
from varlit.errors import UserError

if TYPE_CHECKING:
    from varlit.data.formats.encoded import EncodedImages
    from varlit.data.formats.remote import RemoteShards

CARD = """\
varlit data - image data sets on disk

  varlit data pack FOLDER OUT   class folders into tar shards (WebDataset), resumable
  varlit data index SHARDS      write shards.json for tar shards made elsewhere
  varlit data info ROOT         format, splits, classes, images: what a fit would find

Examples
  varlit data pack photos/ shards/ --val_fraction 0.02
  varlit data pack imagenet/ shards/ --resize_px 288 --workers 16
  varlit data index '/data/train-{000000..001281}.tar' --class_names names.txt
  varlit data info shards/

More: varlit data VERB --help
"""
NUM_NAMED = 5
KINDS = {
    "ClassFolders": "class folders",
    "TarImages": "tar shards",
    "ChunkImages": "litdata chunks",
    "ParquetImages": "parquet files",
    "PixelImages": "a set of torchvision",
    "RemoteShards": "tar shards, streamed",
}
HELD_OUT = "a fit holds out data.val_fraction of train"


def main(argv: list[str]) -> int:
    """Run one verb.

    Args:
        argv: What follows `varlit data`.
    """
    verb, words = parse_verb("data", argv, tuple(_VERBS), CARD)
    quieten()
    if verb is not None:
        parser, run = _VERBS[verb]
        run(parser().parse_args(words))
    return 0


def pack_parser() -> VerbParser:
    """The flags of `varlit data pack`."""
    parser = VerbParser("data pack", "Write tar shards and shards.json from class folders.")
    add = parser.add_argument
    add("folder", type=Path, help="<class>/<image>, or train/<class>/ and val/<class>/")
    add("out", type=Path, help="folder of the shards; an interrupted packing goes on there")
    add("--shard_size", type=int, default=1000, help="images for each shard")
    add("--val_fraction", type=float, default=0.0, help="part held out where there is no val/")
    add("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    add("--shuffle_seed", type=int, default=0, help="order of the images; -1 = the folder's")
    add(
        "--resize_px",
        type=int,
        default=0,
        help="shorter side of larger images (JPEG at quality 95, lossless files as PNG); 0 = the "
        "files as they are",
    )
    return parser


def index_parser() -> VerbParser:
    """The flags of `varlit data index`."""
    parser = VerbParser("data index", "Write shards.json for tar shards made elsewhere.")
    parser.add_argument("shards", help="a folder of tars, or a pattern such as x/{000..099}.tar")
    parser.add_argument("--class_names", type=Path, help="a file with one name a line, by label")
    return parser


def info_parser() -> VerbParser:
    """The flags of `varlit data info`."""
    parser = VerbParser("data info", "Say what a fit with this data.root would find.")
    parser.add_argument("root", help="what you would write as data.root")
    parser.add_argument("--val_root", default="", help="what you would write as data.val_root")
    return parser


def _pack(args: Namespace) -> None:
    from varlit.data.bad_files import LIST_FILE
    from varlit.data.packing import PackSettings, pack

    settings = PackSettings(args.shard_size, args.val_fraction, args.shuffle_seed, args.resize_px)
    packed = pack(args.folder.expanduser(), args.out.expanduser(), settings, args.workers)
    shards = packed.shards
    if packed.num_found:
        print(f"went on where it stopped: {_count(packed.num_found, 'shard')} were there")
    for split, listed in shards.splits.items():
        size = _bytes(sum(shard.num_bytes for shard in listed))
        images = _count(shards.count(split), "image")
        print(f"{split}: {images} in {_count(len(listed), 'shard')}, {size}")
    if packed.bad:
        named = ", ".join(f"{bad.name} ({bad.reason})" for bad in packed.bad[:NUM_NAMED])
        rest = f" and {len(packed.bad) - NUM_NAMED:,} more" if len(packed.bad) > NUM_NAMED else ""
        listing = args.out / LIST_FILE
        print(f"left out {_count(len(packed.bad), 'file')}, listed in {listing}: {named}{rest}")
    print(f"wrote {args.out}: {_count(len(shards.class_names), 'class', 'classes')}")
    out = shlex.quote(str(args.out))
    print("next: " + typed(f"varlit tokenizer fit -c folder --data.root {out}"))


def _index(args: Namespace) -> None:
    from varlit.data.formats.class_list import read_class_list
    from varlit.data.shard_listing import list_shards

    names = read_class_list(args.class_names) if args.class_names else None
    shards, path = list_shards(args.shards, names)
    for split, listed in shards.splits.items():
        images = _count(shards.count(split), "image")
        print(f"{split}: {images} in {_count(len(listed), 'shard')}")
    print(f"wrote {path}: {_count(len(shards.class_names), 'class', 'classes')}")


def _info(args: Namespace) -> None:
    from varlit.data.class_titles import titles
    from varlit.data.formats.remote import RemoteShards, open_streamed
    from varlit.data.formats.splits import is_remote, open_splits

    if not args.root:
        raise UserError("ROOT is empty: expected a folder of images, or another source")
    splits: Mapping[str, EncodedImages | RemoteShards]
    if is_remote(args.root) or is_remote(args.val_root):
        splits = open_streamed(args.root, args.val_root, val_fraction=0)
    else:
        splits = open_splits(args.root, args.val_root)
    train = splits["train"]
    print(f"{train.place}: {KINDS.get(type(train).__name__, type(train).__name__)}")
    names = titles(train.class_names)
    more = f", ... {names[-1]}" if len(names) > NUM_NAMED else ""
    print(f"classes: {len(names):,} ({', '.join(names[:NUM_NAMED])}{more})")
    for split, images in splits.items():
        told = _describe_shards(images) if isinstance(images, RemoteShards) else _describe(images)
        print(f"{split}: {told}")
    if "val" not in splits:
        is_stream = isinstance(train, RemoteShards)
        remedy = "set data.val_root, or data.val_fraction 0" if is_stream else HELD_OUT
        print(f"val: none; {remedy}")


def _describe_shards(images: "RemoteShards") -> str:
    size = _bytes(sum(shard.num_bytes for shard in images.shards))
    text = f"{_count(len(images), 'image')} in {_count(len(images.shards), 'shard')}, {size}"
    return "\n  ".join([text, *(shard.file for shard in images.shards[:NUM_NAMED])])


def _describe(images: "EncodedImages") -> str:
    import numpy as np

    counts = np.bincount(images.labels, minlength=len(images.class_names))
    text = f"{_count(len(images), 'image')}, {counts.min():,} to {counts.max():,} of a class"
    sizes = getattr(images, "sizes", None)
    if isinstance(sizes, np.ndarray):
        text += f", {_bytes(int(sizes.sum()))}"
    return "\n  ".join([text, *map(os.fsdecode, images.names[:NUM_NAMED].tolist())])


def _count(number: int, singular: str, plural: str = "") -> str:
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def _bytes(number: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number} bytes"


_VERBS: dict[str, tuple[Callable[[], VerbParser], Callable[[Namespace], None]]] = {
    "pack": (pack_parser, _pack),
    "index": (index_parser, _index),
    "info": (info_parser, _info),
}
