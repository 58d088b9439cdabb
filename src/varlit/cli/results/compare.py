"""`varlit compare RUN...`: measured figures beside published ones, and the page of results."""

from pathlib import Path

from varlit.cli.arguments import VerbParser
from varlit.errors import UserError


def build_parser() -> VerbParser:
    """The flags of `varlit compare`."""
    parser = VerbParser("compare", "Figures of runs beside those of the paper, and a page of them.")
    add = parser.add_argument
    add("runs", nargs="*", help="names of runs, their folders, or metrics.json files")
    add("--out", type=Path, default=None, help="also write the page, such as docs/results.md")
    add("--root", type=Path, default=Path("runs"), help="where runs live")
    return parser


def main(argv: list[str]) -> int:
    """Print the table and write the page.

    Args:
        argv: What follows `varlit compare`.
    """
    args = build_parser().parse_args(argv)
    from varlit.cli.results.measured import read_result
    from varlit.cli.results.page import page, table
    from varlit.data.whole_files import write_bytes

    if args.out is not None and (args.out.suffix != ".md" or args.out.is_dir()):
        raise UserError(f"--out wants the name of a .md file; got {args.out}")
    results = [read_result(name, args.root) for name in args.runs]
    print(table(results), end="")
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(args.out, page(results).encode())
        print(f"written: {args.out}")
    return 0
