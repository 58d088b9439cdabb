"""`varlit evaluate RUN`: FID and its companions of any VAR, a converted one included.

`varlit var test` does the same on all GPUs; this verb needs only the folder and the reference.
"""

import argparse
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from varlit.cli.arguments import PRECISIONS, VerbParser, pick_device, takes_bf16
from varlit.cli.sampling.rejection import add_flags
from varlit.errors import UserError

if TYPE_CHECKING:
    import torch

    from varlit.generation.rejection.choice import Rejection
    from varlit.metrics.networks import FeatureNetwork
    from varlit.metrics.references import Reference
    from varlit.models.files import LoadedVAR
    from varlit.training.evaluation import Evaluation
    from varlit.training.evaluation_config import EvaluationConfig

METRICS = "metrics.json"


def build_parser() -> VerbParser:
    """The flags of `varlit evaluate`."""
    parser = VerbParser("evaluate", "FID and more of images drawn by a VAR, on one device.")
    add_arguments(parser)
    add = parser.add_argument
    add("--cfg_scale", type=float, default=1.5, help="guidance, rising over the scales; 0 = none")
    add("--top_k", type=int, default=900, help="draw among the k likeliest codes; 0 = all")
    add("--top_p", type=float, default=0.96, help="draw within this probability; 0 = all")
    add("--samples", default="", help="also write the images to this .npz, in ADM's format")
    add("--out", type=Path, default=None, help="the figures as JSON; default RUN/metrics.json")
    return parser


def add_arguments(parser: VerbParser) -> None:
    """The flags that a sweep has too."""
    add = parser.add_argument
    add("run", help="name of a VAR run, its folder, or owner/model on the hub")
    add(
        "--reference",
        default="",
        help="real images: FILE.npz, a folder, FOLDER:val, data:val or data:train (those behind "
        "the run's token cache); several with commas between",
    )
    add("--network", default="inception", help="inception, mobilenet_v2 or torchscript")
    add("--weights", default="", help="the network's file; Inception is found or fetched")
    add("--inception", default="", help="the older name of --weights")
    add("--trust_torchscript", action="store_true", help="run the program in a TorchScript file")
    add("--num_images", type=int, default=50_000, help="50,000 or more")
    add("--quick", type=int, default=0, help="draw only so many: a quick look, and called so")
    add("--batch_size", type=int, default=64, help="images drawn at a time")
    add("--guidance", choices=("var", "constant"), default="var", help="constant: 1 = none")
    add("--more_smooth", action="store_true", help="smoother pictures, worse FID")
    add("--rounding", choices=("nearest", "down"), default="nearest", help="how to reach uint8")
    add("--seed", type=int, default=0, help="image i is drawn from seed + i")
    add("--reference_rows", type=int, default=10_000, help="real images for precision; 0 = all")
    add("--reference_workers", type=int, default=4, help="processes that read reference images")
    add("--save_every_s", type=float, default=120.0, help="save so often, to go on after a cut")
    add("--root", default="runs", help="where runs live")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--precision", choices=PRECISIONS, default="auto", help="auto = bf16 on GPUs that have it")
    add_flags(parser)


def main(argv: list[str]) -> int:
    """Draw, measure, print and write.

    Args:
        argv: What follows `varlit evaluate`.
    """
    args = build_parser().parse_args(argv)
    from varlit.checkpoints.store import find_model
    from varlit.cli.results.report import print_protocol, print_table, told_choice, write_metrics
    from varlit.training.var_evaluation import titles_of

    config = config_of(args)
    folder = find_model(args.run, args.root)
    out = checked_out(args.out or folder / METRICS)
    bench = open_bench(args, config, folder)
    # What is drawn stays with the model, wherever the figures go; a shared one may be read-only.
    found = bench.evaluate(config, folder if os.access(folder, os.W_OK) else out.parent)
    published, quick = bench.published(found), "a quick look, " if config.quick else ""
    title = f"{args.run}{told_choice(config.keep)}: {quick}{config.count:,} images"
    print_table(title, found.to_dict(), published, titles_of(found))
    print_protocol(found.protocol)
    write_metrics(out, found.to_dict(), folder, found.protocol)
    return 0


def config_of(args: argparse.Namespace, **point: Any) -> "EvaluationConfig":
    """The settings among the flags, some of them replaced."""
    from varlit.training.evaluation_config import EvaluationConfig

    names = {field.name for field in fields(EvaluationConfig)}
    return EvaluationConfig(**({k: v for k, v in vars(args).items() if k in names} | point))


@dataclass(frozen=True)
class Bench:
    """A model, a feature network, references and what chooses, all at hand."""

    loaded: "LoadedVAR"
    device: "torch.device"
    is_bf16: bool
    weights: dict[str, str]
    network: "FeatureNetwork"
    references: "tuple[Reference, ...]"
    rejection: "Rejection | None"

    def evaluate(self, config: "EvaluationConfig", folder: Path) -> "Evaluation":
        """Draw and measure.

        Args:
            config: How.
            folder: Of the run; what is drawn is saved in it.

        Raises:
            UserError: If a batch does not fit into the memory of the GPU.
        """
        import torch

        from varlit.generation.recorded.compiled import open_sampler
        from varlit.training.evaluation import FOLDER, evaluate
        from varlit.training.var_evaluation import subject_of, with_drawing

        var, tokenizer = self.loaded.var, self.loaded.tokenizer
        sampler = open_sampler(var, tokenizer, None, num_images=config.count)
        subject = subject_of(
            sampler,
            config,
            "bf16-mixed" if self.is_bf16 else "32-true",
            lambda: torch.autocast(self.device.type, torch.bfloat16, enabled=self.is_bf16),
            self.rejection,
            self.weights,
        )
        try:
            found = evaluate(subject, config, self.network, self.references, folder / FOLDER)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"out of GPU memory at --batch_size {config.batch_size}; try --batch_size "
                f"{max(1, config.batch_size // 2)}"
            ) from error
        return with_drawing(found, sampler)

    def published(self, found: "Evaluation") -> dict[str, dict[str, float]]:
        """Published figures of the same model, by source."""
        from varlit.training.var_evaluation import published_of

        config, px = self.loaded.var.config, self.loaded.tokenizer.config.image_size
        classes = self.loaded.var.num_classes
        if config.order == "raster":
            return {}
        return published_of(config.depth, config.resolved_width, px, classes, found)


def open_bench(args: argparse.Namespace, config: "EvaluationConfig", folder: Path) -> Bench:
    """Open and check everything, before anything is drawn.

    Raises:
        UserError: If something is missing, or does not fit.
    """
    import torch

    from varlit.generation.requests import check_fits
    from varlit.models.files import load_var
    from varlit.training import var_evaluation
    from varlit.training.evaluation_references import open_references

    loaded = load_var(folder)
    device = torch.device(pick_device(args.device))
    check_fits(loaded.tokenizer, loaded.var)
    weights = var_evaluation.weight_hashes(loaded.var, loaded.tokenizer)
    cache = _cache_of(folder)
    network = var_evaluation.open_network(config, cache, "--reference")
    names, num_classes = loaded.class_names, loaded.var.num_classes
    rejection = var_evaluation.open_rejection(config, num_classes, names)
    var_evaluation.tell_free_classes(rejection, names, num_classes)
    _tell_other_gpus(device, args.run)
    px = loaded.tokenizer.config.image_size
    references = open_references(config, network, px, device, cache)
    loaded.var.to(device)
    loaded.tokenizer.to(device)
    is_bf16 = takes_bf16(args.precision, str(device))
    return Bench(loaded, device, is_bf16, weights, network, references, rejection)


def _tell_other_gpus(device: "torch.device", run: str) -> None:
    """Say that this verb leaves GPUs idle, and which one does not."""
    import torch

    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if count > 1:
        print(
            f"varlit: draws on one of {count} GPUs; all of them draw the same set by: "
            f"make eval-fid NAME={run} GPUS={count}",
            flush=True,
        )


def checked_out(path: Path) -> Path:
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


def _cache_of(folder: Path) -> Path | None:
    """The token cache that a run was trained on, where its settings tell and it is there."""
    from varlit.cli.config.recipes import read_yaml
    from varlit.data.tokens.module import find_cache

    if not (folder / "fit.yaml").is_file():
        return None
    tokens = read_yaml(folder / "fit.yaml").get("data", {}).get("tokens", "")
    try:
        return find_cache(tokens)
    except UserError:
        return None
