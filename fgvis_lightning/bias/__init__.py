"""Does a network's decision hang on color, or on something else that it should not?

A bias analysis is a `Pair`: a `Statistic` of explanations, which says what the evidence is made of, and objects of
`Intervention`, which change just that in images. `Color` is the pair of Wagner et al., CVPR 2019 (`Bands`
and `Tone` stand for it where a network takes other channels), `Position` another.
One of your own is a class with `Pair` as its base, given by ``class_path``. ``python train.py bias`` runs them.
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
