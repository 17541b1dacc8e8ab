"""Fine-tune, calibrate and judge text classifiers as thin LoRA layers over one frozen base model.

The names are imported when they are first used: `import veneer` alone loads no torch.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from veneer.errors import VeneerError

if TYPE_CHECKING:
    from veneer.predictor import Prediction, Predictor, load
    from veneer.training.keywords import train

__all__ = ["Prediction", "Predictor", "VeneerError", "__version__", "load", "train"]

__version__ = version("veneer")

_LAZY = {
    "Prediction": "veneer.predictor",
    "Predictor": "veneer.predictor",
    "load": "veneer.predictor",
    "train": "veneer.training.keywords",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'veneer' has no attribute '{name}'")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
