"""`varlit quickstart`: the whole pipeline on real digits, measured, minutes on a laptop.

It types the commands that a user would: tokenizer fit, tokenizer predict, var fit; then it draws
1,500 digits, has them judged, and writes a picture and report.json.
"""

import json
import shutil
import time
from pathlib import Path
from typing import Any

from varlit.cli import main as command_line
from varlit.cli.arguments import VerbParser
from varlit.cli.verbs import typed
from varlit.disks import whole_file
from varlit.errors import UserError

STAGES = ("tokenizer", "var")
ELAPSED_FILE, REPORT_FILE, PICTURE_FILE = "elapsed.json", "report.json", "demo.png"


def build_parser() -> VerbParser:
    """The flags of `varlit quickstart`."""
    parser = VerbParser("quickstart", "Train both stages on real digits and judge the samples.")
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/demo"), help="everything is written here")
    add("--seed", type=int, default=0, help="of weights, order and samples")
    add("--num_samples", type=int, default=1500, help="drawn and judged, all classes alike")
    add("--cfg_scale", type=float, default=1.5, help="guidance of the judged samples")
    add("--tokenizer_steps", type=int, default=0, help="0 = as the digits recipe says")
    add("--var_steps", type=int, default=0, help="0 = as the digits recipe says")
    return parser


def main(argv: list[str]) -> int:
    """Run the pipeline, or what is left of it.

    Args:
        argv: What follows `varlit quickstart`.
    """
    args = build_parser().parse_args(argv)
    if args.num_samples < 10:
        raise UserError(f"--num_samples must be at least 10, one a class; got {args.num_samples}")
    settings = {key: value for key, value in vars(args).items() if key != "out"}
    clock = Clock(args.out, settings)
    for title, words in _commands(args.out, args.seed, args.tokenizer_steps, args.var_steps):
        print(f"\n== {title}\n$ varlit {' '.join(words)}", flush=True)
        code = command_line.main(words)
        clock.save()
        if code:
            return code
    print("\n== Draw, judge and measure", flush=True)
    from varlit.cli.results.digit_report import measure

    report, picture = measure(
        args.out / "var", args.num_samples, args.cfg_scale, args.seed, args.out / PICTURE_FILE
    )
    report = {"wall_seconds": round(clock.seconds(), 1), **report, "seed": args.seed}
    report |= {"times_resumed": clock.times_resumed, "settings": settings}
    _write_json(args.out / REPORT_FILE, report)
    _print_report(report)
    print(f"picture  {picture}\nreport   {args.out / REPORT_FILE}")
    command = f"varlit sample {args.out / 'var'} --classes 3,7 --cfg_scale 3 --out mine.png"
    print(f"next     {typed(command)}")
    return 0


class Clock:
    """Wall time of the pipeline over all its sittings, and what must be done afresh.

    A pipeline that was cut off goes on where it stopped, and the time it took before counts. A
    finished one, or one with other settings, starts again from nothing.
    """

    def __init__(self, out: Path, settings: dict[str, Any]) -> None:
        self.path, self.settings = out / ELAPSED_FILE, settings
        self.before_s, self.times_resumed = 0.0, 0
        self.started = time.monotonic()
        previous = _read_json(self.path)
        if previous.get("settings") == settings and not (out / REPORT_FILE).exists():
            self.before_s = float(previous["seconds"])
            self.times_resumed = int(previous["times_resumed"]) + 1
            print(f"going on with {out}: {self.before_s:.0f} s were spent before")
        else:
            _clear(out, is_own=bool(previous))
        self.save()

    def seconds(self) -> float:
        """Seconds so far."""
        return self.before_s + time.monotonic() - self.started

    def save(self) -> None:
        """Remember the time, for a sitting that may follow."""
        content = {"seconds": self.seconds(), "times_resumed": self.times_resumed}
        _write_json(self.path, content | {"settings": self.settings})


def _commands(
    out: Path, seed: int, tokenizer_steps: int, var_steps: int
) -> list[tuple[str, list[str]]]:
    # One process: more of them would each run this whole pipeline again.
    place = ["--root", str(out), "--gpus", "1"]
    fit = ["-c", "digits", "--seed_everything", str(seed), "--data.seed", str(seed)]
    tokenizer = ["tokenizer", "fit", *fit, "--name", "tokenizer", *place]
    var = ["var", "fit", *fit, "--name", "var", *place]
    var += ["--data.tokens", str(out / "tokenizer" / "tokens")]
    if tokenizer_steps:
        tokenizer += ["--trainer.max_steps", str(tokenizer_steps)]
    if var_steps:
        var += ["--trainer.max_steps", str(var_steps)]
    return [
        ("1 of 3: train the tokenizer on 1,500 handwritten digits", tokenizer),
        (
            "2 of 3: encode the digits to token pyramids",
            ["tokenizer", "predict", "--name", "tokenizer", *place],
        ),
        ("3 of 3: train VAR on the token pyramids", var),
    ]


def _print_report(report: dict[str, Any]) -> None:
    rows = [
        ("wall time", f"{report['wall_seconds']:.0f} s", "set-up aside"),
        (
            "judge names the intended class",
            f"{report['judge_accuracy']:.1%}",
            f"real held-out digits {report['judge_heldout_accuracy']:.1%}",
        ),
        ("reconstructions judged right", f"{report['reconstruction_accuracy']:.1%}", "held-out"),
        ("precision", f"{report['precision']:.3f}", "samples that look real"),
        ("recall", f"{report['recall']:.3f}", "real digits that samples cover"),
        (
            "Frechet distance, 8x8 pixels",
            f"{report['frechet']:.1f}",
            f"real held-out digits {report['frechet_yardstick']:.1f}",
        ),
    ]
    print()
    for name, value, remark in rows:
        print(f"  {name:<32} {value:>8}   {remark}")
    print()


def _clear(out: Path, is_own: bool) -> None:
    """Remove what an earlier quickstart left, and nothing else.

    Raises:
        UserError: If runs are there that no quickstart made.
    """
    for stage in STAGES:
        if (out / stage).exists():
            if not is_own:
                raise UserError(
                    f"{out / stage} exists, and no quickstart made it; give another --out"
                )
            print(f"starting afresh: removing {out / stage}")
            shutil.rmtree(out / stage)
    for name in (REPORT_FILE, PICTURE_FILE):
        (out / name).unlink(missing_ok=True)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
