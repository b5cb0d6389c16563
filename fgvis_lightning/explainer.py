"""FGVis: a LightningModule whose only parameter is the mask.

One epoch explains one batch of items; one training step is one iteration of the masks' optimizer
(Wagner et al., CVPR 2019, section 3 and supplement A). Lightning's automatic optimization drives it:
``training_step`` is the objective, ``on_before_optimizer_step`` normalizes the gradient of each
image, ``on_train_batch_end`` projects the masks back to [0,1].
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fgvis_lightning.coverage import GATE_FREE, Coverage
from fgvis_lightning.data import Batch, Sweep
from fgvis_lightning.defense import DefendedCNN
from fgvis_lightning.errors import InputError
from fgvis_lightning.games import GAMES, REFERENCES, SCORES, blend, probability
from fgvis_lightning.network import Classifier, load_classifier
from fgvis_lightning.search import Search
from fgvis_lightning.store import Explanation, rounded


def sgd(params: Iterable[nn.Parameter]) -> Optimizer:
    """The literature's optimizer: SGD with learning rate 0.1 on the normalized gradient."""
    return torch.optim.SGD(params, lr=0.1)


class FGVis(pl.LightningModule):
    """Explains a batch of (image, target class) items at a time.

    Args:
        network: a classifier of normalized images, left as it is; the name of a timm model; or a
            packaged network, ``packaged_efficientnet_lite0``.
        checkpoint: file with the network's weights (a ``state_dict``), read with ``weights_only=True``.
        weights: torchvision's weights entry of ``network``, for its preprocessing and class names;
            the command line fills it in from ``network``.
        mean: normalization by channel, where it is not to be the network's own.
        std: likewise.
        size: height and width of the network's input in pixels, likewise.
        resize: length of an image's short side before the center crop, likewise.
        interpolation: how images are resized, likewise.
        classes: names of the classes, or a text file with one on each line, likewise.
        game: what is looked for, see `fgvis_lightning.games`.
        lam: weight λ ≥ 0 of the mask's size; ``auto`` finds for each image the smallest evidence that
            reaches ``level``.
        level: for ``lam: auto``, the score to reach as a share of the image's own: at least, for
            preservation and generation (1.0 unless given); at most, for deletion and repression (0.1).
        iterations: steps of the optimizer for each batch.
        defended: whether the gradient is gated; without, masks find adversarial patterns.
        exempt: nonlinearities to leave without a gate, by the name of a function or the class of a module:
            ``sigmoid``, ``my_project.layers.LayerNorm``. What flows through them is not defended.
        gated: nonlinearities to gate beside those that always are, likewise: ``abs``, ``my_project.layers.Swish``.
        output: which of the network's several outputs the logits are: a key, an attribute or an index; unless
            given, the one that is called ``logits``.
        score: ``probability`` or ``log_probability`` of the target class.
        reference: what the mask uncovers where it is 0: ``zero``, ``blurred``, ``noise`` or ``black``.
        noise: standard deviation of the Gaussian noise added to e in each iteration, in normalized space.
        seed: of the noise and of the proposals of ``lam: auto``.
        optimizer: of the mask, e.g. ``torch.optim.Adam``.
    """

    def __init__(
        self,
        network: nn.Module | str = "packaged_efficientnet_lite0",
        *,
        checkpoint: str | None = None,
        weights: str | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        size: tuple[int, ...] | None = None,
        resize: int | None = None,
        interpolation: str | None = None,
        classes: list[str] | str | None = None,
        game: Literal["preservation", "deletion", "generation", "repression"] = "deletion",
        lam: float | Literal["auto"] = "auto",
        level: float | None = None,
        iterations: int = 500,
        defended: bool = True,
        exempt: list[str] | None = None,
        gated: list[str] | None = None,
        output: int | str | None = None,
        score: Literal["probability", "log_probability"] = "probability",
        reference: Literal["zero", "blurred", "noise", "black"] = "zero",
        noise: float = 0.0,
        seed: int = 0,
        optimizer: Callable[[Iterable[Any]], Optimizer] = sgd,
    ) -> None:
        super().__init__()
        for name, given, known in (
            ("game", game, GAMES),
            ("score", score, SCORES),
            ("reference", reference, REFERENCES),
        ):
            if given not in known:
                raise InputError(f"Expected {name} to be one of {', '.join(known)}, but got {given!r}.")
        if lam != "auto" and not (isinstance(lam, int | float) and 0 <= lam < float("inf")):
            raise InputError(f"Expected lam to be 'auto' or a number of at least 0, but got {lam!r}.")
        if iterations < 1:
            raise InputError(f"Expected iterations to be at least 1, but got {iterations}.")
        if not 0 <= noise < float("inf"):
            raise InputError(f"Expected noise to be a number of at least 0, but got {noise}.")
        if level is not None and not level > 0:
            raise InputError(f"Expected level to be more than 0, but got {level}.")
        self.classifier: Classifier = load_classifier(
            network,
            checkpoint=checkpoint,
            weights=weights,
            mean=mean,
            std=std,
            size=size,
            resize=resize,
            interpolation=interpolation,
            classes=classes,
        )
        self.network = DefendedCNN(
            self.classifier.network, exempt=exempt or (), gated=gated or (), output=output
        ).eval()
        self.game = GAMES[game]
        self.lam = lam
        self.level = level if level is not None else (1.0 if self.game.keeps else 0.1)
        self.iterations = iterations
        self.defended = defended
        self.score = SCORES[score]
        self.reference = REFERENCES[reference]
        self.noise = noise
        self.seed = seed
        self.make_optimizer = optimizer
        self.mask = nn.Parameter(torch.empty(0))
        self.batch: Batch | None = None
        self.coverage = self.network.coverage
        self._result: Explanation | None = None
        self._warned = False

    # --- Lightning's hooks, in the order in which they run ---

    def setup(self, stage: str) -> None:
        if self.trainer.world_size > 1:
            raise InputError(
                f"Expected one device, but got {self.trainer.world_size}: masks of different devices must not be "
                f"averaged, as {type(self.trainer.strategy).__name__} would. Use --trainer.devices 1."
            )
        self.network.to(memory_format=torch.channels_last)
        sweep = getattr(getattr(self.trainer, "datamodule", None), "sweep", None)
        if sweep is not None and sweep.shape is not None:
            self.mask = nn.Parameter(torch.ones(sweep.shape))  # so that Lightning's summary counts it

    def configure_optimizers(self) -> Optimizer:
        return self.make_optimizer([self.mask])

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if batch is not self.batch:
            self._begin(batch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        clean = blend(self._x, self.mask, self._reference)
        e = clean
        if self.noise:
            # The same draw for every image, so that no image depends on its place in the batch.
            draw = torch.randn(e.shape[1:], generator=self._generator, device=e.device, dtype=e.dtype)
            e = clean + self.noise * draw
        with nullcontext() if self.defended else self.network.undefended():
            logits = self.network(e)
        score = self.score(logits, self.targets)
        self._log(batch, logits.detach())
        if self._search is None:
            return self.game.loss(score, self.mask, float(self.lam)).sum()
        # The gradient may be a noisy one; what a mask is worth is not.
        judged = self.plain(clean) if self.noise else logits.detach()
        self._search.observe(self.mask.detach(), judged)
        return self.game.loss(score, self.mask, 0.0).sum()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Divide the gradient of each image by its largest absolute value."""
        assert self.mask.grad is not None
        largest = self.mask.grad.abs().amax((1, 2, 3), keepdim=True)
        self.mask.grad /= torch.where(largest > 0, largest, 1)
        if self._search is not None:
            self._search.learn(self.mask.grad)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        with torch.no_grad():
            self.mask.clamp_(0, 1)
            if self._search is not None:
                self.mask.copy_(self._search.propose(self.mask))

    def on_train_epoch_end(self) -> None:
        sweep = self.trainer.train_dataloader
        if isinstance(sweep, Sweep) and sweep.exhausted:
            self.trainer.should_stop = True

    # --- one batch ---

    def _begin(self, batch: Batch) -> None:
        """Reset the masks and run the reference pass on a new batch."""
        self.batch = batch
        self._result = None
        x = self.normalize(batch.images)
        logits = self._first_pass(x)
        self.targets = self._resolve(batch.targets.to(x.device), logits)
        self.score_image = probability(logits, self.targets)
        self._x = x
        self._generator = torch.Generator(x.device).manual_seed(self.seed)
        black = self.normalize(torch.zeros(3, 1, 1, device=x.device))
        self._reference = self.reference(x, black, self._generator)
        # In the images' memory format: mask * x takes the mask's, and another one rounds differently.
        self.mask.data = torch.full_like(x, self.game.start)
        with self.trainer.precision_plugin.forward_context():
            self.network.record(x)
            if self.defended:
                self.network.verify(blend(x, torch.ones_like(self.mask), self._reference))
        self.coverage = self.network.coverage
        if self.defended and self.coverage.gate_free and not self._warned:
            self._warned = True
            warnings.warn(f"{self.classifier.name}: {GATE_FREE}", stacklevel=2)
        self.mask.grad = None
        for optimizer in self.trainer.optimizers:
            optimizer.state.clear()
        self._search = None
        if self.lam == "auto":
            start = self.mask.detach()
            whole = self._score_mask(self.game.evidence(torch.ones_like(start)))
            self._search = Search(self.game, self.level, logits, self.targets, start, whole, self.iterations, self.seed)

    def normalize(self, images: Tensor) -> Tensor:
        """Images (B,3,H,W), 8-bit or in [0,1], as the network takes them, on this module's device."""
        scale = 1 if images.is_floating_point() else 255
        images = images.to(self.mask.device, self.mask.dtype)
        mean, std = (
            images.new_tensor(values)[:, None, None]
            for values in (self.classifier.preprocessing.mean, self.classifier.preprocessing.std)
        )
        x = (images / scale - mean) / std
        return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x

    @torch.no_grad()
    def plain(self, x: Tensor) -> Tensor:
        """The network's own logits (B,K) of normalized images, without gates and outside autocast."""
        with self.network.undefended(), torch.autocast(x.device.type, enabled=False):
            logits: Tensor = self.network(x)
        return logits

    def _first_pass(self, x: Tensor) -> Tensor:
        name = self.classifier.name
        try:
            logits = self.plain(x)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            height, width = x.shape[-2:]
            raise InputError(
                f"Expected {name} to run on images of {height}×{width} pixels, but it does not "
                f"({str(error).splitlines()[0]}). Give the size that it takes: larger images, or --model.size."
            ) from error
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise InputError(f"Expected {name} to return logits of shape ({len(x)}, classes), but got {shape}.")
        if not logits.isfinite().all():
            bad = int((~logits.isfinite()).any(1).sum())
            raise InputError(
                f"Expected {name} to return finite logits, but {bad} of {len(x)} images gave NaN or infinity. "
                f"Check its weights and its normalization ({self.classifier.preprocessing})."
            )
        return logits

    def _resolve(self, targets: Tensor, logits: Tensor) -> Tensor:
        """Class indices (B,): -k becomes the k-th most probable class."""
        count = logits.shape[1]
        if targets.max() >= count or targets.min() < -count:
            worst = int(targets.max()) if targets.max() >= count else int(targets.min())
            raise InputError(
                f"Expected targets among the {count} classes of {self.classifier.name} (0 to {count - 1}), "
                f"but got {worst if worst >= 0 else f'the {-worst} most probable'}."
            )
        if self.classifier.classes and len(self.classifier.classes) != count:
            raise InputError(
                f"Expected {count} class names for {self.classifier.name}, but got {len(self.classifier.classes)}."
            )
        ranked = logits.argsort(dim=1, descending=True, stable=True)
        by_rank = ranked.gather(1, (-targets - 1).clamp(min=0)[:, None]).squeeze(1)
        return torch.where(targets < 0, by_rank, targets)

    @torch.no_grad()
    def explanation(self) -> Explanation:
        """The current batch's explanation without the padding, on the CPU: masks rounded to the files' type.

        Its scores come from plain passes of the network over x and over e made from the rounded masks.
        """
        if self._result is None:
            assert self.batch is not None
            mask = rounded(self.mask) if self._search is None else self._search.result(self._score_mask)
            logits = self._score_mask(mask)
            feasible = self._search.feasible & self._search.reached(logits) if self._search is not None else None
            n = len(self.batch)
            self.coverage = self._final_coverage(mask, n)
            self._result = Explanation(
                mask=mask[:n].float().contiguous().cpu(),
                targets=self.targets[:n].cpu(),
                score_image=self.score_image[:n].float().cpu(),
                score_explanation=probability(logits, self.targets)[:n].float().cpu(),
                game=self.game,
                feasible=None if feasible is None else feasible[:n].cpu(),
                coverage=self.coverage,
            )
        return self._result

    def _final_coverage(self, mask: Tensor, n: int) -> Coverage:
        """Coverage with the share of closed gates at the masks (B,3,H,W), of the first ``n`` images."""
        if not self.defended:
            with self.network.undefended():
                self.network(blend(self._x, mask, self._reference))
            return self.network.coverage
        with self.trainer.precision_plugin.forward_context():
            closed = self.network.closed(blend(self._x, mask, self._reference))
        return replace(self.network.coverage, closed=closed[:n].cpu())

    def _score_mask(self, mask: Tensor) -> Tensor:
        return self.plain(blend(self._x, mask, self._reference))

    def _log(self, batch: Batch, logits: Tensor) -> None:
        n = len(batch)
        with torch.no_grad():
            score = probability(logits, self.targets)[:n].mean()
            sparsity = 1 - self.game.size(self.mask[:n]).mean()
        self.log("score", score, prog_bar=True, batch_size=n)
        self.log("sparsity", sparsity, prog_bar=True, batch_size=n)

    # --- what makes two runs the same ---

    def settings(self) -> dict[str, Any]:
        """Everything that an explanation depends on beside the image and the weights."""
        optimizer = self.make_optimizer([nn.Parameter(torch.zeros(1))])
        rule = {key: value for key, value in sorted(optimizer.defaults.items()) if value is not None}
        preprocessing = asdict(self.classifier.preprocessing)
        del preprocessing["source"]
        return {
            "network": self.classifier.name,
            **preprocessing,
            "game": self.game.name,
            "lam": self.lam,
            **({"level": self.level} if self.lam == "auto" else {}),
            "iterations": self.iterations,
            "defended": self.defended,
            "exempt": self.network.listed["exempt"],
            "gated": self.network.listed["gated"],
            "output": self.network.output,
            "score": self.score.__name__,
            "reference": self.reference.__name__,
            "noise": self.noise,
            "seed": self.seed,
            "optimizer": f"{type(optimizer).__name__} {rule}",
            "precision": str(self.trainer.precision),
        }

    def fingerprint(self) -> str:
        """SHA-256 over `settings` and the weights, as hexadecimal digits."""
        text = json.dumps(self.settings(), sort_keys=True, default=list) + self.classifier.fingerprint()
        return hashlib.sha256(text.encode()).hexdigest()
