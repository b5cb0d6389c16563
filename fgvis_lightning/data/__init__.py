"""Image files, items, and batches."""

from fgvis_lightning.data.batches import Batch, Sweep, SweepData
from fgvis_lightning.data.image_data import ImageData

__all__ = ["Batch", "ImageData", "Sweep", "SweepData"]
