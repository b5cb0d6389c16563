"""How much faster than the textbook's procedure?

The textbook's: one image at a time, gates as masks of booleans behind each activation module, float32, 500 iterations
of gradient descent with learning rate 0.1 on the gradient divided by its maximum, noise 0.1 (Wagner et al., CVPR 2019,
supplement A). Ours: all photos in batches, with the settings of ``configs/faithfulness.yaml``, for as many iterations
as it takes to reach the textbook's deletion AUC on the same photos::

    python benchmarks/textbook.py PHOTO …

Prints seconds for each image and both AUC by RISE.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from common import Photos, header, parser, row
from torch import Tensor, nn

ACTIVATIONS = (nn.ReLU, nn.ReLU6)


def textbook(
    network: nn.Module, x: Tensor, target: int, iterations: int, lam: float = 1e-7, noise: float = 0.1, lr: float = 0.1
) -> Tensor:
    """The mask (3,H,W) of the deletion game for one normalized image (1,3,H,W), as anybody would write it."""
    references: list[Tensor] = []
    recording, call = True, 0

    def hook(module: nn.Module, inputs: Any, h: Tensor) -> Tensor:
        nonlocal call
        h = h.clone()  # the activation may work in place
        if recording:
            references.append(h.detach())
        else:
            reference, value = references[call], h.detach()
            call += 1
            is_open = (value <= reference.clamp(min=0)) & (value >= reference.clamp(max=0))
            h.register_hook(lambda gradient: gradient * is_open)
        return h

    hooks = [m.register_forward_hook(hook) for m in network.modules() if isinstance(m, ACTIVATIONS)]
    with torch.no_grad():
        network(x)
    recording = False
    mask = torch.ones_like(x, requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    for _ in range(iterations):
        call = 0
        e = mask * x + noise * torch.randn(x.shape, generator=generator)
        loss = network(e).softmax(1)[0, target] - lam * mask.sum()
        (gradient,) = torch.autograd.grad(loss, mask)
        with torch.no_grad():
            mask -= lr * gradient / gradient.abs().max().clamp(min=1e-30)
            mask.clamp_(0, 1)
    for one in hooks:
        one.remove()
    return mask.detach()[0]


def main() -> None:
    """Print the table."""
    made = parser(__doc__)
    made.set_defaults(iterations=500)
    made.add_argument("--ours", type=int, nargs="+", default=[10, 15, 20, 25, 30, 40, 50])
    made.add_argument("--batch_size", type=int, default=8)
    made.add_argument("--precision", default="32-true")
    made.add_argument("--noise", type=float, default=0.3, help="of ours")
    options = made.parse_args()
    photos = Photos(options.photos, options.network)
    header("procedure", "iterations", "deletion AUC", "insertion AUC", "s an image", "times faster")
    start = time.perf_counter()
    plain = Photos(options.photos, options.network).classifier.network  # as it is loaded: no memory format is chosen
    masks = [
        textbook(plain, x[None].contiguous(), int(target), options.iterations)
        for x, target in zip(photos.x, photos.targets, strict=True)
    ]
    seconds = (time.perf_counter() - start) / len(masks)
    deletion, insertion = photos.curves(1 - torch.stack(masks).mean(1))
    row("textbook", options.iterations, f"{deletion.mean():.3f}", f"{insertion.mean():.3f}", f"{seconds:.2f}", "")
    for iterations in options.ours:
        run = photos.explain(
            game="deletion",
            lam=1e-7,
            iterations=iterations,
            noise=options.noise,
            score="log_probability",
            patience=0,
            batch_size=options.batch_size,
            precision=options.precision,
            seed=options.seed,
        )
        row(
            "ours",
            iterations,
            f"{run.deletion.mean():.3f}",
            f"{run.insertion.mean():.3f}",
            f"{run.seconds:.2f}",
            f"{seconds / run.seconds:.1f}",
        )


if __name__ == "__main__":
    main()
