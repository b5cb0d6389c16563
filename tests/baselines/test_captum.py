"""Captum's interface: what evaluates its classes evaluates FGVis, and they are methods beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients
from captum.metrics import infidelity, sensitivity_max
from PIL import Image
from torch import Tensor
from toy_networks import Tiny

from fgvis_lightning import FGVisAttribution, InputError, explain
from fgvis_lightning.baselines import Captum
from fgvis_lightning.cli import main

quantus: Any = pytest.importorskip("quantus")
X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
SHORT: dict[str, Any] = {"iterations": 4, "seeds": 1}


def test_attributions_are_the_evidence() -> None:
    network = Tiny().eval()
    x = X.clone().requires_grad_()
    found = FGVisAttribution(network, **SHORT).attribute(x, target=torch.tensor([1, 2]))
    images = torch.sigmoid(X)  # any in [0,1]; the mask depends on what the network gets
    assert found.shape == images.shape
    assert x.grad is None
    assert 0 <= found.min() <= found.max() <= 1
    same = explain(network, (X - X.min()) / (X.max() - X.min()), [1, 2], normalize=_undo(), **SHORT)
    assert torch.allclose(found, same.evidence, atol=1e-3)
    predicted = network(X).argmax(1)
    one = FGVisAttribution(network).attribute(X[:1], target=int(predicted[0]), **SHORT)
    assert torch.equal(one, FGVisAttribution(network).attribute(X[:1], **SHORT))


def _undo() -> tuple[list[float], list[float]]:
    """A normalization that makes X of X in [0,1]."""
    low, high = float(X.min()), float(X.max())
    return [-low / (high - low)] * 3, [1 / (high - low)] * 3


def test_captums_metrics_run_on_it() -> None:
    network, attribution = Tiny().eval(), FGVisAttribution(Tiny().eval(), **SHORT)
    found = attribution.attribute(X, target=1)

    def disturb(x: Tensor) -> tuple[Tensor, Tensor]:
        noise = 0.1 * torch.randn_like(x)
        return noise, x - noise

    assert infidelity(network, disturb, X, found, target=1).isfinite().all()
    assert sensitivity_max(attribution.attribute, X, target=1, n_perturb_samples=2).isfinite().all()


@pytest.mark.filterwarnings("ignore")
def test_quantus_metrics_run_on_it() -> None:
    network = Tiny().eval()
    y = network(X).argmax(1)
    a = FGVisAttribution(network, iterations=30, seeds=1).attribute(X, target=y).sum(1, keepdim=True).numpy()
    where = np.zeros((2, 1, 16, 16), dtype=bool)
    where[..., :8] = True
    inputs = {"model": network, "x_batch": X.numpy(), "y_batch": y.numpy(), "device": "cpu"}

    def explained(model: Any, inputs: Any, targets: Any, **_: Any) -> Any:
        x = torch.as_tensor(inputs).float()
        return (
            FGVisAttribution(model, **SHORT).attribute(x, target=torch.as_tensor(targets)).sum(1, keepdim=True).numpy()
        )

    quiet = {"display_progressbar": False, "disable_warnings": True}
    for metric in (  # faithfulness, complexity, localization
        quantus.FaithfulnessCorrelation(nr_runs=20, subset_size=64, return_aggregate=False, **quiet),
        quantus.Sparseness(**quiet),
        quantus.AttributionLocalisation(**quiet),
    ):
        values = metric(**inputs, a_batch=a, s_batch=where)
        assert len(values) == 2, type(metric).__name__
        assert np.isfinite(values).all(), type(metric).__name__
    randomized = quantus.MPRT(**quiet)(**inputs, a_batch=a, explain_func=explained)  # randomization
    assert randomized


def test_what_cannot_be() -> None:
    with pytest.raises(InputError, match=r"forward_func to be an nn\.Module, but got builtin_function"):
        FGVisAttribution(len)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="Expected inputs to be one tensor"):
        FGVisAttribution(Tiny().eval()).attribute(X[0], target=1)
    with pytest.raises(InputError, match="go into the network as they are, but got mean and std"):
        FGVisAttribution(Tiny().eval(), mean=(0.0,) * 3, std=(1.0,) * 3).attribute(X, target=1)
    with pytest.raises(InputError, match=r"class_path of one of Captum's classes.*but got 'os\.system'"):
        Captum("os.system")
    with pytest.raises(InputError, match=r"Expected captum\.attr\.Saliency to attribute with .*, but it raised"):
        Captum("captum.attr.Saliency", arguments={"nonsense": 1})(Tiny().eval(), X, torch.tensor([0, 1]))


@pytest.mark.parametrize(
    "method",
    [
        Captum("captum.attr.IntegratedGradients", arguments={"n_steps": 8}),
        Captum("captum.attr.GradientShap", arguments={"baselines": torch.zeros(4, 3, 16, 16), "n_samples": 3}),
        Captum("captum.attr.LayerGradCam", layer="features.3"),
        Captum("captum.attr.Saliency", arguments={"abs": False}),
    ],
)
def test_captums_classes_are_methods(method: Captum) -> None:
    network, targets = Tiny().eval(), torch.tensor([1, 2])
    both = method(network, X, targets)
    assert both.shape == (2, 16, 16)
    assert torch.allclose(both[1:], method(network, X[1:], targets[1:])), "an image's map is its own"
    if method.attribution.endswith("IntegratedGradients"):
        own = IntegratedGradients(network).attribute(X, target=targets, n_steps=8).sum(1)
        assert torch.allclose(both, own.float(), atol=1e-5)


def test_one_in_a_comparison(tmp_path: Path) -> None:
    Image.effect_noise((20, 20), 90).convert("RGB").save(tmp_path / "a.png")
    methods = "{IG: {class_path: fgvis_lightning.baselines.Captum, init_args: {attribution: "
    methods += "captum.attr.IntegratedGradients, arguments: {n_steps: 4}}}}"
    given = ["--model.network", "toy_networks.Tiny", "--model.classifier.size", "[16, 16]", "--methods", methods]
    given += [
        "--data.images",
        str(tmp_path / "a.png"),
        "--output",
        str(tmp_path / "out"),
        "--trainer.accelerator",
        "cpu",
    ]
    main(["compare", *given])
    assert len(list((tmp_path / "out" / "IG" / "explanations").iterdir())) == 1


@pytest.mark.parametrize("target", [[1, 2, 3], "cat", 1.5, [None, 1], -1, True])
def test_targets_that_are_no_classes(target: Any) -> None:
    with pytest.raises(InputError, match=r"Expected (2 targets|class indices|the index of a class)"):
        FGVisAttribution(Tiny().eval(), **SHORT).attribute(X[:2], target=target)


def test_a_name_is_a_target_and_two_targets_need_two_inputs() -> None:
    named = FGVisAttribution(Tiny().eval(), **SHORT, classes=list("abcde"))
    assert torch.equal(named.attribute(X[:2], target="c"), named.attribute(X[:2], target=torch.tensor([2, 2])))
    with pytest.raises(InputError, match="Expected one target for each image, but got 2 for 1"):
        named.attribute(X[:1], target=[1, 2])
