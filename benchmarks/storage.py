"""What explanations take on disk, by type and compression, and what rounding to that type does to their scores.

    python benchmarks/storage.py PHOTO … --lam 1e-7 --iterations 100

Three runs: preservation and deletion by ``lam: auto``, and ``--game`` with a fixed λ. Of the last one the masks are
taken in float32, before they are rounded. The evidence of ``auto`` is float16 from the start, because that is what was
judged: there float32 and float16 lose nothing. A change is that of an image's score, or of its evidence's AUC by RISE.
Sizes and times are of one image's evidence, its name and shape included; then those of whole files, where evidence that
goes is one minus a mask in float32, of panels and of TensorBoard's pictures.
"""

from __future__ import annotations

import lzma
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import Photos, header, parser, row
from safetensors.torch import load, save
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from fgvis_lightning import DefendedCNN, Explanation, load_explanation
from fgvis_lightning.method.games import GAMES, Game, blend, probability
from fgvis_lightning.results.figures import explanation_image, panel, pixels

Codec = Callable[[bytes], bytes]
CODECS: dict[str, tuple[Codec, Codec]] = {
    "raw": (bytes, bytes),
    "zlib": (lambda data: zlib.compress(data, 6), zlib.decompress),
    "lzma": (lzma.compress, lzma.decompress),
}
TYPES = [getattr(torch, name) for name in ("float32", "float16", "bfloat16", "uint8", "float8_e4m3fn")]


def to_type(evidence: Tensor, kind: torch.dtype) -> Tensor:
    """Evidence as it is to be stored; integers count 255ths."""
    return (255 * evidence).round().to(kind) if kind == torch.uint8 else evidence.to(kind)


def from_type(stored: Tensor) -> Tensor:
    """And back."""
    return stored.float() / 255 if stored.dtype == torch.uint8 else stored.float()


def milliseconds(call: Callable[[], Any]) -> float:
    """Of one call, the best of five."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def float32_masks(photos: Photos, game: Game, lam: float, iterations: int) -> Tensor:
    """The masks of a fixed λ before anything rounds them (B,3,H,W): the steps of `explain`, without Lightning."""
    network = DefendedCNN(photos.network)
    network.record(photos.x)
    mask = torch.full_like(photos.x, game.start).requires_grad_()
    for _ in range(iterations):
        score = probability(network(blend(photos.x, mask, None)), photos.targets)
        (gradient,) = torch.autograd.grad(game.loss(score, mask, lam).sum(), mask)
        largest = gradient.abs().amax((1, 2, 3), keepdim=True)
        with torch.no_grad():
            mask.add_(gradient / torch.where(largest > 0, largest, 1), alpha=-0.1).clamp_(0, 1)
    return mask.detach().contiguous().cpu()


def masks(photos: Photos, name: str, game: Game, exact: Tensor, path: Path) -> None:
    """A row for each type of the evidence in masks (B,3,H,W); its cells with slashes are for each compression."""
    scores, _ = photos.judge(game, exact)
    evidence = game.evidence(exact)
    curves = photos.curves(evidence.mean(1))
    for kind in TYPES:
        stored = [to_type(one, kind) for one in evidence]
        rounded = torch.stack([from_type(one) for one in stored])
        score, reach = photos.judge(game, game.evidence(rounded))
        change = (score - scores).abs()
        others = photos.curves(rounded.mean(1))
        auc = " / ".join(f"{(a - b).abs().mean():.3f}" for a, b in zip(curves, others, strict=True))
        size, gigabytes, write, read = [], [], [], []
        for pack, unpack in CODECS.values():

            def save_one(pack: Codec = pack, kind: torch.dtype = kind) -> None:
                path.write_bytes(pack(save({"mask": to_type(evidence[0], kind)})))

            def load_one(unpack: Codec = unpack) -> Tensor:
                return from_type(load(unpack(path.read_bytes()))["mask"])

            bytes_each = sum(len(pack(save({"mask": one}))) for one in stored) / len(stored)
            size.append(f"{bytes_each / 1e3:.1f}")
            gigabytes.append(f"{5e4 * bytes_each / 1e9:.2f}")
            write.append(f"{milliseconds(save_one):.1f}")
            read.append(f"{milliseconds(load_one):.1f}")
        row(
            *(name, str(kind).removeprefix("torch."), " / ".join(size), " / ".join(gigabytes)),
            *(f"{change.max():.2g}", f"{change.mean():.2g}", f"{reach.float().mean():.2f}", auc),
            *(" / ".join(write), " / ".join(read)),
        )


def files(photos: Photos, explanation: Explanation, folder: Path) -> None:
    """A row for each kind of file, for the first photo."""
    evidence, image = explanation.evidence[0], photos.images[0]
    shown = explanation_image(image, evidence, torch.tensor(photos.normalization[0])[:, None, None])
    views = {"image": image, "evidence": shown, "mask": evidence}
    path, board = folder / "file.safetensors", folder / "tensorboard"

    def log(tag: str, picture: Any, dataformats: str) -> None:
        with SummaryWriter(str(board / tag)) as writer:
            writer.add_image(tag, picture, dataformats=dataformats)

    drawn = pixels(panel([views], "title"))
    for name, call, made in (
        ("explanation, write", lambda: explanation.save(path, 0, {}), path),
        ("explanation, read", lambda: load_explanation(path), path),
        ("panel", lambda: panel([views], "title").savefig(folder / "panel.png"), folder / "panel.png"),
        ("TensorBoard, mask", lambda: log("mask", evidence, "CHW"), board / "mask"),
        ("TensorBoard, explanation", lambda: log("explanation", shown, "CHW"), board / "explanation"),
        ("TensorBoard, panel", lambda: log("panel", drawn, "HWC"), board / "panel"),
    ):
        spent = f"{milliseconds(call):.1f}"
        written = sorted(made.glob("*")) if made.is_dir() else [made]  # one file for each call
        row(name, f"{written[-1].stat().st_size / 1e3:.1f}", spent)


def main() -> None:
    """Make the explanations and print both tables."""
    arguments = parser(__doc__)
    arguments.add_argument("--lam", type=float, default=1e-7)
    options = arguments.parse_args()
    photos = Photos(options.photos, options.network)
    print(f"{len(options.photos)} photos, {options.iterations} iterations\n")
    each = " / ".join(CODECS)
    judged = "largest change of score", "mean change", "reach level", "AUC change: deletion / insertion"
    header("run", "type", f"kB: {each}", f"GB for 50,000: {each}", *judged, f"write, ms: {each}", f"read, ms: {each}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in ("preservation", "deletion"):
            explanation = photos.explain(game=name, iterations=options.iterations, seed=options.seed).explanation
            masks(photos, f"{name}, λ auto", GAMES[name], explanation.mask, folder / "mask")
        exact = float32_masks(photos, GAMES[options.game], options.lam, options.iterations)
        masks(photos, f"{options.game}, λ {options.lam:g}", GAMES[options.game], exact, folder / "mask")
        print()
        header("file", "kB", "ms")
        files(photos, explanation, folder)


if __name__ == "__main__":
    main()
