"""Checks of the tensors that metrics receive."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fgvis_lightning.errors import InputError
from fgvis_lightning.networks.classifier import require_eval_mode


def shape(tensor: Tensor) -> str:
    """The shape of a tensor for messages."""
    return str(tuple(tensor.shape)).replace(" ", "")


def check_tensor(name: str, value: Any) -> None:
    """Raise `InputError` unless a value is a tensor."""
    if not isinstance(value, Tensor):
        raise InputError(f"Expected {name} to be a tensor, but got {type(value).__name__}.")


def check_maps(name: str, maps: Tensor, *sizes: int) -> Tensor:
    """Maps (B,H,W), with these sizes if known, in float32 or float64; raises `InputError` unless they are finite."""
    check_tensor(name, maps)
    if maps.ndim != 3 or not maps.numel() or (sizes and maps.shape != sizes):
        wanted = f"({','.join(map(str, sizes))})" if sizes else "(B,H,W)"
        raise InputError(f"Expected {name} to be {wanted}, but got {shape(maps)}.")
    if not maps.isfinite().all():
        images = (~maps.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
        raise InputError(
            f"Expected {name} without NaN and infinity, but got some in {len(images)} of {len(maps)}: {images[:10]}."
        )
    return maps.detach() if maps.dtype == torch.float64 else maps.detach().float()


def check_network(network: Any) -> None:
    """Raise `InputError` unless a network is callable and, if it is a module, in eval mode."""
    if not callable(network):
        raise InputError(f"Expected a network that takes normalized images, but got {network!r}.")
    if isinstance(network, nn.Module):
        require_eval_mode(network)


def check_images(x: Tensor) -> None:
    """Raise `InputError` unless ``x`` is a tensor of normalized images (B,3,H,W), in floating point."""
    check_tensor("x", x)
    if x.ndim != 4 or not x.numel() or not x.is_floating_point():
        raise InputError(f"Expected x to be normalized images (B,3,H,W), but got {shape(x)} of {x.dtype}.")


def check_batch(**tensors: Tensor) -> None:
    """Raise `InputError` unless each tensor has one value for each image (B,)."""
    shapes = {name: shape(tensor) for name, tensor in tensors.items()}
    if any(tensor.ndim != 1 for tensor in tensors.values()) or len(set(shapes.values())) > 1:
        raise InputError(f"Expected {' and '.join(shapes)} to be (B,), but got {' and '.join(shapes.values())}.")


def check_classes(logits: Tensor, targets: Tensor, count: int) -> None:
    """Raise `InputError` unless the logits of some images are (count,K), and all targets are among the K classes."""
    if logits.ndim != 2 or len(logits) != count:
        raise InputError(f"Expected logits to be ({count},K), but got {shape(logits)}.")
    low, high = int(targets.min()), int(targets.max())
    if not 0 <= low <= high < logits.shape[1]:
        raise InputError(f"Expected targets from 0 to {logits.shape[1] - 1}, but got {low} to {high}.")


def check_targets(targets: Tensor, count: int) -> None:
    """Raise `InputError` unless ``targets`` is an integer tensor of shape (count,)."""
    check_tensor("targets", targets)
    if targets.shape != (count,) or targets.is_floating_point() or targets.dtype == torch.bool:
        raise InputError(f"Expected targets to be ({count},) integers, but got {shape(targets)} of {targets.dtype}.")


def check_inputs(x: Tensor, targets: Tensor, batch_size: int) -> None:
    """Raise `InputError` unless images, as in `check_images`, their classes (B,) and the batch size are valid."""
    check_images(x)
    check_targets(targets, len(x))
    if batch_size < 1:
        raise InputError(f"Expected batch_size to be at least 1, but got {batch_size}.")
