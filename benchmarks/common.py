"""What the benchmarks of precision, batch size and storage share: photos, plain scores, RISE's curves, tables."""

from __future__ import annotations

import argparse
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fgvis_lightning import Explanation, explain
from fgvis_lightning.data.images import load_image
from fgvis_lightning.method.games import Game, blend, probability
from fgvis_lightning.metrics import auc, curves, rank_correlation
from fgvis_lightning.networks.load import load_classifier

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COMPARED = ("mask r", "map ρ", "deletion AUC", "insertion AUC", "evidence", "reach level", "s", "CPU s")


def parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments that all of them have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("photos", nargs="+")
    made.add_argument("--network", default="packaged_efficientnet_lite0")
    made.add_argument("--game", default="deletion")
    made.add_argument("--iterations", type=int, default=150)
    made.add_argument("--seed", type=int, default=0)
    return made


def weight(text: str) -> Any:
    """λ as the command line has it."""
    return "auto" if text == "auto" else float(text)


def row(*cells: object) -> None:
    """Print a row of a Markdown table."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def header(*names: str) -> None:
    """Print the head of a Markdown table."""
    row(*names)
    row(*["---"] * len(names))


class Run(NamedTuple):
    """Explanations of all photos, their AUC (B,) by RISE, and seconds for each photo: by the clock, of the CPUs."""

    explanation: Explanation
    deletion: Tensor
    insertion: Tensor
    seconds: float
    cpu_seconds: float


class Photos:
    """Photos with their predicted classes, and the plain network in float32 that judges all explanations of them."""

    def __init__(self, paths: list[str], network: str) -> None:
        self.classifier = load_classifier(network)
        preprocessing = self.classifier.preprocessing
        self.normalization = preprocessing.mean, preprocessing.std
        self.images = torch.stack([load_image(path, preprocessing) for path in paths]) / 255
        self.network = self.classifier.network.to(DEVICE).to(memory_format=torch.channels_last)
        self.x = self.normalized(torch.float32)
        self.targets = torch.cat([self.network(x[None]).argmax(1) for x in self.x])
        self.score_image = self.scores(self.x)

    def normalized(self, dtype: torch.dtype) -> Tensor:
        """The photos as the network takes them (B,3,H,W)."""
        images = self.images.to(DEVICE, dtype)
        mean, std = (images.new_tensor(values)[:, None, None] for values in self.normalization)
        return ((images - mean) / std).contiguous(memory_format=torch.channels_last)

    def explanation(self, **options: Any) -> Explanation:
        """Explain the predicted classes by `explain` with these options."""
        options = {
            "noise": 0.0,
            "normalize": self.normalization,
            "accelerator": "gpu" if DEVICE == "cuda" else "cpu",
            **options,
        }
        return explain(self.network, self.images, self.targets, **options)

    def explain(self, **options: Any) -> Run:
        """The same, timed, with the AUC of its ranking."""
        start = time.perf_counter(), time.process_time()
        explanation = self.explanation(**options)
        seconds = (time.perf_counter() - start[0]) / len(self.images)
        cpu_seconds = (time.process_time() - start[1]) / len(self.images)
        return Run(explanation, *self.curves(explanation.saliency()), seconds, cpu_seconds)

    def scores(self, images: Tensor) -> Tensor:
        """Probability of the predicted class (B,) of normalized images, one at a time."""
        pairs = zip(images, self.targets, strict=True)
        return torch.cat([probability(self.network(image[None]), target[None]) for image, target in pairs])

    def judge(self, game: Game, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of e (B,), and whether they reach the level that is asked for unless another is given (B,)."""
        scores = self.scores(blend(self.x, mask.to(self.x), None))
        ratio = scores / self.score_image
        return scores, ratio >= 1 if game.keeps else ratio <= 0.1

    def compare(self, run: Run, reference: Run) -> list[str]:
        """The cells under `COMPARED`, each a mean over the photos.

        Correlation of masks (Pearson) and maps (Spearman) with the reference's; both AUC, with the mean size of
        the difference from the reference's in brackets; size of the evidence; share of the photos that reach
        their level; seconds for each photo.
        """
        explanation, other = run.explanation, reference.explanation
        aucs = (run.deletion, reference.deletion), (run.insertion, reference.insertion)
        return [
            f"{correlation(explanation.mask.flatten(1), other.mask.flatten(1)):.3f}",
            f"{rank_correlation(explanation.saliency(), other.saliency()).nanmean():.3f}",
            *(f"{auc.mean():.3f} ({(auc - before).abs().mean():.3f})" for auc, before in aucs),
            f"{1 - explanation.sparsity.mean():.3f}",
            f"{self.judge(explanation.game, explanation.mask)[1].float().mean():.2f}",
            f"{run.seconds:.1f}",
            f"{run.cpu_seconds:.1f}",
        ]

    def curves(self, saliency: Tensor) -> tuple[Tensor, Tensor]:
        """RISE's deletion and insertion AUC (B,) of maps (B,H,W), see `fgvis_lightning.metrics`."""
        deletion, insertion = curves(self.network, self.x, saliency, self.targets)
        return auc(deletion).cpu(), auc(insertion).cpu()


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's, as a mean over the rows that are not constant."""
    return torch.stack([torch.corrcoef(torch.stack(pair).double())[0, 1] for pair in zip(a, b, strict=True)]).nanmean()
