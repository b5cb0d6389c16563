"""Commands on a small network."""

from __future__ import annotations

from pathlib import Path

from fgvis_lightning.cli import main

NETWORK = ["--model.network", "toy_networks.Tiny", "--model.classifier.size", "[16, 16]"]
TINY = [*NETWORK, "--model.iterations", "4", "--model.seeds", "1"]
CPU = ["--trainer.accelerator", "cpu"]


def fit(output: Path, images: Path | str, *more: str) -> None:
    main(["fit", *TINY, *CPU, "--output", str(output), "--data.images", str(images), *more])
