"""Results folders without a network, for the tests of the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fgvis_lightning.data.images import content
from fgvis_lightning.method.games import GAMES
from fgvis_lightning.results.attribution import Attribution
from fgvis_lightning.results.explanation import Explanation
from fgvis_lightning.results.tensor_files import save_tensors

EVIL = "<img src=x onerror=alert(1)>"
SETTINGS = {
    "network": "Tiny",
    "game": "preservation",
    "lam": "auto",
    "level": 1.0,
    "iterations": 4,
    "seeds": 3,
    "defended": True,
}


def photo(path: Path, seed: int, side: int = 32) -> Path:
    """An image file of random blocks."""
    blocks = np.random.default_rng(seed).integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(blocks.repeat(4, 0).repeat(4, 1)).save(path)
    return path


def _metadata(image: Path | str, name: str, side: int) -> dict[str, str]:
    own = {"size": [side, side], "resize": side, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3}
    sha256 = content(str(image)) if Path(image).is_file() else "0" * 64
    settings = json.dumps({**SETTINGS, **own})
    return {"image": str(image), "image_sha256": sha256, "name": name, "network": "Tiny", "settings": settings}


def explanation(
    folder: Path,
    id: str,
    image: Path | str,
    name: str = "cat",
    score: float = 0.5,
    share: float = 0.25,
    game: str = "preservation",
    feasible: bool | None = True,
    side: int = 32,
    agreement: float | None = None,
) -> Path:
    """An explanation whose evidence is the upper rows, so many of them as ``share`` says, in red and half in green."""
    evidence = torch.zeros(1, 3, side, side)
    evidence[:, 0, : round(share * side)] = 1
    evidence[:, 1, : round(share * side)] = 0.5
    found = Explanation(
        mask=evidence if GAMES[game].keeps else 1 - evidence,
        targets=torch.tensor([3]),
        score_image=torch.tensor([score]),
        score_explanation=torch.tensor([score / 2]),
        game=GAMES[game],
        feasible=None if feasible is None else torch.tensor([feasible]),
        iterations=torch.tensor([4]),
        agreement=None if agreement is None else torch.tensor([agreement]),
        seeds=None if agreement is None else 3,
    )
    path = folder / "explanations" / f"{id}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    found.save(path, 0, _metadata(image, name, side))
    return path


def attribution(folder: Path, id: str, image: Path | str, method: str, name: str = "cat", side: int = 32) -> Path:
    """A map of another method, which grows from left to right."""
    found = Attribution(
        torch.linspace(-1, 1, side).expand(1, side, side), torch.tensor([3]), torch.tensor([0.5]), method
    )
    path = folder / "explanations" / f"{id}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    found.save(path, 0, _metadata(image, name, side))
    return path


def evaluation(folder: Path, method: str, deletion: dict[str, float]) -> None:
    """What ``evaluate`` leaves of items with these deletion AUC: straight curves."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [f"{id},x.png,3,{method},rise,{value},{1 - value}" for id, value in deletion.items()]
    text = "\n".join(["id,image,target,method,profile,deletion,insertion", *rows])
    (folder / "evaluation_items.csv").write_text(text + "\n")
    curve = torch.linspace(1, 0, 5)
    curves = torch.stack([torch.stack([curve * 2 * value, curve.flip(0)]) for value in deletion.values()])
    items = json.dumps([(id, method) for id in deletion])
    save_tensors(folder / "curves.safetensors", {"curves": curves}, {"items": items})


def run(folder: Path, items: int = 4, side: int = 32) -> Path:
    """What ``fit`` leaves: items 0, 1, … with growing scores and evidence, classes by turns, and a failure."""
    for number in range(items):
        image = photo(folder.parent / "photos" / f"{number % 16}.png", number % 16, side)
        explanation(
            folder,
            f"{number:04}@{('cat', 'dog')[number % 2]}",
            image,
            ("cat", "dog")[number % 2],
            score=(number + 1) / (items + 1),
            share=(number % 8 + 1) / 16,
            feasible=number % 4 != 3,
            side=side,
            agreement=None if number % 2 == 0 else 0.875,
        )
    (folder / "failures").mkdir(exist_ok=True)
    (folder / "failures" / "torn.txt").write_text(f"Expected an image, but {EVIL} cannot be decoded.\n")
    return folder
