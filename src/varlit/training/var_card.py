"""What the start card of stage 2 says was derived from what."""

from varlit.models.config import VARConfig
from varlit.ops.costs import ASSUMED_SHARE, card_peak_tflops
from varlit.training.optim import IMAGES_PER_LR, OptimConfig


def derived_lines(config: VARConfig, optim: OptimConfig, batch: int, steps: int) -> dict[str, str]:
    """The shape that follows from depth, and the rate that follows from the batch."""
    rate = optim.lr * batch / IMAGES_PER_LR
    end = "" if optim.schedule == "constant" else f" to {rate * optim.final_lr:.3g}"
    decay = f"{optim.weight_decay:g}"
    if optim.weight_decay_end >= 0:
        decay += f" to {optim.weight_decay_end:g}"
    return {
        "shape": f"depth {config.depth} -> width {config.resolved_width}, "
        f"{config.resolved_heads} heads, drop path {config.resolved_drop_path:.3g}"
        f"{', raster scan' if config.order == 'raster' else ''}",
        "rate": f"peak {rate:.3g} = {optim.lr:.3g} x {batch} / {IMAGES_PER_LR}, warm-up "
        f"{round(optim.warmup * steps):,} steps, then {optim.schedule}{end}; weight decay {decay}",
    }


def compute_line(flops_per_image: float, num_images: int, card: str, num_devices: int) -> str:
    """Operations, and the hours they take on a card whose rate is known.

    Args:
        flops_per_image: To train on an image.
        num_images: In all steps together.
        card: Name of the GPU; empty on a CPU.
        num_devices: Cards that share the work.
    """
    line = f"{flops_per_image / 1e9:,.3g} GFLOPs to train on an image"
    if flops_per_image >= 1e12:
        line = f"{flops_per_image / 1e12:,.3g} TFLOPs to train on an image"
    rate = 1e12 * card_peak_tflops(card) * num_devices * ASSUMED_SHARE
    if not rate:
        return line
    hours = flops_per_image * num_images / rate / 3600
    return f"{line}; {hours:,.3g} h at {ASSUMED_SHARE:.0%} of the data sheet (assumed)"
