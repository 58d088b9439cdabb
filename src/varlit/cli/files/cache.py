"""`varlit cache info|verify|export|import`: what a token cache holds, whether it still does."""

import secrets
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from varlit.cli.arguments import VerbParser, pick_device
from varlit.cli.running.quiet import quieten
from varlit.cli.verbs import parse_verb, typed
from varlit.errors import UserError

if TYPE_CHECKING:
    from varlit.data.tokens.manifest import Manifest

CARD = """\
varlit cache VERB - the token pyramids that `varlit tokenizer predict` has written

  info       what it holds and was made from   varlit cache info tok
  verify     checksums; encode a part again    varlit cache verify tok --share 0.001
  export     for other programs                varlit cache export tok codes/ --format llamagen
  import     from other programs               varlit cache import codes/ runs/x/tokens
                                                 --format llamagen --tokenizer tok

A cache is named by its folder or by its tokenizer's run. It is made by another command, where
`cache` is a group of flags:

  varlit tokenizer predict --name tok --cache.num_crops 10 --cache.batch_size 32
"""
FORMATS = ("llamagen", "safetensors")


def main(argv: list[str]) -> int:
    """Run a verb of the token cache.

    Args:
        argv: What follows `varlit cache`.
    """
    verb, words = parse_verb("cache", argv, tuple(VERBS), CARD)
    if verb is None:
        return 0
    quieten()
    parser, run = VERBS[verb]
    return run(parser().parse_args(words))


def info_parser() -> VerbParser:
    """The flags of `varlit cache info`."""
    parser = VerbParser("cache info", "Print what a token cache holds and what it was made from.")
    parser.add_argument("cache", help="folder of the cache, or its tokenizer's run")
    return parser


def verify_parser() -> VerbParser:
    """The flags of `varlit cache verify`."""
    parser = VerbParser("cache verify", "Compare a token cache with its checksums and its images.")
    add = parser.add_argument
    add("cache", help="folder of the cache, or its tokenizer's run")
    add("--share", type=float, default=0.001, help="part of the images to encode again; 0 = none")
    add("--data", default="", help="where the images are now, if they have moved")
    add("--seed", type=int, default=None, help="of the choice; another one each time without it")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    return parser


def export_parser() -> VerbParser:
    """The flags of `varlit cache export`."""
    parser = VerbParser("cache export", "Write token pyramids for other programs.")
    add = parser.add_argument
    add("cache", help="folder of the cache, or its tokenizer's run")
    add("out", type=Path, help="a new folder")
    add("--format", choices=FORMATS, required=True, help="files of LlamaGen, or shards")
    add("--split", default="", help="train for llamagen, every split for safetensors")
    add("--name", default="imagenet256", help="beginning of LlamaGen's two folders")
    return parser


def import_parser() -> VerbParser:
    """The flags of `varlit cache import`."""
    parser = VerbParser("cache import", "Write a token cache from the pyramids of other programs.")
    add = parser.add_argument
    add("source", type=Path, help="folder that holds *_codes and *_labels, or shards")
    add("out", type=Path, help="the cache, a new folder")
    add("--format", choices=FORMATS, required=True, help="files of LlamaGen, or shards")
    add("--tokenizer", required=True, help="run or folder of the tokenizer that made the tokens")
    add("--val", type=Path, default=None, help="folder of the validation set (llamagen)")
    add("--num_classes", type=int, default=0, help="0 = as the shards say, or the labels show")
    add("--root", default="runs", help="where runs live")
    return parser


def card(manifest: "Manifest") -> str:
    """Return the manifest for people."""
    spec = manifest.spec
    rows: list[tuple[str, ...]] = [("split", "images", "skipped", "crops", "shards", "size")]
    for split, shards in manifest.splits.items():
        size = sum(sum(shard.num_bytes.values()) for shard in shards)
        counts = manifest.count(split), manifest.skipped(split), spec.num_crops[split], len(shards)
        rows.append((split, *(f"{count:,}" for count in counts), _size(size)))
    names = ", ".join(spec.class_names[:4]) + (", ..." if len(spec.class_names) > 4 else "")
    facts = {
        "tokenizer": f"{spec.tokenizer_hash[:12]}, {spec.codebook_size:,} codes of "
        f"{spec.codebook_dim} numbers",
        "pyramid": f"{spec.num_tokens} tokens, sides {' '.join(map(str, spec.scales))}",
        "classes": f"{len(spec.class_names):,}: {names}",
        "crops": _views(manifest),
        "images": _described(spec.transform),
        "read by": _described({"class": manifest.data.get("class_path", "")})
        if manifest.data
        else "unknown: the tokens were imported",
        "rounding": _described({**spec.encoder, "batch_size": spec.batch_size}),
        "size": _size(manifest.num_bytes()),
    }
    table = "\n".join(
        "  " + row[0].ljust(8) + "".join(word.rjust(12) for word in row[1:]) for row in rows
    )
    lines = "\n".join(f"  {name:<10} {fact}" for name, fact in facts.items() if fact)
    return f"{manifest.folder}\n\n{table}\n\n{lines}"


def _info(args: Namespace) -> int:
    print(card(_open(args.cache)))
    return 0


def _verify(args: Namespace) -> int:
    if not 0 <= args.share <= 1:
        raise UserError(f"--share must lie in 0..1; got {args.share}")
    device = pick_device(args.device)
    manifest = _open(args.cache)
    _check_files(manifest)
    if args.share == 0:
        return 0
    seed = secrets.randbelow(2**31) if args.seed is None else args.seed
    return _compare(manifest, args.data, args.share, seed, device)


def _check_files(manifest: "Manifest") -> None:
    from varlit.data.progress import Progress
    from varlit.data.tokens.reader import check_shards

    progress = Progress(f"hashing '{manifest.folder}'", max(1, manifest.num_bytes()))
    for split in manifest.splits:
        check_shards(manifest, split, in_full=True, tell=progress.add)
    progress.end()
    num_shards = sum(map(len, manifest.splits.values()))
    print(f"files    {num_shards} shard(s), {_size(manifest.num_bytes())}: every checksum fits")


def _compare(manifest: "Manifest", root: str, share: float, seed: int, device: str) -> int:
    from varlit.data.progress import Progress
    from varlit.data.tokens.verification import encode_again, reopen_images

    data = reopen_images(manifest, root)
    total = sum(manifest.spec.num_images.values())
    progress = Progress("encoding again", max(1, round(share * total)))
    found = encode_again(manifest, data, share, seed, device, progress.add)
    progress.end()
    print(
        f"tokens   {found.num_images:,} of {total:,} images encoded again (--seed {seed}), "
        f"{found.num_equal:,} equal"
    )
    if found.remark:
        print(f"         {found.remark}")
    if not found.different:
        return 0
    shown = "\n         ".join(found.different[:10])
    print(f"         different:\n         {shown}")
    return 1


def _export(args: Namespace) -> int:
    from varlit.data.progress import Progress
    from varlit.data.tokens.exporting import export_llamagen, export_safetensors

    manifest = _open(args.cache)
    total = sum(map(manifest.count, manifest.splits))
    progress = Progress(f"writing '{args.out}'", max(1, total))
    if args.format == "llamagen":
        split = args.split or "train"
        count = export_llamagen(manifest, args.out, split, args.name, progress.add)
    else:
        count = export_safetensors(manifest, args.out, args.split, progress.add)
    progress.end()
    print(f"wrote {count:,} images to {args.out}")
    return 0


def _import(args: Namespace) -> int:
    from varlit.checkpoints.store import find_model
    from varlit.data.progress import Progress
    from varlit.data.tokens.importing import (
        import_tokens,
        numbered_classes,
        open_llamagen,
        open_safetensors,
        recorded_classes,
    )
    from varlit.models.files import load_tokenizer

    network = load_tokenizer(find_model(args.tokenizer, args.root))
    names: tuple[str, ...] = ()
    if args.format == "llamagen":
        folders = {"train": args.source} | ({"val": args.val} if args.val else {})
        found = {split: open_llamagen(folder) for split, folder in folders.items()}
    else:
        if args.val:
            raise UserError("--val is for llamagen; shards called val-* are found by their names")
        found, metadata = open_safetensors(args.source)
        names = recorded_classes(metadata, network, args.source)
    if args.num_classes or not names:
        names = numbered_classes(found, args.num_classes)
    progress = Progress(
        f"reading '{args.source}'", sum(len(part.labels) for part in found.values())
    )
    manifest = import_tokens(found, network, args.out, names, args.format, progress.add)
    progress.end()
    print(card(manifest))
    print("\nnext     " + typed(f"varlit var fit -c RECIPE --data.tokens {args.out}"))
    return 0


def _open(cache: str) -> "Manifest":
    from varlit.data.tokens.manifest import read_manifest
    from varlit.data.tokens.module import find_cache

    return read_manifest(find_cache(cache))


def _views(manifest: "Manifest") -> str:
    if "imported" in manifest.spec.transform:
        return ""
    kinds = [
        f"{split}: {'the centre' if count == 1 else f'{count} random ones'}"
        for split, count in manifest.spec.num_crops.items()
    ]
    return ", ".join(kinds)


def _described(facts: object) -> str:
    assert isinstance(facts, dict)
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def _size(num_bytes: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.2f} {unit}"
    return f"{num_bytes} B"


VERBS: dict[str, tuple[Callable[[], VerbParser], Callable[[Namespace], int]]] = {
    "info": (info_parser, _info),
    "verify": (verify_parser, _verify),
    "export": (export_parser, _export),
    "import": (import_parser, _import),
}
