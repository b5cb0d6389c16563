"""Frozen classifiers, and what each one knows about its input and its classes."""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from fgvis_lightning.errors import InputError, nearest
from fgvis_lightning.method.tasks import Task, task_of
from fgvis_lightning.names import slug
from fgvis_lightning.networks.preprocessing import Preprocessing


@dataclass
class Classifier:
    """A frozen network with what it knows about its input and its classes.

    Attributes:
        network: frozen (see `freeze`); takes normalized images (B,3,H,W), returns logits (B,K).
        preprocessing: its input.
        classes: names of the K classes; empty where nobody knows them.
        name: for people and file metadata.
        order: of the color channels that the network was trained on; ``network`` itself always takes RGB.
        note: what was left out of its weights' file.
        outputs: what they mean, for people; empty where that is not known yet.
        threshold: probability above which a label is predicted, in a multilabel task.
        folded: what `fgvis_lightning.defense.options.defend` has made of it, for the next time.
    """

    network: nn.Module
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    name: str
    order: str = "RGB"
    note: str = ""
    outputs: str = ""
    threshold: float = 0.5
    folded: dict[Any, nn.Module] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def task(self) -> Task:
        """What its logits say of a class."""
        return task_of(self.network)

    @property
    def described(self) -> str:
        """Name, preprocessing, outputs and note, as the first lines of a run say them."""
        lines = f"network: {self.name}; {self.preprocessing}", self.outputs and f"task: {self.outputs}", self.note
        return "\n".join(filter(None, lines))

    def class_name(self, index: int) -> str:
        """The name of class ``index``, or ``class <index>`` where it has none."""
        return self.classes[index] if 0 <= index < len(self.classes) else f"class {index}"

    def class_slug(self, index: int) -> str:
        """The name of class ``index`` as a part of a file name; no two classes share one."""
        return self._slugs[index] if 0 <= index < len(self._slugs) else slug(self.class_name(index))

    @cached_property
    def _slugs(self) -> tuple[str, ...]:
        """Each class's name, with its index where another is spelled alike, also where case does not count."""
        plain = [slug(name) for name in self.classes]
        numbered: set[int] = set()
        while True:  # the name with an index may be another class's name, which then gets its index too
            slugs = [f"{name}_{index}" if index in numbered else name for index, name in enumerate(plain)]
            count = Counter(map(str.casefold, slugs))
            shared = {index for index, name in enumerate(slugs) if count[name.casefold()] > 1} - numbered
            if not shared:
                return tuple(slugs)
            numbered |= shared

    def class_index(self, name: str) -> int:
        """The index of the class called ``name``.

        Raises:
            InputError: no class or several have this name; the message lists the nearest.
        """
        found = [index for index, known in enumerate(self.classes) if known.lower() == name.lower()]
        if len(found) == 1:
            return found[0]
        if not self.classes:
            raise InputError(
                f"Expected the index of a class, but got the name {name!r}: the names of {self.name}'s classes are "
                f"not known. Give the index, or the names with --model.classifier.classes."
            )
        if found:
            raise InputError(f"Expected the name of one class, but {name!r} names {found}: give the index.")
        raise InputError(
            f"Expected the name of one of {len(self.classes)} classes, but got {name!r}.{nearest(name, self.classes)}"
        )

    def fingerprint(self) -> str:
        """SHA-256 over names, types and bytes of all weights, as hexadecimal digits."""
        digest = hashlib.sha256()
        for name, tensor in _tensors(self.network).items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()


class Reordered(nn.Module):
    """A network that was trained on another order of color channels, as one of RGB.

    Args:
        network: takes images (B,3,H,W) with channels in ``order``.
        order: the letters R, G and B.
    """

    def __init__(self, network: nn.Module, order: str) -> None:
        super().__init__()
        self.network = network
        # A buffer, since explanations depend on it as they do on the weights.
        self.register_buffer("order", torch.tensor(["RGB".index(color) for color in order]))

    def forward(self, images: Tensor) -> Any:
        return self.network(images.index_select(1, self.order))  # type: ignore[arg-type]


def freeze(network: nn.Module) -> nn.Module:
    """A copy of ``network`` in eval mode that shares its weights and has no parameters.

    Every parameter becomes a buffer that is not saved, so a module that holds the copy has no
    weights to train, and moving the copy leaves the caller's network where it is.

    Raises:
        InputError: the network cannot be copied, is scripted, or has quantized layers.
    """
    if isinstance(network, torch.jit.ScriptModule):
        raise InputError(
            f"Expected a network as Python runs it, but {getattr(network, 'original_name', type(network).__name__)} is "
            f"scripted or traced, and its activations cannot be gated. Give the module that it was made from."
        )
    for path, module in network.named_modules():
        if ".quantized" in type(module).__module__:
            raise InputError(
                f"Expected a network whose layers have gradients, but {path or 'it'} ({type(module).__name__}) is "
                f"quantized. Give the network as it was before."
            )
    shared: dict[int, Any] = {id(tensor): tensor.detach() for tensor in _tensors(network).values()}
    # A LightningModule in training knows its trainer, which is not to be copied.
    shared |= {id(part): None for module in network.modules() if (part := vars(module).get("_trainer")) is not None}
    try:
        frozen = copy.deepcopy(network, shared)
    except (TypeError, RuntimeError) as error:
        raise InputError(
            f"Expected a network that copy.deepcopy can copy, but {type(network).__name__} cannot be: {error}"
        ) from error
    for module in frozen.modules():
        for name, parameter in list(module._parameters.items()):
            del module._parameters[name]
            module.register_buffer(name, parameter, persistent=False)
        module._non_persistent_buffers_set.update(module._buffers)
    return frozen.eval()


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}
