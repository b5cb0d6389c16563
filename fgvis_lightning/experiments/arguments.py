"""Command-line arguments shared by all experiments."""

from __future__ import annotations

import torch
from jsonargparse import Namespace

from fgvis_lightning.errors import InputError
from fgvis_lightning.experiments.network_option import building, check_optimizers, complete_network
from fgvis_lightning.experiments.parsing import Parser
from fgvis_lightning.networks.load import from_options
from fgvis_lightning.networks.zoo import DEFAULT


def new_parser(command: str, description: str, output: str) -> Parser:
    """A parser for a command that loads a network and fills a folder.

    Args:
        command: its name.
        description: its purpose.
        output: the default results folder.
    """
    parser = network_parser(command, description)
    parser.add_argument("--output", type=str, default=output, help="Results folder.")
    return parser


def network_parser(command: str, description: str) -> Parser:
    """A parser for a command that loads a network."""
    parser = Parser(prog=f"fgvis {command}", description=_told(description))
    parser.add_argument("--config", action="config", help="YAML file with these options.")
    parser.add_function_arguments(from_options, "model", sub_configs=True)
    parser.set_defaults({"model.network": DEFAULT})
    return parser


def _told(docstring: str) -> str:
    """The part of a module's docstring after the name of its command."""
    text = docstring.replace("``", "").partition(": ")[2]
    return text[:1].upper() + text[1:]


def build(parser: Parser, config: Namespace, required: list[str]) -> Namespace:
    """Make the objects of a configuration, including the network.

    Args:
        parser: of `new_parser`.
        config: parsed by it.
        required: arguments that the parser requires.

    Raises:
        InputError: the network cannot be built.
    """
    check_optimizers(config)
    complete_network(config.model, lambda name: parser.parse_args([*required, "--model.network", name]).model.network)
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
