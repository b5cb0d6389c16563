"""Weights from files: state_dicts, training checkpoints, Lightning checkpoints, and safetensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fgvis_lightning.errors import InputError
from fgvis_lightning.names import class_at, missing

LIGHTNING = "lightning:"  # prefix of the class_path of a LightningModule to build from its checkpoint
KEYS = ("state_dict", "model_state_dict", "model")  # default names of a checkpoint's entry with the state_dict


def load_weights(network: nn.Module, path: str | Path, key: str | None = None) -> str:
    """Load weights from a file into a network.

    Parts of names that ``torch.compile`` and parallel training add are removed, and so is a prefix shared by all names
    of the network, such as ``model.`` in a Lightning checkpoint.

    Args:
        network: the network that receives the weights.
        path: a ``.safetensors`` file, or a file of ``torch.save``, which is read with ``weights_only=True``.
        key: the file's entry with the state_dict, if it is not among `KEYS`.

    Returns:
        A sentence about a removed prefix and ignored weights; empty if there are none.

    Raises:
        InputError: if the file cannot be read, has no state_dict, or has one that does not fit.
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
    rest = f", ignored {len(outside)} other weights: {', '.join(outside[:5])}" if outside else ""
    return f"{Path(path).name}: removed the prefix {prefix!r} from the names of the weights{rest}"


def from_hyper_parameters(name: str, path: str | Path | None) -> nn.Module:
    """A LightningModule built with the hyperparameters of its checkpoint (``save_hyperparameters()``).

    Its base may be that of ``pytorch_lightning`` or of ``lightning``.

    Args:
        name: class_path of the module.
        path: the checkpoint.

    Raises:
        InputError: if the class does not exist, the file has no hyperparameters, or the class does not accept them.
    """
    kind = class_at(name, nn.Module)
    if kind is None or all(base.__name__ != "LightningModule" for base in kind.__mro__):
        raise InputError(
            f"Expected {LIGHTNING} and the class_path of a LightningModule, but got {name!r}.{missing(name)}"
        )
    if path is None:
        raise InputError(f"Expected the checkpoint of {name}, but got none. Set --model.classifier.checkpoint.")
    saved = _read(path)
    known = saved.get("hyper_parameters") if isinstance(saved, Mapping) else None
    if not isinstance(known, Mapping):
        raise InputError(
            f"Expected hyper_parameters for {kind.__name__} in {path}, but got none. Call "
            f"save_hyperparameters() in its __init__, or set its arguments with --model.network.init_args."
        )
    takes = signature(kind.__init__).parameters
    every = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in takes.values())
    try:
        return kind(**{str(name): value for name, value in known.items() if every or name in takes})
    except Exception as error:  # the user's constructor may raise anything
        raise InputError(
            f"Expected the hyper_parameters in {path} to build {kind.__name__}, but its constructor raised {error!r}. "
            f"Set its arguments with --model.network.init_args."
        ) from error


def plain_name(name: str) -> str:
    """A weight's name without the additions of ``torch.compile``, DataParallel and DistributedDataParallel."""
    return re.sub(r"^(?:module\.)+", "", name.replace("_orig_mod.", ""))


def _prefix(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """The prefix that all of the network's names have in a file; empty if there is none."""
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
            f"Expected a file with weights, but {str(path) or 'an empty name'}: {error.strerror or error}."
        ) from error
    except SafetensorError as error:
        raise InputError(f"Expected a file with weights, but {path} is not a safetensors file: {error}.") from error
    except Exception as error:  # unpickling raises many kinds of errors
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it contains objects of {foreign[1]}" if foreign else "torch did not save it, or it is damaged"
        raise InputError(
            f"Expected a file with weights that torch.load(weights_only=True) can read, but got {path}: {reason}. "
            f"Save only the network's state_dict()."
        ) from error


def _state_dict(saved: Any, path: str | Path, key: str | None) -> Mapping[str, Tensor]:
    """The mapping of names to tensors in a saved object."""
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
    """A sentence about the entries of a file."""
    names = [str(name) for name, value in saved.items() if _is_state_dict(value)]
    if names:
        return f" It has one under {', '.join(names)}: set --model.classifier.checkpoint_key."
    return f" It has {', '.join(map(str, list(saved)[:5]))}."
