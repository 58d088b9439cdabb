"""What a verb starts from: the checkpoint that was asked for, or the newest that is whole."""

from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from varlit.errors import UserError
from varlit.training.checkpoint_files import (
    LAST,
    Damaged,
    Newest,
    damage,
    newest_whole,
    set_aside,
)

CHECK_IS_LONG_BYTES = 2**31


def find(given: str | None, run_dir: Path, train_command: str, may_be_new: bool) -> Newest:
    """Resolve `ckpt_path`; every process finds the same, for each reads the same files.

    Args:
        given: `last`, a file, or nothing for a fresh start.
        run_dir: Folder of the run.
        train_command: What makes a checkpoint where there is none.
        may_be_new: Whether a run without checkpoints starts afresh.

    Raises:
        UserError: If there is nothing, or nothing whole, to start from.
    """
    folder = run_dir / "checkpoints"
    if not given:
        return Newest(None, [])
    if given != "last":
        return _named(Path(given), folder)
    _announce(folder)
    found = newest_whole(folder)
    for each in found.damaged:
        _say(f"passed over {each.path}: {each.reason}")
    if found.path is not None:
        if found.damaged:
            _say(f"the newest whole checkpoint is {found.path}")
        return found
    if found.damaged:
        paths = ", ".join(str(each.path) for each in found.damaged[:3])
        raise UserError(
            f"no checkpoint of this run is whole: {paths}. Copy one back; or start afresh with "
            f"another --name, or by moving {folder} away"
        )
    if may_be_new:
        return found
    raise UserError(f"{folder / LAST}: no checkpoint yet; train first: {train_command}")


@rank_zero_only
def put_aside(damaged: list[Damaged]) -> None:
    """Rename damaged files that the next save would move on to the place of a whole one."""
    for each in damaged:
        if each.path.name.startswith("last"):
            target = set_aside(each.path)
            if target is not None:
                _say(f"{each.path.name} is kept as {target.name}")


def _named(path: Path, folder: Path) -> Newest:
    if not path.is_file():
        raise UserError(f"ckpt_path {path}: no such file; leave it out to take {folder / LAST}")
    reason = damage(path)
    if reason:
        raise UserError(f"{path}: {reason}; leave ckpt_path out to take the newest that is whole")
    return Newest(path, [])


def _announce(folder: Path) -> None:
    """Say what takes a while: about a minute for 30 GB."""
    path = folder / LAST
    size = path.stat().st_size if path.is_file() else 0
    if size > CHECK_IS_LONG_BYTES:
        _say(f"checking {path}, {size / 1e9:.1f} GB")


@rank_zero_only
def _say(text: str) -> None:
    print(f"varlit: {text}", flush=True)
