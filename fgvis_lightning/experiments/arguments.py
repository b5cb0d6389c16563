"""Command-line arguments shared by all experiments, and the network that they name."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, get_type_hints

import torch
import torchvision
from jsonargparse import Namespace
from torch.optim import Optimizer

from fgvis_lightning.errors import InputError
from fgvis_lightning.experiments.parsing import Parser
from fgvis_lightning.networks.load import from_options
from fgvis_lightning.networks.zoo import DEFAULT

GET_MODEL = "torchvision.models.get_model"


def new_parser(command: str, description: str, output: str) -> Parser:
    """A parser for a command that loads a network and fills a folder, by default ``output``."""
    parser = network_parser(command, description)
    parser.add_argument("--output", type=str, default=output, help="Results folder.")
    return parser


def network_parser(command: str, description: str) -> Parser:
    """A parser for a command that loads a network."""
    told = description.replace("``", "").partition(": ")[2]  # after the name of the command
    parser = Parser(prog=f"fgvis {command}", description=told[:1].upper() + told[1:])
    parser.add_argument("--config", action="config", help="YAML file with these options.")
    parser.add_function_arguments(from_options, "model", sub_configs=True)
    parser.set_defaults({"model.network": DEFAULT})
    return parser


def build(parser: Parser, config: Namespace) -> Namespace:
    """The objects of a configuration of this parser; raises `InputError` if its network cannot be built."""
    check_optimizers(config)
    complete_network(config.model)
    with building(config.model.network):
        objects: Namespace = parser.instantiate(config)
    return objects


def add_device(parser: Parser) -> None:
    """Add the option for the device of a command without a Trainer, see `chosen_device`."""
    parser.add_argument("--device", type=str, default="auto", help="cpu, cuda, cuda:1, mps, …")


def chosen_device(name: str) -> str:
    """The device with this name; ``auto`` is the first GPU if there is one, else the CPU.

    Raises:
        InputError: if there is no such device.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        says = str(error).splitlines()[0]
        raise InputError(f"Expected --device to be a device of this machine, but got {name}: {says}") from error
    return name


def complete_network(model: Namespace) -> None:
    """Take the preprocessing from torchvision's weights entry, which the network forgets; drop arguments not given."""
    if not isinstance(model.network, Namespace):
        return
    if model.network.class_path.startswith("torchvision.models.") and model.network.class_path != GET_MODEL:
        # The parser fills in the defaults of the network's class, but builders such as resnext50_32x4d choose their own
        # values and refuse others.
        alone = network_parser("", "").parse_args(["--model.network", model.network.class_path])
        defaults = alone.model.network.init_args
        for key, value in list(vars(model.network.init_args).items()):
            if defaults.get(key) == value:
                del model.network.init_args[key]
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


def check_optimizers(config: Namespace) -> None:
    """Raise `InputError` if an option for an optimizer names something else; the parser accepts every callable."""
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
    """Turn an error of the constructor of a network, a logger or a callback into an `InputError` of one line."""
    try:
        yield
    except ValueError as error:
        if isinstance(network, Namespace) and f"class_path={network.class_path!r}" in str(error):
            raise InputError(
                f"Expected to build the network {network.class_path}, but it raised {error.__cause__!r}. "
                f"If weights cannot be downloaded, give them as a file with --model.classifier.checkpoint."
            ) from error
        if made := re.search(r"given class_path '(\S+)':\s*(.+)", str(error)):
            reason = made[2].strip().rstrip(".")
            raise InputError(f"Expected to make {made[1]}, but it reports: {reason}.") from error
        raise
