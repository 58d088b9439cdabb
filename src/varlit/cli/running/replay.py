"""`varlit replay FILE`: a step that was skipped for NaN or Inf once more, and where it begins."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from varlit.cli.arguments import VerbParser, pick_device
from varlit.errors import UserError

if TYPE_CHECKING:
    from varlit.callbacks.replay import Replay
    from varlit.training.stage import StageModule


def build_parser() -> VerbParser:
    """The flags of `varlit replay`."""
    parser = VerbParser(
        "replay",
        "Train the one step that a bad-step-*.pt of a run holds, on its images and with its draws, "
        "and say where NaN or Inf begins. Nothing is written.",
    )
    add = parser.add_argument
    add("file", help="bad-step-*.pt in the folder of a run")
    add("--ckpt_path", default="", help="weights to take; the run's newest whole ones without it")
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--precision", default="", help="32-true or bf16-mixed; as in the run without it")
    return parser


def main(argv: list[str]) -> int:
    """Replay a step and print what is found.

    Args:
        argv: What follows `varlit replay`.
    """
    args = build_parser().parse_args(argv)
    from varlit.callbacks.bad_steps import read_bad_step
    from varlit.training.checkpoint_files import newest_whole, read_checkpoint

    file = Path(args.file)
    content = read_bad_step(file)
    path = (
        Path(args.ckpt_path) if args.ckpt_path else newest_whole(file.parent / "checkpoints").path
    )
    if path is None or not path.is_file():
        where = path or file.parent / "checkpoints"
        raise UserError(f"{where}: no checkpoint to take the weights from; name one by --ckpt_path")
    step = int(read_checkpoint(path)["global_step"])
    precision = args.precision or content["precision"]
    print(f"step {content['step']:,} of {file} with the weights of step {step:,} in {precision}")
    print(_told(_replayed(content, path, pick_device(args.device), precision), content["step"]))
    return 0


def _replayed(content: dict[str, Any], path: Path, device: str, precision: Any) -> Replay:
    from lightning.pytorch import Trainer
    from torch.utils.data import DataLoader

    from varlit.callbacks.replay import Replay
    from varlit.cli.running.quiet import quieten

    quieten()
    parts = content["parts"]
    replay = Replay(content["step"], [part["seed"] for part in parts])
    trainer = Trainer(
        accelerator="gpu" if device.startswith("cuda") else device,
        devices=1,
        precision=precision,
        max_epochs=-1,
        max_steps=content["total_steps"],  # schedules read it; it ends after one step
        accumulate_grad_batches=len(parts),
        callbacks=[replay],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batches: Any = [part["batch"] for part in parts]
        trainer.fit(_module(content["module"], path), DataLoader(batches, batch_size=None))
    return replay


def _module(name: str, path: Path) -> StageModule:
    """The module of either stage with the weights of a checkpoint."""
    from varlit.training.tokenizer import TokenizerModule
    from varlit.training.var import VARModule

    known = {kind.__name__: kind for kind in (TokenizerModule, VARModule)}
    if name not in known:
        raise UserError(f"the step is of a module `{name}`; known: {', '.join(known)}")
    kind: Any = known[name]
    module: StageModule = kind.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    return module


def _told(replay: Replay, step: int) -> str:
    """What was found, a line each."""
    reading = replay.reading
    assert reading is not None
    if not reading.was_skipped:
        return (
            f"all numbers are finite: loss {reading.loss:.4g}, gradient norm "
            f"{reading.gradient_norm:.4g}. So its images were not at fault, but the weights of "
            f"step {step:,}, if these are older: take a lower --model.optim.lr, or a longer "
            "--model.optim.warmup; or its precision or device, if these are others here"
        )
    lines = []
    if replay.broken_module:
        cause = "its weights are broken" if replay.has_broken_weights else "its weights are finite"
        lines.append(f"first NaN or Inf: {replay.broken_module} ({cause})")
    for what, names in (("losses", replay.broken_terms), ("gradients", replay.broken_gradients)):
        if names:
            shown = f"{', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"
            lines.append(f"{what} with NaN or Inf: {len(names)}: {shown}")
    return "\n".join(lines)
