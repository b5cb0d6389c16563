"""Further class activation maps, computed by pytorch-grad-cam."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from fgvis_lightning.baselines.base import Method, steps
from fgvis_lightning.baselines.grad_cam import cam_layer
from fgvis_lightning.baselines.propagation import differentiable
from fgvis_lightning.errors import InputError


@dataclass(frozen=True)
class CAM(Method):
    """``ReLU(Σ_k w_k A_k)`` of the feature maps A_k of one layer, upsampled, and scaled to [0,1].

    Args:
        layer: name of the module whose output contains the feature maps; default: as in `GradCAM`.

    Attributes:
        library: name of the method's class in pytorch-grad-cam, which gives the weights w_k.
    """

    library = "GradCAM"
    layer: str | None = None

    def __call__(self, network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        try:
            import pytorch_grad_cam
            from pytorch_grad_cam.activations_and_gradients import ActivationsAndGradients
            from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
        except ImportError as error:
            raise InputError(
                f"Expected pytorch-grad-cam for {type(self).__name__}, but it cannot be imported ({error}). Run pip "
                f'install "fgvis-lightning[baselines]".'
            ) from error
        layer = cam_layer(network, self.layer, images[:1])
        maps = []

        class LastCall(ActivationsAndGradients):
            """Keeps the maps of the module's last call, as Captum's Grad-CAM; the library keeps those of the first."""

            hook: Any = None

            def save_activation(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
                self.activations = [output.detach().float().cpu()]

            def save_gradient(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
                if self.hook is not None:
                    self.hook.remove()
                if output.requires_grad:
                    self.hook = output.register_hook(lambda slope: self.gradients.append(slope.float().cpu()))

        # ScoreCAM of the library draws a bar of its own for each image, amid other lines.
        silent = patch.object(pytorch_grad_cam.score_cam, "tqdm", SimpleNamespace(tqdm=iter))
        with differentiable(network, images), steps(len(images), type(self).__name__) as advance, silent:
            made: Any = getattr(pytorch_grad_cam, self.library)(_WithParameter(network, images), [layer])
            made.activations_and_grads.release()
            made.activations_and_grads = LastCall(made.model, [layer], None)
            try:
                for image, target in zip(images.split(1), targets.tolist(), strict=True):
                    found = made(image.clone().requires_grad_(), [ClassifierOutputTarget(target)])
                    maps.append(torch.from_numpy(found).to(images.device))
                    advance()
            finally:
                made.activations_and_grads.release()
        return torch.cat(maps).float()


class _WithParameter(nn.Module):
    """A network with a parameter on its device, which pytorch-grad-cam needs; a frozen network has none."""

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.network = network
        self.place = nn.Parameter(images.new_empty(0), requires_grad=False)

    def forward(self, images: Tensor) -> Any:
        return self.network(images.to(self.place.dtype))  # ScoreCAM masks them in float32

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Leave the caller's gradients as they are."""


class GradCAMPlusPlus(CAM):
    """Weights from higher derivatives (Chattopadhay et al., WACV 2018, section 3, eq. 12 to 19): `CAM`."""

    library = "GradCAMPlusPlus"


class LayerCAM(CAM):
    """Weights for each position, the positive gradient (Jiang et al., IEEE TIP 2021, eq. 5 and 6): `CAM`."""

    library = "LayerCAM"


class ScoreCAM(CAM):
    """Weights from the scores of images masked by each map (Wang et al., CVPR workshops 2020, eq. 6): `CAM`.

    As in pytorch-grad-cam, the weights are a softmax of the target's logits over the maps, as in the paper's algorithm
    1; the authors' code takes probabilities without a softmax. It takes a pass for each feature map; an
    EfficientNet-Lite0 has 1280 feature maps.
    """

    library = "ScoreCAM"
