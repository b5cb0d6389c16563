"""The command line."""

from fgvis_lightning.cli.commands import COMMANDS, main

__all__ = ["COMMANDS", "main"]
