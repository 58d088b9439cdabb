"""`varlit doctor`: the pretrained networks that measures and losses need."""

import os
from collections.abc import Iterator
from pathlib import Path

from varlit.cli.doctor.findings import Finding


def check_weights() -> Iterator[Finding]:
    """Look for the pretrained networks that measures and losses need; download nothing."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = Path(os.environ.get("TORCH_HOME", f"{cache}/torch")).expanduser()
    hub = home / "hub" / "checkpoints"
    wanted = (
        ("inception", "VARLIT_INCEPTION", "weights-inception-2015-12-05-6726825d.pth", "FID"),
        ("vgg16", "VARLIT_LPIPS_VGG", "vgg16-397923af.pth", "LPIPS; or perceptual_weight 0"),
    )
    for subject, variable, name, use in wanted:
        given = os.environ.get(variable)
        path = Path(given).expanduser() if given else hub / name
        if path.is_file():
            yield "ok", subject, str(path)
        elif given:
            yield "fix", subject, f"${variable} names {path}, which is no file"
        else:
            yield (
                "warn",
                subject,
                f"not at {path}: downloaded at first use, or set ${variable} ({use})",
            )
