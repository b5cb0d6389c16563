"""Attribution methods with one signature, see `fgvis_lightning.baselines.base.Method`.

Defaults are the papers' values. Slow methods have faster presets named ``Cheap…``.
"""

from fgvis_lightning.baselines.base import MaskMethod, Method
from fgvis_lightning.baselines.cam import GradCAMPlusPlus, LayerCAM, ScoreCAM
from fgvis_lightning.baselines.captum import Captum, FGVisAttribution
from fgvis_lightning.baselines.controls import Edges, OtherClass, Random
from fgvis_lightning.baselines.deep_lift import DeepLIFT
from fgvis_lightning.baselines.excitation_backprop import ExcitationBackprop
from fgvis_lightning.baselines.extremal_perturbation import CheapExtremalPerturbation, ExtremalPerturbation
from fgvis_lightning.baselines.fgvis import FGVisMethod
from fgvis_lightning.baselines.grad_cam import GradCAM
from fgvis_lightning.baselines.gradient import Gradient
from fgvis_lightning.baselines.gradients import (
    GradientSHAP,
    GradientXInput,
    GuidedGradCAM,
    IntegratedGradients,
    SmoothGrad,
)
from fgvis_lightning.baselines.guided_backprop import GuidedBackprop
from fgvis_lightning.baselines.igos import CheapIGOSPlusPlus, IGOSPlusPlus
from fgvis_lightning.baselines.lime import LIME, CheapLIME
from fgvis_lightning.baselines.lrp import LRP
from fgvis_lightning.baselines.masked_gradient import MaskedGradient
from fgvis_lightning.baselines.meaningful_perturbation import CheapMeaningfulPerturbation, MeaningfulPerturbation
from fgvis_lightning.baselines.occlusion import CheapOcclusion, Occlusion
from fgvis_lightning.baselines.rise import RISE, CheapRISE
from fgvis_lightning.baselines.wavelet_masks import CartoonX, CheapCartoonX, CheapWaveletX, WaveletX

__all__ = [
    "LIME",
    "LRP",
    "RISE",
    "Captum",
    "CartoonX",
    "CheapCartoonX",
    "CheapExtremalPerturbation",
    "CheapIGOSPlusPlus",
    "CheapLIME",
    "CheapMeaningfulPerturbation",
    "CheapOcclusion",
    "CheapRISE",
    "CheapWaveletX",
    "DeepLIFT",
    "Edges",
    "ExcitationBackprop",
    "ExtremalPerturbation",
    "FGVisAttribution",
    "FGVisMethod",
    "GradCAM",
    "GradCAMPlusPlus",
    "Gradient",
    "GradientSHAP",
    "GradientXInput",
    "GuidedBackprop",
    "GuidedGradCAM",
    "IGOSPlusPlus",
    "IntegratedGradients",
    "LayerCAM",
    "MaskMethod",
    "MaskedGradient",
    "MeaningfulPerturbation",
    "Method",
    "Occlusion",
    "OtherClass",
    "Random",
    "ScoreCAM",
    "SmoothGrad",
    "WaveletX",
]
