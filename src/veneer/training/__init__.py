"""Training: from a configuration to a verified run folder."""

from veneer.training.loop import Interrupted
from veneer.training.prepare import columns_of
from veneer.training.run import TrainingResult, train

__all__ = ["Interrupted", "TrainingResult", "columns_of", "train"]
