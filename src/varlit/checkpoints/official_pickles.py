"""Pickles of the official code, read without running what is in them, and written whole.

Whatever else turns up under a name that ends in .pth is told apart by its first bytes.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import pickletools
import re
import warnings
import zipfile
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from varlit.errors import UserError

HEAD_BYTES = 64
AGAIN = "download or copy it again"


def read_pickle(path: Path) -> object:
    """Read what `torch.save` wrote; tensors of new files stay on disk until they are used.

    Raises:
        UserError: If the file is missing, truncated, something else, or holds code. Code is
            refused, never run.
    """
    try:
        _check_kind(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on pickle protocols; the errors below say more
            is_zip = zipfile.is_zipfile(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL:? ([\w.]+)", str(error))
        name = found[1] if found else _name_in_pickle(path)
        if name:
            raise UserError(
                f"{path} asks for `{name}`, which is code and not weights; it was refused and "
                "nothing of it was run. An official checkpoint is plain tensors: download it "
                "again from its authors"
            ) from None
        raise UserError(f"{path} is damaged, or no checkpoint of torch; {AGAIN}") from None
    except Exception as error:  # in a damaged file any instruction may go wrong in any way
        reason = str(error).splitlines()[0] if str(error) else "it ends too early"
        reason = reason if reason.isprintable() else type(error).__name__
        raise UserError(f"{path} is truncated or damaged ({reason}); {AGAIN}") from None


def write_pickle(content: dict[str, Tensor], path: Path) -> None:
    """Write a plain state dict as `torch.save` does, under a temporary name first.

    Raises:
        UserError: If it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save(content, file)
        os.replace(temporary, path)
    except (RuntimeError, OSError) as error:  # a full disk is a RuntimeError of torch
        full = "the disk is full, or the file system broke off"
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else full
        raise UserError(
            f"cannot write {path} ({reason}); free some space or give another --out"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _check_kind(path: Path) -> None:
    """Refuse what its first bytes give away."""
    if path.is_dir():
        raise UserError(
            f"{path} is a folder, and an official checkpoint is a file such as var_d16.pth. A "
            f"varlit model goes the other way: varlit convert {path} --to official --out FILE.pth"
        )
    if not path.is_file():
        raise UserError(f"there is no file {path}; give an official checkpoint, as var_d16.pth")
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    size = path.stat().st_size
    if not head:
        raise UserError(f"{path} is empty; {AGAIN}")
    if head.startswith(b"PK") and not zipfile.is_zipfile(path):
        raise UserError(f"{path} is truncated: its end is missing after {size:,} bytes; {AGAIN}")
    if head.startswith(b"PK") and not _pickles_in(path):
        raise UserError(f"{path} is an archive and no checkpoint of torch; give the .pth file")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a pointer of Git LFS and not the file itself; run git lfs pull")
    if head.lstrip().startswith(b"<"):
        raise UserError(f"{path} is a web page and not a checkpoint; download the file itself")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size:
        raise UserError(
            f"{path} is a safetensors file, and an official checkpoint is a .pth file; a varlit "
            "model is given by its folder"
        )


def _name_in_pickle(path: Path) -> str:
    """First Python name in a pickle that is not torch's; the pickle is read, not run."""
    words: list[str] = []
    try:
        with _pickle_stream(path) as stream:
            while True:  # an old file of torch is several pickles in a row
                for op, value, _ in pickletools.genops(stream):
                    name = ""
                    if op.name in {"GLOBAL", "INST"}:
                        name = str(value).replace(" ", ".")
                    elif op.name == "STACK_GLOBAL":
                        name = ".".join(words[-2:])
                    elif isinstance(value, str):
                        words.append(value)
                    # A text that begins like a pickle is no name.
                    is_name = all(part.isidentifier() for part in name.split("."))
                    if is_name and name.split(".")[0] not in {"torch", "collections"}:
                        return name
    except Exception:  # the end, or no pickle at all, or a damaged archive
        return ""


def _pickle_stream(path: Path) -> BinaryIO:
    if not zipfile.is_zipfile(path):
        return path.open("rb")
    with zipfile.ZipFile(path) as archive:
        return io.BytesIO(archive.read(_pickles_in(path)[0]))


def _pickles_in(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return [name for name in archive.namelist() if name.endswith("data.pkl")]
