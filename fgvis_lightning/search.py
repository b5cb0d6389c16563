"""``lam: auto``: for each image the smallest evidence whose score reaches a level.

A fixed λ trades size against score at a rate that nobody knows in advance, and its masks drift to
emptiness, since gates that have closed do not bring evidence back. So λ is not searched; the
constrained problem that it stands for is, in two phases, for each image on its own:

1. *Reach*. Where a game starts without any evidence (deletion, generation), the optimizer takes steps
   on the score alone until the level is reached. Where a quarter of the iterations is not enough, all
   of the image is evidence, as at the start of the other two games.
2. *Shrink*. Each iteration proposes to drop the evidence in a few random blocks, but for the pixels and
   channels to which the gated gradients so far give most worth, a third of what is left. A proposal
   that still reaches the level becomes the best explanation; with each such one the share of blocks
   grows, with each other it falls. The gate thus says which pixels carry evidence, and the network's
   own answer says whether enough is left. The blocks are RISE's smooth grids (Petsiuk et al., BMVC
   2018, section 3.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fgvis_lightning.games import Game, log_odds, log_probability
from fgvis_lightning.store import rounded

MARGIN = 1e-3
"""By how much the log-odds must be better than asked for, so that rounding elsewhere does not undo it.

Less will do where the best masks so far have less: an image can be its own limit.
"""

GRID = 7  # blocks along each side
SPARED = 0.3  # share of the evidence that a proposal does not touch
GROW, FALL = 1.2, 0.8  # of the share of blocks, after a good and a bad proposal
MEMORY = 0.9  # of the moving average of gradients


class Search:
    """State of the search for the images of a batch, each at its own iteration.

    Args:
        game: what is kept or removed.
        level: score to reach as a share of the image's own.
        mask: the masks (B,3,H,W), for their shape, type and device.
        iterations: how many each image will have.
        seed: of the blocks; the k-th iteration of every image has the same ones.
    """

    def __init__(self, game: Game, level: float, mask: Tensor, iterations: int, seed: int) -> None:
        self.game = game
        self.level = level
        self.best = mask.clone()
        self.targets = torch.zeros(len(mask), dtype=torch.long, device=mask.device)
        self.bound, self._whole_lead, self._best_lead, self._share = (
            torch.zeros(len(mask), dtype=torch.promote_types(mask.dtype, torch.float32), device=mask.device)
            for _ in range(4)
        )
        self.feasible = torch.zeros(len(mask), dtype=torch.bool, device=mask.device)
        self._sure = mask.clone()  # the best masks when they were last verified
        self._verified = False
        self._margin = torch.full_like(self.bound, MARGIN)
        self._gradient = torch.zeros_like(mask)
        self._reach = max(1, iterations // 4)
        self._draws: list[tuple[Tensor, int, int]] = []
        self._generator = torch.Generator().manual_seed(seed)

    def start(self, new: Tensor, targets: Tensor, mask: Tensor, logits: Tensor, logits_of_whole: Tensor) -> None:
        """Begin anew for some images.

        Args:
            new: which ones (B,).
            targets: target classes (B,); here and below, those of the others are left aside.
            mask: masks at the start (B,3,H,W).
            logits: the network's logits of the images (B,K).
            logits_of_whole: those where all of the image is evidence (B,K): of the image where the class is to stay,
                of the reference where it is to go.
        """
        self.targets = torch.where(new, targets, self.targets)
        # The bound on log p/(1 - p). At level 1 from the same numbers as the scores it is compared with.
        logits = _exact(logits)
        bound = math.log(self.level) + log_probability(logits, self.targets)
        bound = torch.where(bound < 0, bound - torch.log(-torch.expm1(bound.clamp(max=-1e-30))), torch.inf)
        bound = log_odds(logits, self.targets) if self.level == 1 else bound
        self.bound = torch.where(new, bound, self.bound)
        self.best = torch.where(_per_image(new), mask, self.best)
        self._whole_lead = torch.where(new, self.lead(logits_of_whole), self._whole_lead)
        starts_whole = self.game.size(self.best) == 1
        self._best_lead = torch.where(new, torch.where(starts_whole, self._whole_lead, -torch.inf), self._best_lead)
        self.feasible = torch.where(new, self._best_lead >= 0, self.feasible)
        self._share = torch.where(new, 0.03, self._share)
        self._margin = torch.where(new, MARGIN, self._margin)
        self._sure = torch.where(_per_image(new), self.game.evidence(torch.ones_like(mask)), self._sure)
        self._gradient.masked_fill_(_per_image(new), 0)

    def lead(self, logits: Tensor) -> Tensor:
        """By how much the log-odds are better than the bound (B,), from logits (B,K)."""
        ahead = log_odds(_exact(logits), self.targets) - self.bound
        return ahead if self.game.keeps else -ahead

    def reached(self, logits: Tensor) -> Tensor:
        """Whether the level is reached (B,)."""
        return self.lead(logits) >= 0

    @torch.no_grad()
    def observe(self, mask: Tensor, logits: Tensor, iterations: Sequence[int]) -> None:
        """Judge the masks of an iteration by the logits (B,K) of their explanations.

        ``iterations`` counts those before this one, for each image.
        """
        lead = self.lead(logits)
        good = lead >= torch.minimum(self._best_lead.clamp(min=0), self._margin)
        # Until the level is reached, the masks nearest to it.
        better = good | (~self.feasible & (lead > self._best_lead))
        self.best = torch.where(_per_image(better), mask, self.best)
        self._best_lead = torch.where(better, lead, self._best_lead)
        # While the optimizer is still on its way there are no proposals to learn from.
        share = torch.where(good, GROW * self._share, FALL * self._share).clamp(1 / GRID**2 / 10, 0.5)
        self._share = torch.where(self.feasible, share, self._share)
        self.feasible = self.feasible | good
        if self._reach - 1 in iterations:
            arrived = torch.tensor([done == self._reach - 1 for done in iterations], device=mask.device)
            late = arrived & ~self.feasible & (self._whole_lead >= 0)
            whole = self.game.evidence(torch.ones_like(mask))
            self.best = torch.where(_per_image(late), whole, self.best)
            self._best_lead = torch.where(late, self._whole_lead, self._best_lead)
            self.feasible = self.feasible | late

    @torch.no_grad()
    def verify(self, run: Callable[[Tensor], Tensor], due: Tensor) -> None:
        """Judge the best masks by the network that judges the result, where that is not the one of the iterations.

        Mixed precision is off by some tenths of log-odds. An image whose best mask falls short goes back to the last
        one that did not, and from there its proposals need as much more as its score was too good by.

        Args:
            run: the plain network's logits (B,K) for masks (B,3,H,W).
            due: for which images (B,).
        """
        self._verified = True
        lead = self.lead(run(self.best))
        short = due & self.feasible & (lead < 0)
        self._margin = torch.where(short, self._margin.maximum(self._best_lead - lead + MARGIN), self._margin)
        self.best = torch.where(_per_image(short), self._sure, self.best)
        self._best_lead = torch.where(short, self._margin, self._best_lead)
        self._sure = torch.where(_per_image(due & self.feasible), self.best, self._sure)

    @torch.no_grad()
    def learn(self, gradient: Tensor) -> None:
        """Take in the gradient of the objective to the masks (B,3,H,W), at most 1 in size for each image."""
        evidence = (-gradient if self.game.keeps else gradient).clamp(min=0).nan_to_num(0, 0, 0)
        self._gradient.lerp_(evidence, 1 - MEMORY)

    @torch.no_grad()
    def propose(self, mask: Tensor, iterations: Sequence[int]) -> Tensor:
        """The masks to try next: where the level has not been reached, the optimizer's own."""
        evidence = self.game.evidence(self.best)
        worth = self._gradient * evidence
        # The quantile from a sample: exact enough, and much cheaper.
        sample = worth.flatten(1)[:, :: max(1, worth[0].numel() // 16384)].sort(1).values
        rank = (1 - SPARED * self.game.size(self.best).float()) * (sample.shape[1] - 1)
        threshold = sample.gather(1, rank.long()[:, None]).squeeze(1)
        evidence = evidence * (1 - self._blocks(mask, iterations) * (worth <= _per_image(threshold)))
        # So that what is judged is what is stored.
        proposal = rounded(self.game.evidence(evidence))
        return torch.where(_per_image(self.feasible), proposal, mask)

    @torch.no_grad()
    def result(self, run: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """The best masks as files hold them, and their logits by ``run``, the plain network for masks (B,3,H,W).

        Under mixed precision ``run`` can find short what the iterations found good since `verify`; then the masks of
        that time are taken. Rounding can spoil a mask of the optimizer's: evidence is given back evenly until the level
        is reached.
        """
        result = rounded(self.best)
        logits = run(result)
        short = self.feasible & ~self.reached(logits)
        if self._verified and short.any():
            result = torch.where(_per_image(short), rounded(self._sure), result)
            logits = run(result)
            short = short & ~self.reached(logits)
        for back in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0):
            if not short.any():
                break
            evidence = self.game.evidence(self.best)
            more = rounded(self.game.evidence(evidence + back * (1 - evidence)))
            result = torch.where(_per_image(short), more, result)
            logits = run(result)
            short = short & ~self.reached(logits)
        return result, logits

    def _blocks(self, mask: Tensor, iterations: Sequence[int]) -> Tensor:
        """Smooth random blocks (B,1,H,W) in [0,1]; each image has its own share of them."""
        height, width = mask.shape[-2:]
        cell = -(-height // GRID), -(-width // GRID)
        while len(self._draws) <= max(iterations):
            draw = torch.rand(1, GRID + 1, GRID + 1, generator=self._generator)
            top, left = (int(torch.randint(side, (), generator=self._generator)) for side in cell)
            self._draws.append((draw, top, left))
        draws, tops, lefts = zip(*(self._draws[done] for done in iterations), strict=True)
        # Drawn on the CPU, so that every device gets the same ones.
        draw = torch.stack(draws).to(mask.device)
        # An empty proposal would say nothing.
        share = torch.maximum(self._share.to(draw.dtype), draw.amin((1, 2, 3)) * 1.001)
        chosen = (draw < _per_image(share)).to(mask.dtype)
        smooth = F.interpolate(chosen, ((GRID + 1) * cell[0], (GRID + 1) * cell[1]), mode="bilinear")
        corners = zip(smooth, tops, lefts, strict=True)
        return torch.stack([image[:, top : top + height, left : left + width] for image, top, left in corners])


def _exact(logits: Tensor) -> Tensor:
    """At least float32; not always float64, which not every device has."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]
