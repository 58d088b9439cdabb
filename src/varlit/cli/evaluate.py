"""`varlit evaluate RUN`: FID and inception score of any VAR, a converted one included.

`varlit var test` does the same for a run that was trained here, on all its GPUs; this verb needs
no recipe and no data, only the model's folder and the reference.
"""

import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from varlit.cli.arguments import PRECISIONS, VerbParser, pick_device, takes_bf16
from varlit.errors import UserError

if TYPE_CHECKING:
    from varlit.training.evaluation import EvaluationConfig


def build_parser() -> VerbParser:
    """The flags of `varlit evaluate`."""
    parser = VerbParser("evaluate", "FID and inception score of images drawn by a VAR, on one GPU.")
    add = parser.add_argument
    add("run", help="name of a VAR run, its folder, or owner/model on the hub")
    add("--reference", default="", help="an .npz with mu and sigma of Inception features")
    add("--inception", default="", help="Inception's weights; default $VARLIT_INCEPTION, download")
    add("--num_images", type=int, default=50_000, help="fewer is a quick look, and called so")
    add("--batch_size", type=int, default=64, help="images drawn at a time")
    add("--cfg_scale", type=float, default=1.5, help="guidance, rising over the scales; 0 = none")
    add("--top_k", type=int, default=900, help="draw among the k likeliest codes; 0 = all")
    add("--top_p", type=float, default=0.96, help="draw within this probability; 0 = all")
    add("--seed", type=int, default=0, help="image i is drawn from seed + i")
    add("--out", type=Path, default=None, help="the figures as JSON; default RUN/metrics.json")
    add("--root", default="runs", help="where runs live")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--precision", choices=PRECISIONS, default="auto", help="auto = bf16 on GPUs that have it")
    return parser


def main(argv: list[str]) -> int:
    """Draw, measure, print and write.

    Args:
        argv: What follows `varlit evaluate`.
    """
    args = build_parser().parse_args(argv)
    from varlit.checkpoints.store import find_model
    from varlit.cli.report import print_table, write_metrics
    from varlit.models.files import load_var
    from varlit.training.evaluation import EvaluationConfig, open_metrics

    names = {field.name for field in fields(EvaluationConfig)}
    config = EvaluationConfig(**{k: v for k, v in vars(args).items() if k in names})
    folder = find_model(args.run, args.root)
    loaded = load_var(folder)
    out = _checked_out(args.out or folder / "metrics.json")
    device = pick_device(args.device)
    loaded.tokenizer  # noqa: B018 - a VAR without one is refused before Inception is looked for
    metrics = open_metrics(config, "--reference")
    figures, protocol = _measure(
        loaded.var, loaded.tokenizer, config, metrics, device, args.precision
    )
    print_table(f"{args.run}: {config.num_images:,} images", figures)
    write_metrics(out, figures, folder, protocol)
    return 0


def _checked_out(path: Path) -> Path:
    """Refuse, before hours of drawing, a file that the figures cannot be written to.

    Raises:
        UserError: If it is a folder, or where nothing may be written.
    """
    if path.is_dir():
        raise UserError(f"--out wants the name of a .json file; got the folder {path}")
    there = next(parent for parent in path.absolute().parents if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"no file can be written in {there}; give another --out FILE.json")
    return path


def _measure(
    var: Any, tokenizer: Any, config: "EvaluationConfig", metrics: Any, device: str, precision: str
) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures by name, and how they were taken.

    Raises:
        UserError: If a batch does not fit into the memory of the GPU.
    """
    import torch

    from varlit.generation.sampler import ImageSeeds, Sampler
    from varlit.training.evaluation import measure_samples, told

    sampler, settings = Sampler(var.to(device), tokenizer.to(device)), config.sampling()
    is_bf16 = takes_bf16(precision, device)
    kind = torch.device(device).type

    def draw(labels: torch.Tensor, seeds: list[int]) -> torch.Tensor:
        with torch.autocast(kind, torch.bfloat16, enabled=is_bf16):
            return sampler.draw(labels, settings, ImageSeeds(seeds)).images

    try:
        report = measure_samples(draw, var.num_classes, config, metrics)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"out of GPU memory at --batch_size {config.batch_size}; try --batch_size "
            f"{max(1, config.batch_size // 2)}"
        ) from error
    return told(report), {
        **report.protocol,
        "sampling": config.to_dict(),
        "sampling_precision": "bf16-mixed" if is_bf16 else "32-true",
        "device": kind,
    }
