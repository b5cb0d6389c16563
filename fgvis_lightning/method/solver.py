"""Solvers: optimizers of the mask that look for the smallest evidence whose score reaches a level.

A solver is a ``torch.optim.Optimizer`` of one parameter, the masks of all images. In each iteration it
is told how far the masks as they are now reach beyond the level (`Solver.tell`), gets their gated gradients as any
optimizer does, and puts the masks that are to be tried next in their place (``step``). Every entry that it drops or
adds is chosen by gated gradients::

    worth     moving average of the helpful part of the gated gradient at what was tried, each divided by its size
    best      the smallest evidence that has reached the level so far; nothing else is ever the result

Several masks of one image are *runs* with small disturbances of their own. First each looks for its own best
evidence. Then they are joined: from the mean of what they found, a few iterations of all masks find evidence that
reaches the level, and one run goes on from there in the first mask alone. So an explanation depends little on chance,
and what the runs agree on is known.

Worth is what a neuron in the range of the image says (`fgvis_lightning.method.gates`). No solver takes a step of the
gradient's size: at m = 1 all gates are open, and one such step can take a class away with next to no evidence.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fgvis_lightning.method.runs import MARGIN, Run, agreement, best_of
from fgvis_lightning.method.storage import STORAGE


@dataclass
class Search:
    """A solver's state of one image.

    Attributes:
        runs: one for each of its masks.
        common: what they have in common, once they are joined.
        agreement: mean correlation of the evidence they had found by then.
        iteration: the latest, from 0.
    """

    runs: list[Run]
    common: Run | None = None
    agreement: float = math.nan
    iteration: int = -1

    @property
    def in_use(self) -> int:
        """Number of masks in use: all, until one run goes on in the first."""
        return 1 if self.common is not None and self.common.mean is None else len(self.runs)


class Solver(Optimizer, ABC):
    """Base of the solvers: it judges masks, feeds runs, and joins them.

    Args:
        params: one parameter, masks (B·runs,C,H,W) in [0,1], those of an image one after the other; or a group with it,
            which may have, beside the solver's own options:

            - ``runs``: masks of each image;
            - ``keeps``: whether the class is to stay, so that the mask is the evidence, or to go, so that 1 - mask is;
            - ``iterations``: how many there will be;
            - ``seed``: of the disturbances.
        defaults: options of a group that does not have them.
    """

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        super().__init__(params, {"runs": 1, "keeps": True, "iterations": 60, "seed": 0, **defaults})
        self._leads: list[float] = []

    @property
    def images(self) -> list[Search]:
        """The state of each image; empty before the first step."""
        (mask,) = self.param_groups[0]["params"]
        known: list[Search] = self.state[mask].get("images", [])
        return known

    @property
    def finishing(self) -> bool:
        """Whether only the first mask of each image is still in use."""
        return bool(self.images) and all(image.in_use == 1 for image in self.images)

    def tell(self, leads: Tensor) -> None:
        """Take in how far the current masks reach beyond the level.

        Args:
            leads: of all masks (B·runs,), or, where the solver is `finishing`, of the first one of each image (B,).
        """
        self._leads = leads.tolist()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Judge the masks by what `tell` was given, learn from their gradients, and put the next ones in place."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        group = self.param_groups[0]
        (mask,) = group["params"]
        if not self._leads or mask.grad is None:  # a step that a gradient scaler leaves out
            return loss
        runs, keeps = group["runs"], group["keeps"]
        starts = range(0, len(mask), runs)
        told = len(self._leads) // len(starts)  # of each image
        if not self.images:
            self.state[mask]["images"] = [
                Search([self.begin(evidence_of(mask[start + run], keeps), group, run) for run in range(runs)])
                for start in starts
            ]
        for number, (start, image) in enumerate(zip(starts, self.images, strict=True)):
            used = range(start, start + image.in_use)
            leads = self._leads[number * told : (number + 1) * told]
            tried = [evidence_of(mask[row], keeps) for row in used]
            proposals = self._step(image, tried, [mask.grad[row] for row in used], leads, group)
            for row, evidence in enumerate(proposals, start):
                mask[row].copy_(evidence_of(evidence.to(STORAGE).to(mask.dtype), keeps))
        self._leads = []
        return loss

    def _step(
        self,
        image: Search,
        tried: Sequence[Tensor],
        gradients: Sequence[Tensor],
        leads: Sequence[float],
        group: dict[str, Any],
    ) -> Sequence[Tensor]:
        """Take in what an image's masks have tried; the evidence that each is to try next."""
        image.iteration += 1
        keeps, count = group["keeps"], len(image.runs)
        if image.common is None:
            for run, evidence, gradient, lead in zip(image.runs, tried, gradients, leads, strict=True):
                run.learn([gradient], keeps)
                self._go_on(run, evidence, lead, image.iteration, group)
            if count == 1 or image.iteration + 1 < self.alone(group):
                return [self.propose(run) for run in image.runs]
            image.agreement = agreement([run.best for run in image.runs])
            image.common = self.join(image.runs, group)
        else:
            image.common.learn(gradients, keeps)
            if image.common.mean is None:
                self._go_on(image.common, tried[0], leads[0], image.iteration, group)
            else:
                self.compare(image.common, tried, leads, image.iteration, group)
        if image.common.mean is None:  # one run goes on, and all masks are its
            return [self.propose(image.common)] * count
        return self.search(image.common, count)

    def _go_on(self, run: Run, evidence: Tensor, lead: float, iteration: int, group: dict[str, Any]) -> None:
        good = run.take(evidence, lead, iteration)
        self.adapt(run, good, iteration, group)

    # --- what is known of an image ---

    def found(self, image: int) -> Run | None:
        """The best evidence of the image of this number so far; None before the first step."""
        if not self.images:
            return None
        search = self.images[image]
        return search.common if search.common is not None else best_of(search.runs)

    def best(self) -> Tensor:
        """The best masks of the images so far (B,C,H,W); before the first step, those of the start."""
        group = self.param_groups[0]
        masks: Tensor = group["params"][0].detach()
        runs = [self.found(image) for image in range(len(self.images))]
        if not runs:
            return masks[:: group["runs"]]
        best = [evidence_of(run.best, group["keeps"]) for run in runs if run is not None]
        return torch.empty_like(masks[:: group["runs"]]).copy_(torch.stack(best))

    def summary(self, images: Sequence[int]) -> dict[str, Tensor]:
        """Fields of an `Explanation`, on the CPU, that some images have beside their masks."""
        runs = [self.found(image) for image in images]
        known = {
            "reached": torch.tensor([-1 if run is None else run.reached for run in runs]),
            "ranking": torch.stack([self.ranking(image).mean(0).float().cpu() for image in images]),
        }
        if self.param_groups[0]["runs"] > 1:
            known["agreement"] = torch.tensor([self.agreement(image) for image in images])
        return known

    def agreement(self, image: int) -> float:
        """Mean correlation of the runs' evidence, before they come together; NaN with fewer than two."""
        search = self.images[image]
        if search.common is None and len(search.runs) > 1:
            return agreement([run.best for run in search.runs])
        return search.agreement

    def ranking(self, image: int) -> Tensor:
        """Importance of each entry (C,H,W), 0 to 1: when it was given up, squared, and a tenth of that where it was.

        The order is what counts; so shaped, most of the sum is in the evidence.
        """
        run = self.found(image)
        assert run is not None
        share = run.ranking / run.ranking.max().clamp(min=1e-30)
        return share.square() * torch.where(run.best > 0, 1.0, 0.1)

    def confirm(self, image: int, lead: float) -> None:
        """Take in the lead of the best evidence by the network that judges the result.

        Under mixed precision the iterations are off by some tenths of log-odds. Evidence that falls short gives way to
        what was last confirmed, or gets a fifth of what is missing back, and what is tried from there needs as much
        more as it was too good by.
        """
        run = self.found(image)
        if run is None or run.reached < 0:
            return
        if lead >= 0:
            run.sure = run.best
            return
        run.margin = max(run.margin, run.lead - lead + MARGIN)
        run.best = run.sure if run.sure is not None else run.best + 0.2 * (1 - run.best)
        run.size, run.lead = float(run.best.mean()), run.margin

    # --- what a solver decides ---

    @staticmethod
    def alone(group: dict[str, Any]) -> int:
        """Number of iterations that runs have on their own."""
        return max(1, round(group["alone"] * group["iterations"]))

    def begin(self, evidence: Tensor, group: dict[str, Any], number: int) -> Run:
        """Start the run of this number."""
        draws = torch.Generator(evidence.device).manual_seed(group["seed"] + number)
        shake = group["shake"] if group["runs"] > 1 else 0.0
        zero = torch.zeros_like(evidence)
        return Run(evidence.clone(), zero, zero.clone(), 0.0, group["memory"], shake, draws)

    @abstractmethod
    def adapt(self, run: Run, good: bool, iteration: int, group: dict[str, Any]) -> None:
        """Change a run's pace after evidence that reached the level, or did not."""

    @abstractmethod
    def propose(self, run: Run) -> Tensor:
        """The evidence (C,H,W) that a run is to try next."""

    @abstractmethod
    def join(self, runs: Sequence[Run], group: dict[str, Any]) -> Run:
        """Join the runs by the mean of what they found, `Run.mean`."""

    @abstractmethod
    def search(self, common: Run, count: int) -> list[Tensor]:
        """Evidence made from the mean for each mask (``count`` of (C,H,W)), to find out what reaches the level."""

    @abstractmethod
    def compare(
        self, common: Run, tried: Sequence[Tensor], leads: Sequence[float], iteration: int, group: dict[str, Any]
    ) -> None:
        """Judge what the masks tried of the mean; where the search is over, there is no mean any more."""


def evidence_of(mask: Tensor, keeps: bool) -> Tensor:
    """The evidence of a mask, and the mask of evidence."""
    return mask if keeps else 1 - mask
