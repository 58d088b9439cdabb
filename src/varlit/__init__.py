"""varlit: visual autoregressive modeling in PyTorch Lightning, from images to pictures.

`import varlit` costs nothing; the names below bring torch in when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from varlit.checkpoints.pretrained import PretrainedVAR as PretrainedVAR
    from varlit.checkpoints.pretrained import PretrainedVQVAE as PretrainedVQVAE
    from varlit.checkpoints.pretrained import load as load
    from varlit.models.var import VAR as VAR
    from varlit.models.vqvae import VQVAE as VQVAE

__version__ = "0.1.0"
__all__ = ["VAR", "VQVAE", "PretrainedVAR", "PretrainedVQVAE", "__version__", "load"]

_HOMES = {
    "VAR": "varlit.models.var",
    "VQVAE": "varlit.models.vqvae",
    "PretrainedVAR": "varlit.checkpoints.pretrained",
    "PretrainedVQVAE": "varlit.checkpoints.pretrained",
    "load": "varlit.checkpoints.pretrained",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'varlit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
