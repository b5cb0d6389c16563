"""Deletion and insertion curves: scores while pixels are removed or inserted in the order of a map.

Petsiuk, Das and Saenko, RISE, BMVC 2018, section 4. A `Profile` defines the details.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from fgvis_lightning.errors import InputError
from fgvis_lightning.method.tasks import task_of
from fgvis_lightning.metrics.checks import check_classes, check_inputs, check_maps, check_network, shape
from fgvis_lightning.metrics.order import ranked
from fgvis_lightning.metrics.profiles import AREAS, Profile, find_profile

Network = Callable[[Tensor], Tensor]


def curves(
    network: Network,
    x: Tensor,
    saliency: Tensor,
    targets: Tensor,
    profile: Profile | str = "rise",
    batch_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """Deletion and insertion curve of each image.

    Pictures that both curves share pass through the network only once: the clean image, and the pure substrate if both
    curves use the same one.

    Args:
        network: takes normalized images, returns logits (B,K).
        x: normalized images (B,3,H,W), on the device of the network and in its memory format.
        saliency: maps (B,H,W), high = evidence; only the order of values matters. The profile orders equal values.
        targets: class indices (B,).
        profile: the profile or its name.
        batch_size: pictures in one network pass, of one or several images; it determines the memory, B does not.

    Returns:
        Scores (B,S) of the deletion, from the clean image, and of the insertion, to the clean image; in float32, from 0
        to 1 unless the profile divides by the score of the clean image.

    Raises:
        InputError: if shapes do not match, maps contain NaN, the network lacks a class, or the profile is unknown.
    """
    deletion, insertion = _scores(network, x, saliency, targets, find_profile(profile), batch_size, (True, True))
    return deletion, insertion


def deletion_curve(
    network: Network,
    x: Tensor,
    saliency: Tensor,
    targets: Tensor,
    profile: Profile | str = "rise",
    batch_size: int = 64,
) -> Tensor:
    """The deletion curve of `curves` (B,S)."""
    return _scores(network, x, saliency, targets, find_profile(profile), batch_size, (True, False))[0]


def insertion_curve(
    network: Network,
    x: Tensor,
    saliency: Tensor,
    targets: Tensor,
    profile: Profile | str = "rise",
    batch_size: int = 64,
) -> Tensor:
    """The insertion curve of `curves` (B,S)."""
    return _scores(network, x, saliency, targets, find_profile(profile), batch_size, (False, True))[1]


def auc(scores: Tensor, profile: Profile | str = "rise") -> Tensor:
    """Area under each curve (B,), relative to the area under a constant 1.

    Args:
        scores: scores (B,S), S > 1.
        profile: the profile, which defines the normalization, or its name.

    Raises:
        InputError: if the scores have another shape, or if the profile is unknown.
    """
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise InputError(f"Expected scores to be (B,S) with S > 1, but got {shape(scores)}.")
    return AREAS[find_profile(profile).area][0](scores)


@torch.no_grad()
def _scores(
    network: Network,
    x: Tensor,
    saliency: Tensor,
    targets: Tensor,
    profile: Profile,
    batch_size: int,
    wanted: tuple[bool, bool],
) -> tuple[Tensor, Tensor]:
    """Deletion and insertion scores (B,S); (B,0) for curves that are not wanted."""
    check_inputs(x, targets, batch_size)
    saliency = check_maps("saliency", saliency, len(x), *x.shape[-2:])
    counts = profile.counts(*x.shape[-2:]).to(x.device)
    common = all(wanted)
    same = common and profile.deletion == profile.insertion
    amounts = counts if wanted[0] else counts[:0], counts[same : len(counts) - common] if wanted[1] else counts[:0]
    pictures = _pictures(x.detach(), saliency, profile, amounts, batch_size)
    scores = probabilities(network, pictures, targets.to(x.device)).view(len(x), -1)
    deletion, insertion = scores[:, : len(amounts[0])], scores[:, len(amounts[0]) :]
    if common:
        insertion = torch.cat([deletion[:, -1:] if same else deletion[:, :0], insertion, deletion[:, :1]], 1)
    if profile.relative:
        clean = (deletion[:, :1] if wanted[0] else insertion[:, -1:]).clamp(min=torch.finfo(scores.dtype).tiny)
        deletion, insertion = deletion / clean, insertion / clean
    return deletion, insertion


def probabilities(network: Network, pictures: Iterable[tuple[Tensor, list[int]]], targets: Tensor) -> Tensor:
    """Scores (N,) of pictures in batches (n,3,H,W), with the indices (n) of their images, whose targets are (B,).

    Raises:
        InputError: if the network lacks a class, or is in training mode.
    """
    check_network(network)
    parts: list[Tensor] = []
    for batch, owners in pictures:
        logits = network(batch)
        if not parts:
            check_classes(logits, targets, len(batch))
        parts.append(task_of(network).probability(logits.float(), targets[torch.tensor(owners, device=targets.device)]))
    return torch.cat(parts)


def _pictures(
    x: Tensor, saliency: Tensor, profile: Profile, amounts: tuple[Tensor, Tensor], batch_size: int
) -> Iterator[tuple[Tensor, list[int]]]:
    """All pictures of all images, ``batch_size`` at a time (n,3,H,W), and the indices of their images (n).

    Images are processed one after another: first the pictures of the deletion, then those of the insertion, with the
    given numbers of changed pixels or tiles.
    """
    left = len(x) * sum(map(len, amounts))
    last = x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last and not x.is_contiguous() else torch.contiguous_format

    def room() -> Tensor:
        size = min(batch_size, left), *x.shape[1:]
        return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=layout)

    pictures, owners = room(), list[int]()
    for index, (image, values) in enumerate(zip(x, saliency, strict=True)):
        place = _places(values.to(x.device), profile)
        for deleting, todo in zip((True, False), amounts, strict=True):
            if not len(todo):
                continue
            substrate = profile.deletion if deleting else profile.insertion
            with torch.autocast(image.device.type, enabled=False):
                other = substrate.make(image.float()).to(image.dtype)
            before, after = (image, other) if deleting else (other, image)
            while len(todo):
                now = todo[: len(pictures) - len(owners)]
                changed = place < now[:, None, None, None]
                torch.where(changed, after, before, out=pictures[len(owners) : len(owners) + len(now)])
                owners += [index] * len(now)
                todo, left = todo[len(now) :], left - len(now)
                if len(owners) == len(pictures):
                    yield pictures, owners
                    pictures, owners = room(), []


def _places(values: Tensor, profile: Profile) -> Tensor:
    """For each pixel of a map (H,W), the number of pixels or tiles that are changed before it (H,W)."""
    (height, width), tile = values.shape, profile.tile
    if tile > 1:  # tiles at the border are averaged over their existing pixels
        values = torch.nn.functional.avg_pool2d(values[None], tile, ceil_mode=True)[0]
    order = ranked(values.flatten(), profile.ties, profile.seed)
    places = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    places = places.view(values.shape)
    return places.repeat_interleave(tile, 0)[:height].repeat_interleave(tile, 1)[:, :width] if tile > 1 else places
