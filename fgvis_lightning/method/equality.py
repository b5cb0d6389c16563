"""Equality of objects with tensors."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor


def same_fields(one: Any, other: Any) -> bool:
    """Whether two objects of a dataclass agree in all fields that its comparisons use.

    Tensors agree if their shapes, data types and all values do, wherever they are; NaN agrees with NaN.
    """
    compared = [field.name for field in fields(one) if field.compare]
    return all(_same(getattr(one, name), getattr(other, name)) for name in compared)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        alike = one.shape == other.shape and one.dtype == other.dtype
        return alike and torch.allclose(one, other.to(one.device), rtol=0, atol=0, equal_nan=True)
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return False
    return bool(one == other or (one != one and other != other))
