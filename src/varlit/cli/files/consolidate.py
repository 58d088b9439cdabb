"""`varlit consolidate RUN`: a checkpoint that many processes wrote in parts, as one file."""

from contextlib import nullcontext
from pathlib import Path

from varlit.cli.arguments import VerbParser
from varlit.cli.running.lock import RunLock
from varlit.errors import UserError


def build_parser() -> VerbParser:
    """The flags of `varlit consolidate`."""
    parser = VerbParser(
        "consolidate",
        "Make one file of a checkpoint in parts, so that a run can go on with any strategy. It is "
        "held in memory as a whole: 12 bytes a weight, 16 with an average.",
    )
    add = parser.add_argument
    add("run", help="a run, its folder, or a .ckpt file")
    add("--checkpoint", default="last", help="name of the checkpoint in the run's folder")
    add("--root", default="runs", help="where runs live")
    return parser


def main(argv: list[str]) -> int:
    """Put the parts of a checkpoint together under its own name.

    Args:
        argv: What follows `varlit consolidate`.
    """
    args = build_parser().parse_args(argv)
    path = find_checkpoint(args.run, args.checkpoint, Path(args.root))
    in_run = path.parent.name == "checkpoints"
    with RunLock(path.parent.parent) if in_run else nullcontext():  # a training would save amid it
        is_new = consolidate(path)
    if is_new:
        print(f"{path}: one file, {path.stat().st_size / 2**20:,.1f} MiB; its parts are gone")
    else:
        print(f"{path}: one file already; nothing was done")
    return 0


def find_checkpoint(run: str, name: str, root: Path) -> Path:
    """Resolve what the user typed to a checkpoint.

    Raises:
        UserError: If there is none.
    """
    if Path(run).is_file():
        return Path(run)
    folders = [Path(run) / "checkpoints", root / run / "checkpoints"]
    for folder in folders:
        path = folder / f"{name.removesuffix('.ckpt')}.ckpt"
        if path.is_file():
            return path
    known = sorted(p.stem for folder in folders for p in folder.glob("*.ckpt"))
    hint = f"--checkpoint one of: {', '.join(known)}" if known else "is it the name of a run?"
    raise UserError(f"{folders[-1]}: no checkpoint `{name}`; {hint}")


def consolidate(path: Path) -> bool:
    """Replace a checkpoint in parts by one file; False if it is one file already.

    The file appears whole or not at all, and the parts go last.

    Raises:
        UserError: If the checkpoint or a part of it is missing or damaged.
    """
    from varlit.training.checkpoint_files import read_checkpoint
    from varlit.training.sealing import write_sealed
    from varlit.training.shard_files import (
        in_parts,
        joined_tree,
        open_parts,
        parts_folder,
        remove_unused_parts,
    )

    content = read_checkpoint(path)
    if not in_parts(content):
        return False
    write_sealed(joined_tree(open_parts(content, path)), path)
    remove_unused_parts(path)
    if not any(parts_folder(path).iterdir()):
        parts_folder(path).rmdir()
    return True
