"""`varlit reconstruct RUN IMAGE...`: images beside their reconstructions, and growing."""

from pathlib import Path

from varlit.cli.arguments import VerbParser, check_writable, pick_device
from varlit.cli.photos import read_square


def build_parser() -> VerbParser:
    """The flags of `varlit reconstruct`."""
    parser = VerbParser("reconstruct", "Encode images to tokens and back, and show the pyramid.")
    add = parser.add_argument
    add("run", help="name of a tokenizer or VAR run, or its folder")
    add("images", nargs="+", type=Path, help="image files; the centre is cropped to the size")
    add("--out", type=Path, default=Path("reconstruction.png"), help="the picture")
    add("--root", default="runs", help="where runs live")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    return parser


def main(argv: list[str]) -> int:
    """Reconstruct and write the picture.

    Args:
        argv: What follows `varlit reconstruct`.
    """
    args = build_parser().parse_args(argv)
    check_writable(args.out)
    import torch

    from varlit.checkpoints.pretrained import PretrainedVAR, load
    from varlit.metrics.reconstruction import psnr, ssim
    from varlit.viz.grids import save_png, side_by_side
    from varlit.viz.poster import Section, poster
    from varlit.viz.pyramids import growing_strip

    loaded = load(args.run, args.root)
    tokenizer = loaded.tokenizer if isinstance(loaded, PretrainedVAR) else loaded
    tokenizer = tokenizer.to(pick_device(args.device))
    size = tokenizer.config.image_size
    images = torch.stack([read_square(path, size) for path in args.images])
    images = images.to(tokenizer.last_layer.device)
    tokens = tokenizer.encode(images)
    num_scales = tokenizer.scales.num_scales
    frames = [tokenizer.decode_prefix(tokens, k + 1) for k in range(num_scales)]
    quality = psnr(images, frames[-1])
    similarity = ssim(images, frames[-1])
    labels = [f"{value:.1f} dB" for value in quality.tolist()]
    pair = side_by_side(images, frames[-1], labels=labels, margin_px=0)
    growing = growing_strip(frames, tokenizer.scales.names, originals=images, margin_px=0)
    sections = [Section("There and back", pair), Section("Growing over the scales", growing)]
    save_png(poster(sections), args.out)
    for path, db, s in zip(args.images, quality.tolist(), similarity.tolist(), strict=True):
        print(f"{path.name}: PSNR {db:.2f} dB, SSIM {s:.3f}, {tokens.shape[1]} tokens")
    print(f"picture: {args.out}")
    return 0
