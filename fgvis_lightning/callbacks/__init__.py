"""Callbacks of a sweep: files and panels, TensorBoard images, progress lines."""

from fgvis_lightning.callbacks.progress import SweepProgress
from fgvis_lightning.callbacks.tensorboard import TensorBoardImages
from fgvis_lightning.callbacks.writer import ExplanationWriter

__all__ = ["ExplanationWriter", "SweepProgress", "TensorBoardImages"]
