"""Frozen classifiers with their preprocessing and class names."""

from __future__ import annotations

import copy
import hashlib
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from fgvis_lightning.errors import InputError, nearest
from fgvis_lightning.method.tasks import Task, task_of
from fgvis_lightning.names import slug
from fgvis_lightning.networks.outputs import tensors_in
from fgvis_lightning.networks.preprocessing import Preprocessing


@dataclass
class Classifier:
    """A frozen network with its preprocessing and class names.

    Attributes:
        network: the frozen network (see `freeze`); takes normalized images (B,3,H,W), returns logits (B,K).
        preprocessing: preprocessing of the network's input.
        classes: names of the K classes; empty if unknown.
        name: name of the network, for messages and file metadata.
        order: order of the color channels in the network's training; ``network`` itself always takes RGB.
        note: a sentence about ignored weights of the checkpoint.
        outputs: description of the network's outputs, for messages; empty if unknown.
        folded: cache of `fgvis_lightning.networks.folding.faster`.
    """

    network: nn.Module
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    name: str
    order: str = "RGB"
    note: str = ""
    outputs: str = ""
    folded: dict[Any, nn.Module] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def task(self) -> Task:
        """Meaning of the network's logits."""
        return task_of(self.network)

    @property
    def described(self) -> str:
        """Name, preprocessing, classes, outputs and note, for the first lines of a run."""
        classes = "have no names; give them with --model.classifier.classes"
        if self.classes:
            few = ", ".join(self.classes[:3])
            classes = f"{few}, … ({len(self.classes):,})" if len(self.classes) > 3 else few
        lines = (
            *(f"network: {self.name}; {self.preprocessing}", f"classes: {classes}"),
            *(self.outputs and f"task: {self.outputs}", self.note),
        )
        return "\n".join(filter(None, lines))

    def class_name(self, index: int) -> str:
        """The name of class ``index``, or ``class <index>`` if it has none."""
        return self.classes[index] if 0 <= index < len(self.classes) else f"class {index}"

    def class_slug(self, index: int) -> str:
        """The name of class ``index`` as a part of a file name, unique among the classes."""
        return self._slugs[index] if 0 <= index < len(self._slugs) else slug(self.class_name(index))

    @cached_property
    def _slugs(self) -> tuple[str, ...]:
        """The slug of each class, with the class's index if another slug is equal (ignoring case)."""
        plain = [slug(name) for name in self.classes]
        numbered: set[int] = set()
        while True:  # a slug with an index may equal another class's slug, which then gets its index, too
            slugs = [f"{name}_{index}" if index in numbered else name for index, name in enumerate(plain)]
            count = Counter(map(str.casefold, slugs))
            shared = {index for index, name in enumerate(slugs) if count[name.casefold()] > 1} - numbered
            if not shared:
                return tuple(slugs)
            numbered |= shared

    def class_index(self, name: str) -> int:
        """The index of the class named ``name``.

        Raises:
            InputError: if no class or several classes have this name; the message lists similar names.
        """
        found = [index for index, known in enumerate(self.classes) if known.lower() == name.lower()]
        if len(found) == 1:
            return found[0]
        if not self.classes:
            raise InputError(
                f"Expected the index of a class, but got the name {name!r}: the class names of {self.name} are "
                f"unknown. Use the index, or set the names with --model.classifier.classes (classes "
                f"in Python)."
            )
        if found:
            raise InputError(f"Expected the name of one class, but {name!r} names {found}. Use the index.")
        raise InputError(
            f"Expected the name of one of {len(self.classes):,} classes, but got {name!r}.{nearest(name, self.classes)}"
        )

    def fingerprint(self) -> str:
        """SHA-256 of names, data types, shapes and bytes of all weights and buffers, as hexadecimal digits."""
        digest = hashlib.sha256()
        for name, tensor in _tensors(self.network).items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()


class Reordered(nn.Module):
    """Wrapper that takes RGB images for a network trained on another order of color channels.

    Args:
        network: a network of images (B,3,H,W) with channels in ``order``.
        order: the letters R, G and B in any order.
    """

    def __init__(self, network: nn.Module, order: str) -> None:
        super().__init__()
        self.network = network
        # A buffer, since explanations depend on it as on the weights.
        self.register_buffer("order", torch.tensor(["RGB".index(color) for color in order]))

    def forward(self, images: Tensor) -> Any:
        return self.network(images.index_select(1, self.order))  # type: ignore[arg-type]


def channels_last(network: nn.Module) -> nn.Module:
    """Convert the weights of two-dimensional convolutions to torch's memory format ``channels_last``, in place."""
    last = torch.channels_last
    return network._apply(lambda tensor: tensor.contiguous(memory_format=last) if tensor.ndim == 4 else tensor)


def _exported(module: nn.Module) -> bool:
    """Whether it calls ATen's operators, as modules of ``torch.export`` do, instead of torch's functions."""
    return isinstance(module, fx.GraphModule) and any(
        type(node.target).__module__ == "torch._ops" for node in module.graph.nodes if node.op == "call_function"
    )


FROZEN = "frozen_parameters"
"""Attribute of a frozen module: the names of its buffers that were parameters."""


def check_module(network: Any) -> None:
    """Check that a network is a module whose activations can be gated.

    Raises:
        InputError: if it is not a module, or has scripted, quantized or uninitialized parts.
    """
    if not isinstance(network, nn.Module):
        hint = "its name" if network is None else "an instance" if isinstance(network, type) else "a module"
        if type(network).__name__ == "ExportedProgram":
            network, hint = "exported program", "the original module"
        raise InputError(f"Expected a network as a torch.nn.Module, but got {network!r}. Pass {hint}.")
    for path, module in network.named_modules():
        if isinstance(module, torch.jit.ScriptModule) or _exported(module):
            raise InputError(
                f"Expected a Python module, but {path or getattr(network, 'original_name', type(network).__name__)} is "
                f"scripted, traced or exported, and its activations cannot be gated. Pass the original module."
            )
        if ".quantized" in type(module).__module__:
            raise InputError(
                f"Expected a network whose layers have gradients, but {path or 'it'} ({type(module).__name__}) is "
                f"quantized. Pass the network before quantization."
            )
        if any(map(nn.parameter.is_lazy, module._parameters.values())):
            raise InputError(
                f"Expected a network with weights, but {path or 'it'} ({type(module).__name__}) has none yet. Run the "
                f"network on a batch of images first."
            )


def require_eval_mode(network: nn.Module) -> None:
    """Check that no layer is in training mode, or uses statistics of the batch.

    Raises:
        InputError: if there is such a layer.
    """
    stateful = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    for path, module in network.named_modules():
        if isinstance(module, stateful) and module.training:
            raise InputError(
                f"Expected {type(network).__name__} in eval mode, but {path} ({type(module).__name__}) is in "
                f"training mode. Call network.eval()."
            )
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise InputError(
                f"Expected images that do not influence one another, but {path} ({type(module).__name__}) of "
                f"{type(network).__name__} uses statistics of the batch. Create it with track_running_stats=True."
            )


def freeze(network: nn.Module) -> nn.Module:
    """A copy of ``network`` in eval mode that has no parameters, and does not change if the network is trained.

    Every parameter becomes a non-persistent buffer, so a module that contains the copy has no weights to train. A
    network that asks for its own ``parameters()``, for example to learn its device, gets these buffers.

    Raises:
        InputError: if `check_module` refuses the network, or if it cannot be copied.
    """
    check_module(network)
    try:
        own: dict[int, Any] = {id(tensor): tensor.detach().clone() for tensor in _tensors(network).values()}
        # Tensors of a graph cannot be copied: weights that a hook computes, such as pruned ones, or stored activations.
        kept = (tensor for module in network.modules() for tensor in tensors_in(vars(module)))
        own |= {id(tensor): tensor.detach().clone() for tensor in kept if not tensor.is_leaf}
        # A LightningModule in training has a reference to its trainer, which must not be copied.
        own |= {id(part): None for module in network.modules() if (part := vars(module).get("_trainer")) is not None}
        frozen = copy.deepcopy(network, own)
    except (TypeError, RuntimeError, ValueError) as error:
        raise InputError(
            f"Expected a network that copy.deepcopy can copy, but {type(network).__name__} cannot be: {error}"
        ) from error
    for module in frozen.modules():
        for name, child in module.named_children():  # compiled code hides its activations
            if isinstance(original := getattr(child, "_orig_mod", None), nn.Module):
                setattr(module, name, original)
    for module in frozen.modules():
        parameters = dict(module._parameters)
        setattr(module, FROZEN, (*getattr(module, FROZEN, ()), *parameters))
        for name, parameter in parameters.items():
            del module._parameters[name]
            module.register_buffer(name, parameter, persistent=False)
        module._non_persistent_buffers_set.update(module._buffers)
        object.__setattr__(module, "parameters", partial(_frozen_parameters, module))
    frozen.eval()
    return frozen


def _frozen_parameters(network: nn.Module, recurse: bool = True) -> Iterator[Tensor]:
    """The buffers of a frozen network that were parameters."""
    for module in network.modules() if recurse else (network,):
        own = (getattr(module, name) for name in getattr(module, FROZEN, ()))
        yield from (tensor for tensor in own if tensor is not None)


_HELD: dict[int, int] = {}  # id of a weight that is constant → number of contexts, in all threads
_HOLD = threading.Lock()


@contextmanager
def constant(weights: Iterable[Tensor]) -> Iterator[None]:
    """Inside this context, these weights require no gradient, also if other threads leave theirs."""
    with _HOLD:
        held = [weight for weight in weights if weight.requires_grad or id(weight) in _HELD]
        for weight in held:
            _HELD[id(weight)] = _HELD.get(id(weight), 0) + 1
            weight.requires_grad_(False)
    try:
        yield
    finally:
        with _HOLD:
            for weight in held:
                _HELD[id(weight)] -= 1
                if not _HELD[id(weight)]:
                    del _HELD[id(weight)]
                    weight.requires_grad_(True)


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}
