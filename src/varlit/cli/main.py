"""The command `varlit`: a card, the dispatch to verbs, and the last word on errors.

Nothing heavy is imported here: the card must be there in a tenth of a second. A verb is a module
with `main(argv: list[str]) -> int`, imported when it is asked for.
"""

import atexit
import difflib
import errno
import importlib
import os
import sys
from pathlib import Path

from varlit import __version__
from varlit.cli.running.ending import end_at_once
from varlit.disks import FULL, free_room
from varlit.errors import UserError

VERBS = {
    "tokenizer": "varlit.cli.tokenizer",
    "var": "varlit.cli.var",
    "sample": "varlit.cli.sampling.sample",
    "demo": "varlit.cli.demo",
    "edit": "varlit.cli.editing.edit",
    "reconstruct": "varlit.cli.reconstruct",
    "convert": "varlit.cli.files.convert",
    "data": "varlit.cli.files.data",
    "cache": "varlit.cli.files.cache",
    "evaluate": "varlit.cli.results.evaluate",
    "compare": "varlit.cli.results.compare",
    "quickstart": "varlit.cli.quickstart",
    "consolidate": "varlit.cli.files.consolidate",
    "replay": "varlit.cli.running.replay",
    "info": "varlit.cli.pricing.info",
    "doctor": "varlit.cli.doctor.main",
}

CARD = f"""\
varlit {__version__} - visual autoregressive modeling (VAR): next-scale prediction, end to end

Stages
  varlit tokenizer fit        train the multi-scale tokenizer on images
  varlit tokenizer test       PSNR, SSIM, rFID and code usage: a table and metrics.json
  varlit tokenizer predict    encode the images to token pyramids, once for all
  varlit var fit              train the transformer on the token pyramids
  varlit var test             FID and its companions of drawn images; var sweep: over guidance

Verbs
  varlit quickstart           both stages on real digits, minutes on a laptop: a picture, a report
  varlit sample RUN           draw images by class
  varlit demo RUN             a local web page: draw, watch it grow, paint over a part
  varlit edit RUN PHOTO       draw a part of a photo anew, or what lies beyond its edge
  varlit reconstruct RUN IMG  an image beside its reconstruction, growing over the scales
  varlit evaluate RUN         FID, sFID, IS, KID, precision, recall of any VAR
  varlit compare RUN...       figures of runs beside those of the paper; docs/results.md
  varlit convert FILE         official VAR checkpoints to varlit folders, and back
  varlit data                 pack images into tar shards, list shards, say what a data set holds
  varlit consolidate RUN      a checkpoint that many GPUs wrote in parts, as one file
  varlit cache                what a token cache holds, whether it is whole; other formats
  varlit replay FILE          a step with NaN once more: where it begins
  varlit info RECIPE          parameters, FLOPs, memory, steps; no GPU needed
  varlit doctor -c RECIPE     what would break a long run here: ok / warn / how to mend

Examples
  varlit quickstart --out runs/demo --seed 0
  varlit tokenizer fit -c folder --data.root photos/ --name photos
  varlit var fit -c d16 --name d16 --model.var.depth 20 --gpus 8

`-c` takes a file or the name of a recipe in conf/. Run a fit again to resume it.
More: varlit VERB --help; add --dry_run to any fit to see what it would do.
"""

HELP = ("-h", "--help", "help")

# What can go wrong with a disk; every other OSError is a fault of ours and keeps its traceback.
DISK_ERRORS = {
    errno.ENOSPC: "no space left; free some, or write elsewhere (--root or --out)",
    errno.EDQUOT: "the disk quota is used up; free some, or write elsewhere (--root or --out)",
    errno.EACCES: "permission denied; mend the rights, or write elsewhere (--root or --out)",
    errno.EPERM: "not permitted; mend the rights, or write elsewhere (--root or --out)",
    errno.EROFS: "read-only file system; write elsewhere (--root or --out)",
    errno.EFBIG: "larger than a file may be here (ulimit -f); raise that, or write elsewhere",
    errno.EIO: "the disk fails (input/output error); write elsewhere (--root or --out)",
}


def command() -> int:
    """Run `main` as a process of its own, and see to it that no thread spoils its end."""
    code: list[int] = []
    atexit.register(_end, code)  # the first to be registered is the last to be called
    code.append(main())
    return code[0]


def main(argv: list[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: What follows `varlit`; taken from the command line when None.

    Returns:
        The exit code: 0 done, 1 something is broken, 2 a mistake that the user can mend, 130
        interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in HELP:
        if len(argv) > 1 and argv[1] not in HELP:
            return main([argv[1], "--help"])
        print(CARD, end="")
        return 0
    if argv[0] in {"-V", "--version", "version"}:
        print(f"varlit {__version__}")
        return 0
    if argv[0] not in VERBS:
        near = difflib.get_close_matches(argv[0], VERBS, 1)
        hint = f"did you mean `varlit {near[0]}`?" if near else f"known: {', '.join(VERBS)}"
        return _complain(f"there is no verb `{argv[0]}`; {hint}")
    try:
        return _run(argv[0], argv[1:])
    except UserError as error:
        if _wants_traceback():
            raise
        return _complain(str(error))
    except BrokenPipeError:
        # `varlit info d16 | head`: the reader has seen enough; spare Python's own complaint.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in DISK_ERRORS or _wants_traceback():
            raise
        return _complain(_told(error))
    except MemoryError:
        if _wants_traceback():
            raise
        return _complain("out of memory; take fewer at a time (--help names the flag)")
    except RuntimeError as error:
        if _wants_traceback():
            raise
        if "torchvision::" in str(error):
            return _complain("torch and torchvision do not fit together; see: varlit doctor --pair")
        if (explained := _explain_death(error)) is None:
            raise
        return _complain(explained)
    except KeyboardInterrupt:
        return 130


def _end(code: list[int]) -> None:
    if code and "torch" in sys.modules:
        end_at_once(code[0])


def _run(verb: str, argv: list[str]) -> int:
    """Import a verb's module and hand it the rest of the line; a parser's exit is an exit code."""
    from varlit.cli.running.quiet import format_warnings

    format_warnings()
    try:
        return int(importlib.import_module(VERBS[verb]).main(argv) or 0)
    except SystemExit as stop:
        if isinstance(stop.code, str):
            return _complain(stop.code)
        return int(stop.code or 0)


def _told(error: OSError) -> str:
    place = f"{error.filename}: " if error.filename else ""
    room = f" ({free_room(Path(error.filename))})" if place and error.errno in FULL else ""
    return f"{place}{DISK_ERRORS[error.errno or 0]}{room}"


def _explain_death(error: RuntimeError) -> str | None:
    from varlit.data.worker_deaths import explain_death

    return explain_death(error)


def _complain(message: str) -> int:
    # A worker of a multi-process run says which one it is: rank 0 may not have the same trouble.
    rank = os.environ.get("LOCAL_RANK", "0")
    who = "varlit" if rank == "0" else f"varlit [process {rank}]"
    sys.stdout.flush()
    print(f"{who}: {message}", file=sys.stderr)
    return 2


def _wants_traceback() -> bool:
    return os.environ.get("VARLIT_TRACEBACK", "") not in {"", "0"}


if __name__ == "__main__":
    sys.exit(main())
