"""Imports run in one direction, and the picture of the architecture says so."""

from __future__ import annotations

import importlib.util
import re
import sys
from graphlib import TopologicalSorter
from pathlib import Path
from types import ModuleType

import pytest

import fgvis_lightning

ROOT = Path(__file__).parent.parent


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def architecture() -> ModuleType:
    return load(ROOT / "docs" / "architecture.py")


def test_modules_import_only_what_is_above_them(architecture: ModuleType) -> None:
    """In the order of the package's docstring, which has every module."""
    order = re.findall(r"^ {4}(\w+) {2,}\S", fgvis_lightning.__doc__ or "", re.MULTILINE)
    names = {architecture.top(module) for module in architecture.modules()} - {""}
    assert sorted(order) == sorted(names), "each module has one line in the docstring of fgvis_lightning/__init__.py"
    for module, others in architecture.imports().items():
        own = architecture.top(module)
        for used in {architecture.top(other) for other in others} - {"", own} if own else ():
            assert order.index(used) < order.index(own), f"{module} imports {used}, which comes later"


def test_no_imports_go_in_circles(architecture: ModuleType) -> None:
    """Within folders, too, and with those that only types need."""
    imports = {module: others - {module} for module, others in architecture.imports().items()}
    tuple(TopologicalSorter(imports).static_order())  # raises CycleError


def test_no_module_is_long(architecture: ModuleType) -> None:
    lines = {module: len(path.read_text().splitlines()) for module, path in architecture.modules().items()}
    assert {module: count for module, count in lines.items() if count > 300} == {}
    root = [path for path in (ROOT / fgvis_lightning.__name__).iterdir() if path.is_file()]
    assert len(root) <= 8


def test_no_module_imports_the_package_itself(architecture: ModuleType) -> None:
    package = fgvis_lightning.__name__
    assert not [module for module, others in architecture.imports().items() if module != package and package in others]


def test_the_picture_is_up_to_date(architecture: ModuleType) -> None:
    names = {architecture.top(module) for module in architecture.modules()} - {""}
    assert sorted(names) == sorted({*architecture.GROUPS, *architecture.SHARED})
    for one, other in architecture.edges():
        assert architecture.GROUPS[one][2] < architecture.GROUPS[other][2], (
            f"{other} imports {one}, which is not above it"
        )
    again = "python docs/architecture.py"
    assert architecture.PICTURE.read_text(encoding="utf-8") == architecture.draw(), f"run: {again}"
