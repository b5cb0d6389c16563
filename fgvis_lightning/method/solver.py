"""Solvers: optimizers of the mask that search for the smallest evidence whose score reaches a level.

A solver is a ``torch.optim.Optimizer`` with one parameter, the masks of all images. In each iteration it receives the
distance of the current masks from the level (`Solver.tell`) and their gated gradients, and replaces the masks with the
next ones to try (``step``). Gated gradients alone determine which entries it drops or adds::

    worth     moving average of the helpful part of the gated gradients of the masks tried, each normalized
    best      the smallest evidence that has reached the level so far, or, once the runs are joined, of what was made
              from their mean; the result is always this one

Several masks of one image are *runs* with small perturbations. At first, each run searches for its own best evidence.
Then the runs are joined: from the mean of their results, all masks together find evidence that reaches the level within
a few iterations, and a single run continues from there in the first mask. Thus an explanation depends little on chance,
and the agreement of the runs is known.

Only neurons within their range contribute to the worth (`fgvis_lightning.method.gates`). No solver takes a step of the
gradient's size: at m = 1 all gates are open, and one such step can remove a class with almost no evidence.
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

from fgvis_lightning.method.runs import MARGIN, Run, agreement, best_of, first_reached
from fgvis_lightning.method.storage import STORAGE


@dataclass
class Search:
    """A solver's state for one image.

    Attributes:
        runs: one run for each of its masks.
        common: common state of the runs, once they are joined.
        agreement: mean correlation of the runs' evidence when they were joined.
        iteration: the latest iteration, from 0.
    """

    runs: list[Run]
    common: Run | None = None
    agreement: float = math.nan
    iteration: int = -1

    @property
    def in_use(self) -> int:
        """Number of masks in use: all of them, until a single run continues in the first one."""
        return 1 if self.common is not None and self.common.mean is None else len(self.runs)


class Solver(Optimizer, ABC):
    """Base class of the solvers: it evaluates masks, updates runs, and joins them.

    Args:
        params: one parameter, masks (B·runs,C,H,W) in [0,1], with the masks of an image in succession; or a group with
            this parameter, which may have these options in addition to the solver's own:

            - ``runs``: number of masks for each image;
            - ``keeps``: whether the game keeps the class, so that the mask is the evidence, or loses it, so that
              1 - mask is;
            - ``iterations``: number of iterations;
            - ``seed``: seed of the perturbations.
        defaults: default options of the group.
    """

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        super().__init__(params, {"runs": 1, "keeps": True, "iterations": 60, "seed": 0, **defaults})
        self._leads: list[float] = []

    @property
    def images(self) -> list[Search]:
        """The state of each image; empty before the first step."""
        (mask,) = self.param_groups[0]["params"]
        return self.state[mask].get("images", [])

    @property
    def finishing(self) -> bool:
        """Whether only the first mask of each image is still in use."""
        return bool(self.images) and all(image.in_use == 1 for image in self.images)

    def tell(self, leads: Tensor) -> None:
        """Receive the leads of the current masks, see `fgvis_lightning.method.level.lead`.

        Args:
            leads: leads of all masks (B·runs,), or of the first mask of each image (B,) if the solver is `finishing`.
        """
        self._leads = leads.tolist()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Evaluate the masks by their leads, learn from their gradients, and replace them with the next ones."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        group = self.param_groups[0]
        (mask,) = group["params"]
        if not self._leads or mask.grad is None:  # a step skipped by a gradient scaler
            return loss
        runs, keeps = group["runs"], group["keeps"]
        starts = range(0, len(mask), runs)
        told = len(self._leads) // len(starts)  # number of leads for each image
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
        """Evaluate an image's masks, and return the next evidence for each of them."""
        image.iteration += 1
        keeps, count = group["keeps"], len(image.runs)
        if image.common is None:
            for run, evidence, gradient, lead in zip(image.runs, tried, gradients, leads, strict=True):
                run.learn([gradient], keeps)
                self.adapt(run, run.take(evidence, lead, image.iteration), image.iteration, group)
            alone = max(1, round(group["alone"] * group["iterations"]))
            if count == 1 or image.iteration + 1 < alone:
                return [self.propose(run) for run in image.runs]
            image.agreement = agreement([run.best for run in image.runs])
            best = best_of(image.runs)
            image.common = self.join(image.runs, group)
            image.common.lead, image.common.reached = best.lead, first_reached(image.runs)
            image.common.margin = max(run.margin for run in image.runs)
        else:
            image.common.learn(gradients, keeps)
            if image.common.mean is None:
                good = image.common.take(tried[0], leads[0], image.iteration)
                self.adapt(image.common, good, image.iteration, group)
            else:
                self.compare(image.common, tried, leads, image.iteration, group)
        if image.common.mean is None:  # a single run continues, and all masks equal its evidence
            return [self.propose(image.common)] * count
        return self.search(image.common, count)

    # --- results for an image ---

    def found(self, image: int) -> Run | None:
        """The run with the best evidence of an image (by its number) so far; None before the first step."""
        if not self.images:
            return None
        search = self.images[image]
        return search.common if search.common is not None else best_of(search.runs)

    def best(self) -> Tensor:
        """The best masks of the images so far (B,C,H,W); before the first step, the initial masks."""
        group = self.param_groups[0]
        masks: Tensor = group["params"][0].detach()
        runs = [self.found(image) for image in range(len(self.images))]
        if not runs:
            return masks[:: group["runs"]]
        best = [evidence_of(run.best, group["keeps"]) for run in runs if run is not None]
        return torch.empty_like(masks[:: group["runs"]]).copy_(torch.stack(best))

    def summary(self, images: Sequence[int]) -> dict[str, Tensor]:
        """Further fields of the `Explanation` of these images, on the CPU."""
        searches = [self.images[image] for image in images]
        reached = [first_reached(one.runs if one.common is None else [one.common]) for one in searches]
        known = {
            "reached": torch.tensor(reached),
            "ranking": torch.stack([self.ranking(image).mean(0).float().cpu() for image in images]),
        }
        if self.param_groups[0]["runs"] > 1:
            known["agreement"] = torch.tensor([self.agreement(image) for image in images])
        return known

    def agreement(self, image: int) -> float:
        """Mean correlation of the runs' evidence before they are joined; NaN for fewer than two runs."""
        search = self.images[image]
        if search.common is None and len(search.runs) > 1:
            return agreement([run.best for run in search.runs])
        return search.agreement

    def ranking(self, image: int) -> Tensor:
        """Importance of each entry (C,H,W), 0 to 1: the square of `Run.ranking`, and a tenth of that if not evidence.

        So most of the sum lies in the evidence.
        """
        run = self.found(image)
        assert run is not None
        share = run.ranking / run.ranking.max().clamp(min=1e-30)
        return share.square() * torch.where(run.best > 0, 1.0, 0.1)

    def confirm(self, image: int, lead: float) -> None:
        """Check the best evidence against its lead on the network that confirms the result.

        Under mixed precision, the iterations are off by a few tenths of log-odds. If the best evidence misses the
        level, the evidence confirmed last replaces it; if there is none, a fifth of the missing evidence is restored.
        From then on, the margin includes the error.
        """
        run = self.found(image)
        if run is None or run.reached < 0:
            return
        if lead >= 0:
            run.sure = run.best
            return
        run.margin = max(run.margin, run.lead - lead + MARGIN)
        run.best = run.sure if run.sure is not None else run.best + 0.2 * (1 - run.best)
        run.size, run.lead, run.brighter = float(run.best.mean()), run.margin, None

    # --- decisions of a solver ---

    def begin(self, evidence: Tensor, group: dict[str, Any], number: int) -> Run:
        """Start the run with this number."""
        draws = torch.Generator(evidence.device).manual_seed(group["seed"] + number)
        shake = group["shake"] if group["runs"] > 1 else 0.0
        zero = torch.zeros_like(evidence)
        return Run(evidence.clone(), zero, zero.clone(), 0.0, group["memory"], shake, draws)

    @abstractmethod
    def adapt(self, run: Run, good: bool, iteration: int, group: dict[str, Any]) -> None:
        """Adapt a run's pace after evidence that reached the level (``good``) or missed it."""

    @abstractmethod
    def propose(self, run: Run) -> Tensor:
        """The next evidence (C,H,W) for a run to try."""

    @abstractmethod
    def join(self, runs: Sequence[Run], group: dict[str, Any]) -> Run:
        """Join the runs by averaging their results in `Run.mean`.

        The best of them remains the best until evidence made from the mean reaches the level, even if that is larger.
        """

    @abstractmethod
    def search(self, common: Run, count: int) -> list[Tensor]:
        """Evidence made from the mean for each of the ``count`` masks (C,H,W), to find out what reaches the level."""

    @abstractmethod
    def compare(
        self, common: Run, tried: Sequence[Tensor], leads: Sequence[float], iteration: int, group: dict[str, Any]
    ) -> None:
        """Evaluate the evidence made from the mean; `Run.mean` becomes None when the search is over."""


def evidence_of(mask: Tensor, keeps: bool) -> Tensor:
    """Evidence from a mask, or a mask from evidence."""
    return mask if keeps else 1 - mask
