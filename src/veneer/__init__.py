"""Fine-tune, calibrate and serve text classifiers as thin LoRA layers over one frozen base model."""

from importlib.metadata import version

__all__ = ["__version__"]

__version__ = version("veneer")
