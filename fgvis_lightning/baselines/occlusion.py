"""Occlusion (Zeiler and Fergus, ECCV 2014, section 4.2): how much a gray square lowers the score."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import ceil

import torch
from captum.attr import Occlusion as SlidingWindow
from torch import Tensor, nn

from fgvis_lightning.baselines.base import Method, require, scores, steps
from fgvis_lightning.errors import InputError


@dataclass(frozen=True)
class Occlusion(Method):
    """Mean drop of the target's softmax probability over all positions of a gray square that cover the pixel.

    Zeiler and Fergus do not specify the sizes; window and stride are those that RISE's authors compare with (Petsiuk,
    Das and Saenko, BMVC 2018). Gray is zero in normalized space, the data set's mean color, in all channels at once.
    Both sizes are in pixels at size 224, and scaled to the shorter side of other images. If the stride does not end
    exactly at the right or bottom border, a last window extends beyond the image and occludes the remaining part. At
    224x224, this takes 442 passes for one image.

    Args:
        window: side of the square, 1 to 224.
        stride: distance between two positions, at most the window.
        batch_size: occluded images in one network pass, all of the same image.
    """

    black_box = True

    window: float = 64
    stride: float = 8
    batch_size: int = 64

    def __post_init__(self) -> None:
        require(self, 1, "window", "stride", "batch_size")
        for name, most, why in (("window", 224, "the image"), ("stride", self.window, "the window")):
            if getattr(self, name) > most:
                raise InputError(
                    f"Expected {name} to be at most {most} ({why}), but got {getattr(self, name)}. Use a smaller value."
                )

    @property
    def cheap(self) -> bool:
        """Whether the stride is larger than that of RISE's authors."""
        return self.stride > 8

    def __call__(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        sides = images.shape[-2:]
        window, stride = (max(1, round(size * min(sides) / 224)) for size in (self.window, self.stride))
        positions = (ceil((sides[0] - window) / stride) + 1) * (ceil((sides[1] - window) / stride) + 1)
        with steps(len(images) * (1 + ceil(positions / self.batch_size)), type(self).__name__) as advance:
            maps = [
                SlidingWindow(partial(scores, network, advance=advance)).attribute(
                    image,
                    sliding_window_shapes=(images.shape[1], window, window),
                    strides=(images.shape[1], stride, stride),
                    additional_forward_args=(target,),
                    perturbations_per_eval=self.batch_size,
                )
                for image, target in zip(images.split(1), targets.split(1), strict=True)
            ]
        return torch.cat(maps)[:, 0].float()  # all channels are equal


@dataclass(frozen=True)
class CheapOcclusion(Occlusion):
    """`Occlusion` with twice the stride and a quarter of the passes; the map has half the resolution.

    The window is the same. At 224x224, this takes 122 passes for one image.
    """

    stride: float = 16
