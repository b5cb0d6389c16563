"""Folding of batch normalization into the preceding two-dimensional convolution, as in inference engines.

In eval mode, batch normalization multiplies each channel by a constant and adds another. The convolution can do the
same: ``w' = w s``, ``b' = (b - mean) s + beta`` with ``s = gamma / sqrt(var + eps)`` (computed in float64). The
function stays the same up to rounding, and a pass that only reads and writes memory is saved. h(x) and h(e) come from
the same folded network, so the gates stay consistent.

The pairs are not derived from the code but observed: one pass on an image shows which batch normalization takes a
convolution's output, and whether another operation takes it as well.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fgvis_lightning.networks.classifier import Classifier
from fgvis_lightning.networks.outputs import tensors_in

CLOSE = 1e-3  # largest difference of logits attributed to rounding, relative to the largest logit


def folded(network: nn.Module, size: tuple[int, ...], keep: tuple[type, ...] = ()) -> tuple[nn.Module, int]:
    """A copy of a network with its batch normalization folded.

    Args:
        network: a network of images (B,C,H,W), frozen by `fgvis_lightning.networks.classifier.freeze`.
        size: C, H and W of a valid image.
        keep: classes of modules that are not folded.

    Returns:
        The copy, which shares all other weights, and the number of folded batch normalizations; the network itself and
        0 if folding is impossible, e.g. because the network cannot run on such an image, or because its logits change.
    """
    image = torch.rand(1, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    weight = next((tensor for tensor in network.buffers() if tensor.is_floating_point()), None)
    if weight is None:
        return network, 0
    image = image.to(weight)
    watch = _Watch()
    try:
        with torch.no_grad():
            with watch:
                before = list(tensors_in(network(image)))
            made = copy.deepcopy(network, {id(tensor): tensor for tensor in network.buffers()})
            pairs = _pairs(network, watch, keep)
            for conv, norm in pairs:
                _fold(made, conv, norm)
            after = list(tensors_in(made(image)))
    except Exception:  # if the network itself fails, the first batch of real images raises an error
        return network, 0
    same = all((a - b).abs().max() <= CLOSE * b.abs().max() for a, b in zip(after, before, strict=True))
    return (made, len(pairs)) if pairs and before and same else (network, 0)  # NaN is not the same


DESCRIPTIONS = (bool, int, torch.Size, torch.dtype, torch.device, torch.layout)
"""Type of the result of calls that do not look at values, such as ``x.dim()``."""


def faster(classifier: Classifier, network: nn.Module | None = None, keep: tuple[type, ...] = ()) -> nn.Module:
    """A classifier's network, or a part of it, `folded` for images of its own size; made once."""
    network = classifier.network if network is None else network
    if (network, keep) not in classifier.folded:
        size = classifier.preprocessing.count, *classifier.preprocessing.size
        classifier.folded[network, keep] = folded(network, size, keep)[0]
    return classifier.folded[network, keep]


class _Watch(TorchFunctionMode):
    """Notes which weights make which tensors, and all that is done with these."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[int, Tensor]] = {}  # output → weight of its convolution; keeps ids valid
        self.used: Counter[int] = Counter()  # output → number of calls that take it
        self.normalized: dict[int, int] = {}  # output → running mean of the batch normalization that takes it
        self.calls: Counter[int] = Counter()  # weight or running mean → calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if not isinstance(output, DESCRIPTIONS):
            self.used.update(map(id, tensors_in((*args, *kwargs.values()))))
        if func in (F.conv2d, torch.conv2d) and len(args) > 1:
            self.made[id(output)] = id(args[1]), output
            self.used[id(output)] = 0  # another tensor may have had the same id before
            self.normalized.pop(id(output), None)
            self.calls[id(args[1])] += 1
        elif func is F.batch_norm and len(args) > 1 and args[1] is not None:
            self.normalized[id(args[0])] = id(args[1])
            self.calls[id(args[1])] += 1
        return output


def _pairs(network: nn.Module, watch: _Watch, keep: tuple[type, ...]) -> list[tuple[str, str]]:
    """Names of convolutions with the batch normalization that alone takes their output, and takes nothing else."""
    owners: dict[int, list[str]] = {}
    for path, module in network.named_modules():
        for name, kind in (("weight", nn.Conv2d), ("running_mean", nn.modules.batchnorm._BatchNorm)):
            tensor = getattr(module, name, None)
            if isinstance(module, kind) and isinstance(tensor, Tensor):
                owners.setdefault(id(tensor), []).append(path)
    pairs = []
    for output, (weight, _) in watch.made.items():
        mean = watch.normalized.get(output)
        if mean is None or watch.used[output] != 1 or watch.calls[weight] != 1 or watch.calls[mean] != 1:
            continue
        convs, norms = owners.get(weight, []), owners.get(mean, [])
        if len(convs) == len(norms) == 1 and _foldable(network, convs[0], norms[0], keep):
            pairs.append((convs[0], norms[0]))
    return pairs


def _foldable(network: nn.Module, conv: str, norm: str, keep: tuple[type, ...]) -> bool:
    one, other = network.get_submodule(conv), network.get_submodule(norm)
    hooks = any(
        getattr(module, name)
        for module in (one, other)
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    )
    known = type(other) in (nn.BatchNorm2d, BatchNormAct2d)
    return bool(norm) and known and not hooks and not isinstance(other, keep)


def _fold(network: nn.Module, conv: str, norm: str) -> None:
    one, other = network.get_submodule(conv), network.get_submodule(norm)
    assert isinstance(one, nn.Conv2d)
    assert isinstance(other, nn.BatchNorm2d)
    assert other.running_mean is not None
    assert other.running_var is not None
    scale = (other.running_var.double() + other.eps).rsqrt()
    scale = scale if other.weight is None else scale * other.weight.double()
    shift = -other.running_mean.double() if one.bias is None else one.bias.double() - other.running_mean.double()
    shift = shift * scale if other.bias is None else shift * scale + other.bias.double()
    weight = (one.weight.double() * scale[:, None, None, None]).to(one.weight.dtype)
    for name, tensor in (("weight", weight), ("bias", shift.to(one.weight.dtype))):
        one._parameters.pop(name, None)
        one._buffers.pop(name, None)
        one.register_buffer(name, tensor, persistent=False)
    parent, _, name = norm.rpartition(".")
    rest = nn.Sequential(other.drop, other.act) if isinstance(other, BatchNormAct2d) else nn.Identity()
    setattr(network.get_submodule(parent), name, rest.eval())
