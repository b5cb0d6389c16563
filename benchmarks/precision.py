"""How far explanations in each precision are from those in float32.

    python benchmarks/precision.py PHOTO … --lam auto 1e-7 --iterations 100

Two float32 runs with different batch sizes differ, too: the second row says how much, and is the yardstick for
the others. ``lam: auto`` accepts and rejects proposals, so a difference in the last bit can send it elsewhere; a
fixed λ shows what is left without that. All explanations are scored by the plain network in float32.

Gates are compared neuron by neuron, with each precision's own rounding, at the masks of the first row: which share
is closed, which share is as in the first row, and how many of those closed in either are closed in both. On a CPU
64-true takes ten times as long as the others.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from common import COMPARED, DEVICE, Photos, header, parser, row, weight
from torch import Tensor

from fgvis_lightning import DefendedCNN, InputError
from fgvis_lightning.defense.container import _Reference
from fgvis_lightning.method.games import blend
from fgvis_lightning.networks.load import load_classifier

PRECISIONS: dict[str, tuple[torch.dtype, torch.dtype | None]] = {  # of the weights, and of autocast
    "32-true": (torch.float32, None),
    "bf16-mixed": (torch.float32, torch.bfloat16),
    "16-mixed": (torch.float32, torch.float16),
    "64-true": (torch.float64, None),
    "bf16-true": (torch.bfloat16, None),
}


class Gates(DefendedCNN):
    """A defended network that tells which gates are open, neuron by neuron."""

    @torch.no_grad()
    def open(self, x: Tensor, e: Tensor) -> Tensor:
        """Open gates at ``e`` (B, number of neurons)."""
        layers: list[Tensor] = []

        def act(reference: _Reference, h: Tensor) -> None:
            layers.append(~reference.closed(h).flatten(1).cpu())

        self.record(x)
        self._replay(e, act)
        return torch.cat(layers, 1)


def open_gates(photos: Photos, network: str, precision: str, mask: Tensor, size: int) -> Tensor:
    """Open gates (B, number of neurons) at the masks, as a run of that precision and batch size has them."""
    kind, autocast = PRECISIONS[precision]
    gates = Gates(load_classifier(network).network).to(DEVICE, kind).to(memory_format=torch.channels_last)
    x = photos.normalized(kind)
    e = blend(x, mask.to(x), None).contiguous(memory_format=torch.channels_last)
    with torch.autocast(DEVICE, dtype=autocast) if autocast else nullcontext():
        return torch.cat([gates.open(*pair) for pair in zip(x.split(size), e.split(size), strict=True)])


def main() -> None:
    """Run every precision for each λ and print a table."""
    arguments = parser(__doc__)
    arguments.add_argument("--lam", nargs="+", type=weight, default=["auto", 1e-7])
    arguments.add_argument("--precisions", nargs="+", choices=list(PRECISIONS), default=list(PRECISIONS))
    arguments.add_argument("--yardstick", type=int, default=1, metavar="BATCH_SIZE", help="of the second row; 0: none")
    options = arguments.parse_args()
    photos = Photos(options.photos, options.network)
    whole = len(options.photos)
    runs = [("32-true", whole), *([("32-true", options.yardstick)] if options.yardstick else [])]
    runs += [(precision, whole) for precision in options.precisions if precision != "32-true"]
    if DEVICE == "cpu" and ("16-mixed", whole) in runs:
        runs.remove(("16-mixed", whole))
        print("16-mixed needs CUDA: on a CPU Lightning makes bf16-mixed of it without a word.\n")
    print(f"{options.game}, {whole} photos, {options.iterations} iterations, {torch.get_num_threads()} threads\n")
    header("λ", "precision", "batch size", "gates closed", "gates as above", "closed in both", *COMPARED)
    for lam in options.lam:
        reference = pattern = None
        for precision, size in runs:
            try:
                run = photos.explain(
                    game=options.game,
                    lam=lam,
                    iterations=options.iterations,
                    seed=options.seed,
                    precision=precision,
                    batch_size=size,
                )
                reference = reference or run
                gates = open_gates(photos, options.network, precision, reference.explanation.mask, size)
            except (InputError, RuntimeError) as error:
                row(lam, precision, size, f"does not run: {str(error).splitlines()[0]}")
                continue
            pattern = gates if pattern is None else pattern
            row(
                lam,
                precision,
                size,
                f"{(~gates).float().mean():.4f}",
                f"{(gates == pattern).float().mean():.4f}",
                f"{(~gates & ~pattern).sum() / (~gates | ~pattern).sum():.3f}",
                *photos.compare(run, reference),
            )


if __name__ == "__main__":
    main()
