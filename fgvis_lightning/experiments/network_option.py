"""Prepares the network of a configuration before it is instantiated."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, get_type_hints

import torchvision
from jsonargparse import Namespace
from torch.optim import Optimizer

from fgvis_lightning.errors import InputError

GET_MODEL = "torchvision.models.get_model"


def complete_network(model: Namespace, parse: Callable[[str], Namespace]) -> None:
    """Take the preprocessing from torchvision's weights entry, which the network forgets; drop defaults of arguments.

    Args:
        model: has ``network`` and ``classifier.weights``.
        parse: makes the configuration of a network from its ``class_path`` alone.
    """
    if not isinstance(model.network, Namespace):
        return
    _drop_defaults(model.network, parse)
    options: dict[str, Any] = {
        **vars(model.network.get("init_args") or Namespace()),
        **(model.network.get("dict_kwargs") or {}),
    }
    entry: Any = options.get("weights")
    if isinstance(entry, str) and model.network.class_path == GET_MODEL:
        with suppress(KeyError, ValueError):  # the builder refuses an unknown name
            entry = torchvision.models.get_model_weights(options["name"])[entry]
    if isinstance(entry, torchvision.models.WeightsEnum) and model.classifier.weights is None:
        model.classifier.weights = str(entry)


def _drop_defaults(network: Namespace, parse: Callable[[str], Namespace]) -> None:
    """Drop arguments of a torchvision builder that were not given.

    The parser fills in the defaults of the network's class, but builders such as ``resnext50_32x4d``
    choose their own values and refuse others.
    """
    if not network.class_path.startswith("torchvision.models.") or network.class_path == GET_MODEL:
        return
    defaults = parse(network.class_path)
    for key, value in list(vars(network.init_args).items()):
        if defaults.init_args.get(key) == value:
            del network.init_args[key]


def check_optimizers(config: Namespace) -> None:
    """Refuse anything that is not an optimizer; the parser accepts every callable.

    Raises:
        InputError: if an option for an optimizer names something else.
    """
    for key, value in config.items():
        name = key.removesuffix(".class_path")
        if name.rpartition(".")[2] != "optimizer" or value is None or isinstance(value, Namespace):
            continue
        made = value
        if isinstance(value, str):
            module, _, attribute = value.rpartition(".")
            made = getattr(importlib.import_module(module), attribute)
        kind = made if isinstance(made, type) else get_type_hints(made).get("return")
        if not (isinstance(kind, type) and issubclass(kind, Optimizer)):
            raise InputError(f"Expected --{name} to be an optimizer, e.g. torch.optim.SGD, but got {value}.")


@contextmanager
def building(network: Namespace | str) -> Iterator[None]:
    """Turn an error of a network's own constructor into one line.

    Raises:
        InputError: the error in one line.
    """
    try:
        yield
    except ValueError as error:
        if not isinstance(network, Namespace) or f"class_path={network.class_path!r}" not in str(error):
            raise
        raise InputError(
            f"Expected to build the network {network.class_path}, but it raised {error.__cause__!r}. "
            f"If weights cannot be downloaded, give them as a file with --model.classifier.checkpoint."
        ) from error
