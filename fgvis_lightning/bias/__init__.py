"""Tests whether a network's decision depends on color, or on another feature that it should not use.

A bias analysis is a `Pair`: a `Statistic` of explanations, which measures a feature of the evidence, and `Intervention`
objects, which change this feature in images. `Color` is the pair of Wagner et al., CVPR 2019 (replaced by `Bands` or
`Tone` for networks with other channels); `Position` is another. To add your own pair, subclass `Pair` and set its
``class_path``. ``python train.py bias`` runs pairs.
"""

from fgvis_lightning.bias.bands import (
    Bands,
    BandStatistic,
    Gamma,
    Inversion,
    MeanOfBands,
    Rotation,
    Tone,
    ToneStatistic,
)
from fgvis_lightning.bias.base import ChannelStatistic, Intervention, Pair, Statistic, imbalance, shares
from fgvis_lightning.bias.color import ChannelSwap, Color, ColorStatistic, Desaturation, HueRotation
from fgvis_lightning.bias.position import Mirror, Position, PositionStatistic

__all__ = [
    "BandStatistic",
    "Bands",
    "ChannelStatistic",
    "ChannelSwap",
    "Color",
    "ColorStatistic",
    "Desaturation",
    "Gamma",
    "HueRotation",
    "Intervention",
    "Inversion",
    "MeanOfBands",
    "Mirror",
    "Pair",
    "Position",
    "PositionStatistic",
    "Rotation",
    "Statistic",
    "Tone",
    "ToneStatistic",
    "imbalance",
    "shares",
]
