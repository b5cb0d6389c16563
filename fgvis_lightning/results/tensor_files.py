"""Tensor files that are written completely or not at all.

A file is written under a temporary name and moved into place. Its string metadata contains a checksum of its content.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fgvis_lightning.errors import InputError

SUFFIX = ".safetensors"
EXPLANATIONS = "explanations"  # the folder of these files in a results folder
CHECKSUM = "checksum"
UNREADABLE = (SafetensorError, KeyError, ValueError, TypeError, OSError, EOFError)
"""Exceptions that reading a damaged or foreign file raises."""


def item_file(output: Path, id: str) -> Path:
    """The file of an item in a results folder."""
    return output / EXPLANATIONS / (id + SUFFIX)


def write_whole(path: Path, data: bytes, owner: str | None = None) -> None:
    """Write a file completely or not at all, even in case of a power failure.

    Args:
        path: the file; its folder must exist.
        data: content of the file.
        owner: part of the temporary name that is unique to this process; default: the process id.
    """
    # Two threads may write the same file: the failure of an image shared by two items.
    temporary = path.with_name(f".{path.name}.{threading.get_native_id()}.{owner or f'pid{os.getpid()}'}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            # Without this, a file system may write the new name before the data. If the name is lost instead, the file
            # is just missing, so its folder need not be synchronized.
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], owner: str | None = None
) -> None:
    """Write tensors with metadata and a checksum of both, completely or not at all.

    Args:
        path: the file; its folder must exist.
        tensors: tensors by name, in float16 or float32.
        metadata: strings to store with them; an old checksum among them is replaced.
        owner: see `write_whole`.
    """
    metadata = {name: text for name, text in metadata.items() if name != CHECKSUM}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    entries: dict[str, Any] = {}
    data = b""
    # Wider data types first, so that each tensor is aligned to the size of its numbers, as readers require.
    for name, tensor in sorted(tensors.items(), key=lambda pair: (-pair[1].element_size(), pair[0])):
        kind = {torch.float16: "F16", torch.float32: "F32"}[tensor.dtype]
        start, data = len(data), data + tensor.numpy().tobytes()
        entries[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, len(data)]}
    # Written by hand: safetensors shuffles metadata in both directions, but equal explanations must be equal files.
    own = {**dict(sorted(metadata.items())), CHECKSUM: checksum(tensors, metadata)}
    header = json.dumps({"__metadata__": own, **entries}).encode()
    header += b" " * (-len(header) % 8)
    write_whole(path, struct.pack("<Q", len(header)) + header + data, owner)


def load_metadata(path: Path) -> dict[str, str]:
    """The metadata of an explanation file, without its tensors.

    Raises:
        InputError: if the file is missing, or if its metadata is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except UNREADABLE as error:
        raise damaged(path, error) from error


def change_metadata(path: Path, values: Mapping[str, str], owner: str | None = None) -> None:
    """Replace metadata of a tensor file; nothing is written if it is up to date.

    Raises:
        InputError: if the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            if metadata == {**metadata, **values}:
                return
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is not a dict
    except UNREADABLE as error:
        raise damaged(path, error) from error
    save_tensors(path, tensors, {**metadata, **values}, owner)


def checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 of the tensors' bytes, in the order of their names, and of the metadata, as hexadecimal digits."""
    digest = hashlib.sha256()
    for _, tensor in sorted(tensors.items()):
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    digest.update(json.dumps(dict(metadata), sort_keys=True).encode())
    return digest.hexdigest()


def damaged(path: Path, error: Exception) -> InputError:
    """The error for a file that cannot be read."""
    return InputError(
        f"Expected an explanation file, but {path} is damaged or of another kind ({error}). "
        f"To compute it again, run the command that made it."
    )
