"""Which step rule, noise and score make the most faithful maps in so many iterations?

    python benchmarks/rules.py PHOTO … --marks 25 50 100 200
    python benchmarks/rules.py PHOTO … --network packaged_efficientnet_lite2 --rules "noise 0.3" "Adam"

Deletion and insertion AUC by RISE of the masks of the deletion game (or, with ``--game preservation --lam auto``, the
share of the score that is kept and the size of the evidence) after each number of iterations, means over the photos.
An iteration is one pass through the network, forward and backward. Choose on some photos, and report others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from common import Photos, header, parser, row, weight
from torch import Tensor
from torch.optim import Optimizer

from fgvis_lightning import FGVis
from fgvis_lightning.api import explain_with
from fgvis_lightning.data.batches import Batch
from fgvis_lightning.method.games import blend
from fgvis_lightning.method.storage import rounded


@dataclass
class Rule:
    """How a mask is changed by a gradient.

    Attributes:
        normalization: what the gradient of an image is divided by: its ``maximum``, its 0.99 ``quantile``, its
            standard ``deviation``; or it is replaced by its ``sign``.
        prox: λ of a proximal step for the size (soft thresholding of the evidence), in place of λ in the loss.
        decay: whether the learning rate falls to 0 along half a cosine.
        options: of FGVis.
    """

    normalization: str = "maximum"
    prox: float = 0.0
    decay: bool = False
    options: dict[str, Any] = field(default_factory=dict)


def sgd(lr: float = 0.1, momentum: float = 0.0) -> Any:
    """As a factory."""
    return partial(torch.optim.SGD, lr=lr, momentum=momentum)


def adam(lr: float) -> Any:
    """Likewise."""
    return partial(torch.optim.Adam, lr=lr)


BASE: dict[str, Any] = {"noise": 0.3, "score": "log_probability", "lam": 1e-7}
RULES: dict[str, Rule] = {
    "literature (noise 0.1, probability)": Rule(options={"noise": 0.1, "score": "probability"}),
    "noise 0": Rule(options={"noise": 0.0}),
    "noise 0.1": Rule(options={"noise": 0.1}),
    "noise 0.2": Rule(options={"noise": 0.2}),
    "noise 0.3": Rule(),
    "noise 0.5": Rule(options={"noise": 0.5}),
    "noise 1": Rule(options={"noise": 1.0}),
    "quantile": Rule("quantile", options={"optimizer": sgd(0.03)}),
    "deviation": Rule("deviation", options={"optimizer": sgd(0.01)}),
    "sign": Rule("sign", options={"optimizer": sgd(0.01)}),
    "learning rate 0.03": Rule(options={"optimizer": sgd(0.03)}),
    "learning rate 0.3": Rule(options={"optimizer": sgd(0.3)}),
    "learning rate 1": Rule(options={"optimizer": sgd(1.0)}),
    "momentum 0.9": Rule(options={"optimizer": sgd(0.1, 0.9)}),
    "Adam 0.01": Rule(options={"optimizer": adam(0.01)}),
    "Adam 0.03": Rule(options={"optimizer": adam(0.03)}),
    "cosine": Rule(decay=True, options={"optimizer": sgd(0.2)}),
    "proximal 0.01": Rule(prox=0.01, options={"lam": 0.0}),
    "proximal 0.001": Rule(prox=0.001, options={"lam": 0.0}),
    "λ 0": Rule(options={"lam": 0.0}),
    "λ 1e-6": Rule(options={"lam": 1e-6}),
    "λ 1e-5": Rule(options={"lam": 1e-5}),
}


class Ruled(FGVis):
    """FGVis with another rule, that keeps what its masks were after some iterations."""

    def __init__(self, network: Any, rule: Rule, marks: list[int], **options: Any) -> None:
        super().__init__(network, iterations=max(marks), patience=0, **{**options, **rule.options})
        self.rule, self.marks = rule, marks
        self.kept: dict[int, list[Tensor]] = {mark: [] for mark in marks}

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        gradient = self.mask.grad
        assert gradient is not None
        flat = gradient.flatten(1)
        if self.rule.normalization == "sign":
            gradient.sign_()
        elif self.rule.normalization != "maximum":
            size = flat.std(1) if self.rule.normalization == "deviation" else flat.abs().quantile(0.99, 1)
            gradient /= size[:, None, None, None].clamp(min=1e-30)
        else:
            super().on_before_optimizer_step(optimizer)
        if self.rule.decay:
            assert self.batch is not None
            done = torch.tensor(self.batch.iterations / self.iterations)
            for group in optimizer.param_groups:
                group["lr"] = optimizer.defaults["lr"] * float(0.5 * (1 + (torch.pi * done).cos()))

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        with torch.no_grad():
            if self.rule.prox:
                evidence = (self.game.evidence(self.mask) - self.rule.prox).clamp(min=0)
                self.mask.copy_(self.game.evidence(evidence))
            done = batch.iterations + 1
            if done in self.marks:
                best = self.solver.best() if self.options.auto else self.mask.clamp(0, 1)
                used = batch.used
                self.kept[done] += list(rounded(best, self.game)[used].float().clone())
        super().on_train_batch_end(outputs, batch, batch_idx)


def main() -> None:
    """Print the table."""
    made = parser(__doc__)
    made.add_argument("--marks", type=int, nargs="+", default=[25, 50, 100])
    made.add_argument("--rules", nargs="+", default=list(RULES))
    made.add_argument("--lam", type=weight, default=None)
    made.add_argument("--batch_size", type=int, default=8)
    options = made.parse_args()
    photos = Photos(options.photos, options.network)
    print(f"{len(photos.images)} photos, {options.network}, {options.game}\n")
    what = "deletion / insertion AUC" if options.lam != "auto" else "p(e)/p(x) / evidence"
    header("rule", *(f"{mark}: {what}" for mark in options.marks))
    base = {**BASE, "game": options.game, "seed": options.seed}
    if options.lam == "auto":
        base |= {"lam": "auto", "noise": 0.0}
    elif options.lam is not None:
        base["lam"] = options.lam
    for name in options.rules:
        rule = RULES[name]
        rule.options = {**base, **rule.options, **({"lam": "auto"} if options.lam == "auto" else {})}
        model = Ruled(options.network, rule, options.marks)
        explain_with(model, photos.images, photos.targets.tolist(), options.batch_size, accelerator="cpu")
        cells = []
        for mark in options.marks:
            masks = torch.stack(model.kept[mark])
            if options.lam == "auto":
                e = blend(photos.x, masks, None)
                kept = photos.scores(e)
                cells.append(f"{(kept / photos.score_image).mean():.3f} / {model.game.size(masks).mean():.3f}")
            else:
                found = photos.curves(model.game.evidence(masks).mean(1))
                cells.append(" / ".join(f"{auc.mean():.3f}" for auc in found))
        row(name, *cells)


if __name__ == "__main__":
    main()
