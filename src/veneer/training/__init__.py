"""Training: from a configuration to a verified run folder."""

from veneer.training.finish import TrainingResult
from veneer.training.joint_run import train_tasks
from veneer.training.prepare import columns_of
from veneer.training.run import free_folder, train

__all__ = ["TrainingResult", "columns_of", "free_folder", "train", "train_tasks"]
