"""Weights from files: a state_dict, a training's checkpoint, Lightning's, or safetensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fgvis_lightning.errors import InputError
from fgvis_lightning.names import class_at

EMPTY = "an empty name"
LIGHTNING = "lightning:"
"""Stands before the class_path of a LightningModule that its checkpoint is to build."""

KEYS = ("state_dict", "model_state_dict", "model")
"""Where checkpoints have their state_dict, unless told."""


def load_weights(network: nn.Module, path: str | Path, key: str | None = None) -> str:
    """Load weights from a file into a network.

    Parts of names that ``torch.compile`` and parallel training add are left out, and a prefix that all names of the
    network share, as ``model.`` in a checkpoint of Lightning's.

    Args:
        network: it gets the weights.
        path: a ``.safetensors`` file, or one of ``torch.save``, read with ``weights_only=True``.
        key: the file's entry with the state_dict, where it is none of `KEYS`.

    Returns:
        What was left out, in a sentence; empty where that is nothing.

    Raises:
        InputError: if the file cannot be read, has no state_dict, or one that does not fit.
    """
    state = {plain_name(str(name)): tensor for name, tensor in _state_dict(_read(path), path, key).items()}
    own = network.state_dict()
    prefix = _prefix(own, state)
    inside = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    outside = [name for name in state if not name.startswith(prefix)]
    problems = [
        *(f"{name} is missing" for name in own if name not in inside),
        *(f"{prefix}{name} is unknown" for name in inside if name not in own),
        *(
            f"{name} is {tuple(inside[name].shape)} instead of {tuple(own[name].shape)}"
            for name in own
            if name in inside and inside[name].shape != own[name].shape
        ),
    ]
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise InputError(
            f"Expected weights of {type(network).__name__} in {path}, but they do not fit: "
            f"{', '.join(problems[:3])}{more}."
        )
    network.load_state_dict(inside)
    if not prefix:
        return ""
    rest = f", and {len(outside)} others passed over: {', '.join(outside[:5])}" if outside else ""
    return f"{Path(path).name}: the names of the weights without their prefix {prefix!r}{rest}"


def from_hyper_parameters(name: str, path: str | Path | None) -> LightningModule:
    """A LightningModule made with the hyperparameters of its checkpoint (``save_hyperparameters()``).

    Args:
        name: its class_path.
        path: the checkpoint.

    Raises:
        InputError: if there is no such class, the file has no hyperparameters, or the class does not take them.
    """
    kind = class_at(name, LightningModule)
    if kind is None:
        raise InputError(f"Expected {LIGHTNING} and the class_path of a LightningModule, but got {name!r}.")
    if path is None:
        raise InputError(
            f"Expected the checkpoint of {name}, but got none. Give it with --model.classifier.checkpoint."
        )
    saved = _read(path)
    known = saved.get("hyper_parameters") if isinstance(saved, Mapping) else None
    if not isinstance(known, Mapping):
        raise InputError(
            f"Expected hyper_parameters in {path}, which build {kind.__name__}, but it has none: call "
            f"save_hyperparameters() in its __init__, or give its arguments with --model.network.init_args."
        )
    takes = signature(kind.__init__).parameters
    every = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in takes.values())
    try:
        return kind(**{str(name): value for name, value in known.items() if every or name in takes})
    except Exception as error:  # it is anybody's constructor
        raise InputError(
            f"Expected the hyper_parameters in {path} to build {kind.__name__}, but its constructor raised {error!r}. "
            f"Give its arguments with --model.network.init_args."
        ) from error


def plain_name(name: str) -> str:
    """A weight's name without what ``torch.compile``, DataParallel and DistributedDataParallel add."""
    return re.sub(r"^(?:module\.)+", "", name.replace("_orig_mod.", ""))


def _prefix(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """What stands before all of the network's own names in a file; empty where nothing does."""
    if not own or own.keys() <= state.keys():
        return ""
    first = next(iter(own))
    prefixes = (name.removesuffix(first) for name in state if name.endswith("." + first))
    return next((prefix for prefix in prefixes if all(prefix + name in state for name in own)), "")


def _read(path: str | Path) -> Any:
    try:
        if Path(path).suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(
            f"Expected a file with weights, but {str(path) or EMPTY}: {error.strerror or error}."
        ) from error
    except SafetensorError as error:
        raise InputError(f"Expected a file with weights, but {path} is no safetensors file: {error}.") from error
    except Exception as error:  # unpickling raises many kinds
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it has objects of {foreign[1]}" if foreign else "torch did not save it, or it is damaged"
        raise InputError(
            f"Expected a file with weights that torch.load(weights_only=True) reads, but {path} is none: {reason}. "
            f"Save the network's state_dict() alone."
        ) from error


def _state_dict(saved: Any, path: str | Path, key: str | None) -> Mapping[str, Tensor]:
    """The mapping of names to tensors in what was saved."""
    if not isinstance(saved, Mapping):
        raise InputError(f"Expected a state_dict (names to tensors) in {path}, but got something else.")
    if key is not None:
        if not _is_state_dict(saved.get(key)):
            raise InputError(f"Expected a state_dict in {path} under {key!r}, but there is none.{_entries(saved)}")
        return dict(saved[key])
    for known in KEYS:
        if _is_state_dict(saved.get(known)):
            return dict(saved[known])
    if not _is_state_dict(saved):
        raise InputError(
            f"Expected a state_dict (names to tensors) in {path}, but got something else.{_entries(saved)}"
        )
    return saved


def _is_state_dict(saved: Any) -> bool:
    return isinstance(saved, Mapping) and bool(saved) and all(isinstance(value, Tensor) for value in saved.values())


def _entries(saved: Mapping[Any, Any]) -> str:
    """Which entries of a file could be meant."""
    names = [str(name) for name, value in saved.items() if _is_state_dict(value)]
    if names:
        return f" It has one under {', '.join(names)}: name it with --model.classifier.checkpoint_key."
    return f" It has {', '.join(map(str, list(saved)[:5]))}."
