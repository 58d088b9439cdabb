"""`varlit convert FILE`: official checkpoints to varlit folders, and `--to official` back."""

import shlex
import sys
import warnings
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from varlit.cli.arguments import VerbParser
from varlit.cli.verbs import typed
from varlit.errors import UserError

if TYPE_CHECKING:
    from varlit.checkpoints.official import OfficialModels
    from varlit.models.var import VAR
    from varlit.models.vqvae import VQVAE

SEARCHES = ("euclidean", "cosine")


def build_parser() -> VerbParser:
    """The flags of `varlit convert`."""
    parser = VerbParser("convert", "Read official VAR checkpoints, and write them.")
    add = parser.add_argument
    add("source", help="an official .pth file; with --to official, a run or its folder")
    add("--to", choices=("varlit", "official"), default="varlit", help="which way")
    add(
        "--out",
        type=Path,
        help="folder to write, new or holding this very model; with --to official, a new file "
        "(default: ROOT/<name of the file>)",
    )
    add("--tokenizer", help="run or folder of the tokenizer whose tokens a VAR speaks")
    add("--scales", help="sides of the token maps, such as 1,2,3,4, where the file is silent")
    add("--search", choices=SEARCHES, help="how the tokenizer finds the nearest code")
    add("--root", default="runs", help="where runs live")
    return parser


def main(argv: list[str]) -> int:
    """Convert one file or folder.

    Args:
        argv: What follows `varlit convert`.
    """
    args = build_parser().parse_args(argv)
    if args.to == "official":
        _to_official(args)
    else:
        _to_varlit(args)
    return 0


def parse_scales(text: str | None) -> tuple[int, ...] | None:
    """Turn `1,2,3` into sides.

    Raises:
        UserError: If they are not growing whole numbers.
    """
    if text is None:
        return None
    from varlit.ops.scales import Scales

    words = [word.strip() for word in text.strip("[]()").split(",")]
    if not all(word.isdecimal() for word in words):
        raise UserError(f"--scales wants whole numbers such as 1,2,3,4; got {text}")
    return Scales(tuple(map(int, words))).sides


def _to_varlit(args: Namespace) -> None:
    from varlit.checkpoints.official import load_official

    source = Path(args.source)
    if not source.exists() and (Path(args.root) / args.source).is_dir():
        source = Path(args.root) / args.source
    scales = parse_scales(args.scales)
    tokenizer = _tokenizer_folder(args.tokenizer, args.root) if args.tokenizer else None
    models = load_official(source, scales, args.search or "euclidean")
    out = args.out or Path(args.root) / source.stem
    if models.tokenizer is None and args.search:
        warnings.warn(
            "--search is the tokenizer's and this file holds a VAR only; it is ignored",
            stacklevel=2,
        )
    for note in models.notes:
        print(f"note: {note}")
    if models.var is not None:
        _write_var(models, source, tokenizer, out)
        return
    assert models.tokenizer is not None
    if tokenizer is not None:
        raise UserError(
            f"{source} holds a VQVAE, and --tokenizer goes with a VAR; leave --tokenizer out, or "
            "give the file of the VAR"
        )
    _write_tokenizer(models, source, out)


def _write_tokenizer(models: "OfficialModels", source: Path, out: Path) -> None:
    from varlit.checkpoints.official import save_surplus
    from varlit.checkpoints.official_out import check_out
    from varlit.models.files import save_tokenizer

    assert models.tokenizer is not None
    check_out(out, models.tokenizer)
    print(f"{source}: {describe(models.tokenizer)}")
    save_tokenizer(models.tokenizer, out)
    save_surplus(models.surplus, out)
    print(f"wrote {out}")
    _print_next(f"varlit convert var_d16.pth --tokenizer {_quoted(out)}")


def _write_var(
    models: "OfficialModels", source: Path, tokenizer_folder: Path | None, out: Path
) -> None:
    from varlit.checkpoints.official import read_surplus, save_surplus, speak
    from varlit.checkpoints.official_out import check_out
    from varlit.models.files import TOKENIZER_FOLDER, load_tokenizer, save_var

    var, tokenizer, surplus = models.var, models.tokenizer, models.surplus
    assert var is not None
    if tokenizer_folder is not None:
        if tokenizer is not None:
            raise UserError(f"{source} has its tokenizer in it; leave --tokenizer out")
        tokenizer, surplus = load_tokenizer(tokenizer_folder), read_surplus(tokenizer_folder)
        speak(var, tokenizer.config)
    before = check_out(out, var, tokenizer)
    if tokenizer is None and before is not None and before.bundled is not None:
        # The same VAR again, now without a tokenizer: the one that is there stays.
        tokenizer = before.bundled
        speak(var, tokenizer.config)
    print(f"{source}: {describe(var)}")
    if models.tokenizer is not None:
        print(f"{source}: {describe(models.tokenizer)}")
    save_var(var, tokenizer_folder or tokenizer, out, before.class_names if before else ())
    print(f"wrote {out}")
    if tokenizer is None:
        print("without a tokenizer it cannot draw; convert one and add it")
        again = f"varlit convert {_quoted(source)} --out {_quoted(out)} --tokenizer RUN"
        _print_next(again)
        return
    save_surplus(surplus, out / TOKENIZER_FOLDER)
    classes = " --classes 207,360" if var.num_classes > 360 else ""
    _print_next(f"varlit sample {_quoted(out)}{classes}")


def _to_official(args: Namespace) -> None:
    for flag in ("tokenizer", "scales", "search"):
        if getattr(args, flag) is not None:
            raise UserError(f"--{flag} is for official files; --to official takes the model as is")
    if Path(args.source).is_file():
        raise UserError(
            f"{args.source} is a file, and --to official takes a run or its folder; leave --to out "
            "to read an official file"
        )
    from varlit.checkpoints.official import read_surplus, save_official
    from varlit.checkpoints.store import find_model
    from varlit.models.files import TOKENIZER_FOLDER, load_tokenizer, load_var, read_model_config

    folder = find_model(args.source, args.root)
    out = args.out or Path(f"{folder.resolve().name}.pth")
    if out.suffix != ".pth":
        raise UserError(f"--to official writes a .pth file; got --out {out}")
    if out.exists():
        raise UserError(f"{out} is there already and is left alone; give another --out")
    network: VQVAE | VAR
    if read_model_config(folder)["model"] == "tokenizer":
        network, surplus = load_tokenizer(folder), read_surplus(folder)
    else:
        network, surplus = load_var(folder).var, {}
    print(f"{folder}: {describe(network)}")
    if message := official_limits(network):
        warnings.warn(message, stacklevel=2)
    count = save_official(network, out, surplus)
    print(f"wrote {out}: {count} tensors. The official code wants {official_settings(network)}")
    bundled = folder / TOKENIZER_FOLDER
    if bundled.is_dir():
        tokenizer_out = out.with_name(f"{out.stem}-tokenizer.pth")
        there = f"--to official --out {_quoted(tokenizer_out)}"
        _print_next(f"varlit convert {_quoted(bundled)} {there}")


def describe(network: "VQVAE | VAR") -> str:
    """One line on what was recognised."""
    from varlit.models.vqvae import VQVAE

    config = network.config if isinstance(network, VQVAE) else network.tokenizer_config
    count = sum(parameter.numel() for parameter in network.parameters())
    if isinstance(network, VQVAE):
        what = f"{config.codebook_size:,} codes of dimension {config.codebook_dim}"
        kind = "VQVAE"
    else:
        shape = network.config
        kind = f"VAR of depth {shape.depth}, width {shape.resolved_width}"
        kind += ", shared AdaLN" if shape.shared_adaln else ""
        kind += "" if shape.qk_l2_norm else ", no QK l2 norm"
        what = f"{network.num_classes:,} classes"
    scales = ",".join(map(str, config.scales))
    return f"{kind}, {count:,} parameters, {what}, {config.image_size} px, scales {scales}"


def official_settings(network: "VQVAE | VAR") -> str:
    """What the official code must be told to build this network, in its own words."""
    from varlit.models.vqvae import VQVAE

    config = network.config if isinstance(network, VQVAE) else network.tokenizer_config
    settings: dict[str, object] = {"patch_nums": config.scales, "V": config.codebook_size}
    settings["Cvae"] = config.codebook_dim
    if isinstance(network, VQVAE):
        settings |= {"ch": config.channels, "share_quant_resi": config.num_phi}
        settings |= {"using_znorm": True} if config.search == "cosine" else {}
    else:
        shape = network.config
        settings |= {"depth": shape.depth, "num_classes": network.num_classes}
        settings |= {"shared_aln": shape.shared_adaln, "attn_l2_norm": shape.qk_l2_norm}
    return ", ".join(f"{name}={value}".replace(" ", "") for name, value in settings.items())


def official_limits(network: "VQVAE | VAR") -> str:
    """What of this network the official code has no setting for; empty where there is nothing."""
    from varlit.models.config import GROUP_NORM_GROUPS
    from varlit.models.vqvae import VQVAE

    if isinstance(network, VQVAE):
        config = network.config
        fixed = {
            "channel_multipliers": (config.channel_multipliers, (1, 1, 2, 2, 4)),
            "norm_groups": (config.norm_groups, GROUP_NORM_GROUPS),
            "num_res_blocks": (config.num_res_blocks, 2),
            "phi_ratio": (config.phi_ratio, 0.5),
        }
    else:
        shape = network.config
        fixed = {
            "width": (shape.resolved_width, 64 * shape.depth),
            "num_heads": (shape.resolved_heads, shape.depth),
            "mlp_ratio": (shape.mlp_ratio, 4.0),
        }
    differing = [
        f"{name} {got} (there {there})" for name, (got, there) in fixed.items() if got != there
    ]
    if not differing:
        return ""
    return (
        f"the official code builds no model with {', '.join(differing)}; it loads this "
        "file only after a change"
    )


def _tokenizer_folder(name: str, root: str) -> Path:
    """Folder of the tokenizer that --tokenizer names.

    Raises:
        UserError: If it is a file, or a VAR.
    """
    from varlit.checkpoints.store import find_model
    from varlit.models.files import TOKENIZER_FOLDER, read_model_config

    if Path(name).is_file():
        raise UserError(
            f"--tokenizer wants a run or its folder; got the file {name}. Convert it first: "
            + typed(f"varlit convert {_quoted(Path(name))}")
        )
    folder = find_model(name, root)
    if read_model_config(folder)["model"] != "tokenizer":
        raise UserError(
            f"--tokenizer wants a tokenizer, and {folder} holds a VAR; its own one is in "
            f"{folder / TOKENIZER_FOLDER}"
        )
    return folder


def _print_next(command: str) -> None:
    sys.stdout.flush()
    print("next: " + typed(command))


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
