"""See the evidence behind a CNN's decision, pixel by pixel and color channel by color channel.

FGVis (Wagner et al., CVPR 2019) on PyTorch Lightning. Folders and modules in the order of their imports::

    errors       the error for user mistakes
    names        names in file names and messages
    texts        text files in the encodings of editors and spreadsheets
    method       the method in plain torch: games, gate rules, levels, solvers
    networks     a frozen classifier with its preprocessing and class names
    defense      DefendedCNN: the classifier with gates behind its nonlinearities
    results      explanations in memory and on disk, the results folder, tables, figures
    data         image files → items (image, target class) → the places of a batch
    engine       the LightningModule base of all sweeps, the strategy, batch size, signals
    explainer    FGVis, a LightningModule whose only parameter is the mask
    api          explain(), the same for tensors in memory
    callbacks    files and panels, TensorBoard, progress; explanations during training
    baselines    other methods, with a common signature
    metrics      quality of maps and masks
    bias         statistics of explanations and interventions on images
    experiments  the commands compare, evaluate, pointing, bias, adversarial, sanity and predict
    report       the commands report and benchmark: results → an HTML page
    cli          the command line

The public names below are imported on first use, so that code without torch does not wait for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fgvis_lightning.api import explain
    from fgvis_lightning.baselines.captum import FGVisAttribution
    from fgvis_lightning.callbacks.training import ExplainCallback
    from fgvis_lightning.data.explained import load_explanation, load_explanations, with_image
    from fgvis_lightning.defense.container import DefendedCNN
    from fgvis_lightning.errors import InputError
    from fgvis_lightning.explainer import FGVis
    from fgvis_lightning.results.explanation import Explanation
    from fgvis_lightning.results.notebook import draw

__version__ = "0.1.0.dev0"

__all__ = [
    "DefendedCNN",
    "ExplainCallback",
    "Explanation",
    "FGVis",
    "FGVisAttribution",
    "InputError",
    "draw",
    "explain",
    "load_explanation",
    "load_explanations",
    "with_image",
]

_MODULES = {
    "DefendedCNN": "defense.container",
    "ExplainCallback": "callbacks.training",
    "Explanation": "results.explanation",
    "FGVis": "explainer",
    "FGVisAttribution": "baselines.captum",
    "InputError": "errors",
    "draw": "results.notebook",
    "explain": "api",
    "load_explanation": "data.explained",
    "load_explanations": "data.explained",
    "with_image": "data.explained",
}


def __getattr__(name: str) -> Any:
    """Import a public name (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
