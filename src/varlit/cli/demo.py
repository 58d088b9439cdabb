"""`varlit demo RUN`: a local web page that draws with a VAR."""

import contextlib
import os
import sys
import webbrowser
from argparse import Namespace
from typing import TYPE_CHECKING

from varlit.cli.arguments import VerbParser, pick_device, takes_bf16
from varlit.errors import UserError

if TYPE_CHECKING:
    from varlit.page.server import PageServer

DEFAULT_PORT = 7860
LOOPBACK = "127.0.0.1"


def build_parser() -> VerbParser:
    """The flags of `varlit demo`."""
    parser = VerbParser("demo", "Open a local web page: draw by class, paint over a part, redraw.")
    add = parser.add_argument
    add("run", help="name of a VAR run, its folder, or an official .pth file")
    add("--port", type=int, default=DEFAULT_PORT, help="where to listen; 0 = any that is free")
    add("--host", default=LOOPBACK, help="who may reach it; 0.0.0.0 = all who reach this machine")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--no_browser", action="store_true", help="print the address and open nothing")
    add("--root", default="runs", help="where runs live")
    return parser


def main(argv: list[str]) -> int:
    """Serve the page until Ctrl-C.

    Args:
        argv: What follows `varlit demo`.
    """
    args = build_parser().parse_args(argv)
    from varlit.checkpoints.pretrained import PretrainedVAR, load
    from varlit.page.command import Opened
    from varlit.page.drawing import Studio
    from varlit.page.server import PageServer

    device = pick_device(args.device)
    var = load(args.run, args.root)
    if not isinstance(var, PretrainedVAR):
        raise UserError(f"{args.run} is a tokenizer, expected a VAR; see: varlit reconstruct")
    tokenizer = var.to(device).tokenizer.to(device)
    opened = Opened(args.run, var.num_classes, tuple(var.class_names), other_flags(args))
    studio = Studio(var, tokenizer, opened, takes_bf16("auto", device))
    server = PageServer(studio, args.host, args.port)
    with contextlib.suppress(KeyboardInterrupt):
        announce(server, args, device)
        server.run()
    print("\nthe page is closed")
    return 0


def announce(server: "PageServer", args: Namespace, device: str) -> None:
    """Say where the page is and who can reach it, and open it where there is a screen."""
    if not server.is_local:
        print(
            f"varlit: listening on {args.host}: anyone who can reach port {server.port} of this "
            "machine can use the page; there is no password",
            file=sys.stderr,
        )
    print(f"{args.run} on {device}: {server.url}   (Ctrl-C ends it)", flush=True)
    if not args.no_browser and has_screen():
        webbrowser.open(server.url)


def has_screen() -> bool:
    """Whether a browser would open a window; one without windows would take the terminal."""
    return sys.platform in ("darwin", "win32") or bool(
        {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
    )


def other_flags(args: Namespace) -> tuple[str, ...]:
    """The flags that a command to copy needs as well."""
    words = ["--root", args.root] if args.root != "runs" else []
    return (*words, *(["--device", args.device] if args.device != "auto" else []))
