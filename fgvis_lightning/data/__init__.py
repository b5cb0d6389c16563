"""From image files to items, and from items to the places of a batch."""

from fgvis_lightning.data.image_data import Batch, ImageData, Sweep

__all__ = ["Batch", "ImageData", "Sweep"]
