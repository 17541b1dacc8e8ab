"""Training: from a configuration to a verified run folder."""

from veneer.training.prepare import columns_of
from veneer.training.run import TrainingResult, free_folder, train

__all__ = ["TrainingResult", "columns_of", "free_folder", "train"]
