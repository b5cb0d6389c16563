"""Loading explanations from files.

An explanation is one ``.safetensors`` file with string metadata. It contains the tensor ``mask`` and optionally
``ranking``; or, for another method, the tensor ``map`` and optionally ``explanation``, the image left by the method.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from fgvis_lightning.defense.coverage import Coverage
from fgvis_lightning.errors import InputError
from fgvis_lightning.method.games import GAMES
from fgvis_lightning.names import printable
from fgvis_lightning.results.attribution import Attribution
from fgvis_lightning.results.explanation import ROWS, TYPED, Explanation
from fgvis_lightning.results.tensor_files import CHECKSUM, SUFFIX, UNREADABLE, checksum, damaged

TENSORS = ("mask", "ranking", "map", "explanation")


def check_links(output: Path) -> None:
    """Raise `InputError` if a folder has a link to the outside, which could lead to any file of this machine."""
    real = output.resolve()
    for place, folders, names in os.walk(output):
        for name in (*folders, *names):
            path = os.path.join(place, name)  # noqa: PTH118, a million times
            if os.path.islink(path) and not Path(path).resolve().is_relative_to(real):  # noqa: PTH114
                raise InputError(
                    f"Expected all results inside {output}, but {printable(path)} is a link to the outside. Remove it, "
                    f"or replace it with its target."
                )


def load_item(path: str | Path) -> Explanation | Attribution:
    """Read the file of one item (B = 1), an explanation or another method's map, and verify its checksum.

    Raises:
        InputError: if the file is missing, damaged, or neither of these.
    """
    return load_with_texts(Path(path))[0]


def load_with_texts(path: Path) -> tuple[Explanation | Attribution, dict[str, str]]:
    """The same as `load_item`, and all entries of the file as texts, also those that are fields of the item."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in TENSORS if name in set(file.keys())}
        if not tensors.keys() & {"mask", "map"}:
            raise ValueError("it has neither a mask nor a map")
        expected = metadata.pop(CHECKSUM)
        if expected != checksum(tensors, metadata):
            raise ValueError("its checksum is wrong")
        own: dict[str, Any] = {
            "targets": torch.tensor([int(metadata["target"])]),
            "score_image": torch.tensor([float(metadata["score_image"])]),
            "ids": (path.name.removesuffix(SUFFIX),),
        }
        if "map" in tensors:
            image = tensors["explanation"][None].float() if "explanation" in tensors else None
            known = "target", "score_image", "method", "hides"
            own["metadata"] = {name: text for name, text in metadata.items() if name not in known}
            own |= {name: metadata[name] for name in known[2:] if name in metadata}
            item = Attribution(map=tensors["map"][None], explanation=image, **own)
            return item, metadata
        own |= {name: torch.tensor([read(metadata[name])]) for name, read in ROWS.items() if name in metadata}
        found = Explanation(
            mask=tensors["mask"][None].float(),
            score_explanation=torch.tensor([float(metadata["score_explanation"])]),
            game=GAMES[metadata["game"]],
            coverage=Coverage.from_json(metadata["coverage"]) if "coverage" in metadata else None,
            ranking=tensors["ranking"][None] if "ranking" in tensors else None,
            seeds=int(metadata["seeds"]) if "seeds" in metadata else None,
            bands=tuple(map(int, metadata["bands"].split())) if "bands" in metadata else None,
            names=(metadata["name"],) if "name" in metadata else (),
            metadata={name: text for name, text in metadata.items() if name not in TYPED},
            **own,
        )
        return found, metadata
    except FileNotFoundError as error:
        raise InputError(f"Expected an explanation file, but {path} does not exist.") from error
    except UNREADABLE as error:
        if path.is_dir():
            raise InputError(f"Expected an explanation file, but {path} is a folder. Use load_explanations.") from error
        raise damaged(path, error) from error
