from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toy_networks import Tiny

from fgvis_lightning.results.cost import Cost
from fgvis_lightning.results.tables import Table


def test_counts_images_forward_and_backward() -> None:
    network, cost = Tiny().eval(), Cost()
    x = torch.randn(5, 3, 8, 8, requires_grad=True)
    with cost.of(network):
        network(x)[:, 0].sum().backward()
        network(x[:2])  # no gradient comes back
        with torch.no_grad():
            network(x[:3])
    network(x)
    assert (cost.forward, cost.backward) == (10, 5)
    assert cost.seconds > 0
    assert not network._forward_hooks
    assert not network._forward_pre_hooks


def test_hooks_go_also_after_an_exception() -> None:
    network = Tiny().eval()
    with pytest.raises(RuntimeError), Cost().of(network):
        network(torch.zeros(1, 4, 8, 8))
    assert not network._forward_hooks
    assert not network._forward_pre_hooks


def test_runs_and_ranks_add_up(tmp_path: Path) -> None:
    Cost(2, 1.5, 20, 10).add_to(tmp_path, 0)
    Cost(1, 0.5, 10, 5).add_to(tmp_path, 0)
    Cost(3, 1.0, 30, 15).add_to(tmp_path, 1)
    assert Cost.read(tmp_path) == Cost(6, 3.0, 60, 30)
    assert Cost.read(tmp_path / "nowhere") == Cost()


def test_tables() -> None:
    table = Table(("a", "b|c"))
    table.add(("x, y", 1 / 3))
    table.add(("p|q", 12345))
    assert table.csv() == 'a,b|c\r\n"x, y",0.3333333333333333\r\np|q,12345\r\n'
    assert table.markdown() == "| a | b\\|c |\n| --- | --- |\n| x, y | 0.333 |\n| p\\|q | 12,345 |\n"
