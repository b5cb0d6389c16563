"""Callbacks: files and panels, TensorBoard images and progress lines of a sweep; explanations during training."""

from fgvis_lightning.callbacks.progress import SweepProgress
from fgvis_lightning.callbacks.tensorboard import TensorBoardImages
from fgvis_lightning.callbacks.training import ExplainCallback
from fgvis_lightning.callbacks.writer import ExplanationWriter

__all__ = ["ExplainCallback", "ExplanationWriter", "SweepProgress", "TensorBoardImages"]
