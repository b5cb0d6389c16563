"""The defense: a frozen classifier with gates behind its nonlinearities, and checks that no gate is missing."""

from fgvis_lightning.defense.checks import UngatedActivationError
from fgvis_lightning.defense.container import DefendedCNN

__all__ = ["DefendedCNN", "UngatedActivationError"]
