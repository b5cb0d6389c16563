"""What an iteration costs, beside the bare network: FGVis as a user runs it, and one pass there and back.

    python benchmarks/step.py packaged_efficientnet_lite0 --batch_size 8 --precision 32-true
    python benchmarks/step.py resnet50 --batch_size 8 --precision bf16-mixed --options "{lam: 1.0e-7, noise: 0.1}"

Each step of Lightning's loop (defense, noise, masks, logging, …) is followed by a forward and backward pass of the
unmodified network to its input, in memory format channels_last and in the same type; so both meet the same machine.
Prints medians of the times and of the ratios. ``--memory both`` prints what each of the two adds to the process at
most, weights included, each in a process of its own (Linux only): in an iteration, and in the first one with all that
comes before. Networks that are not packaged get random weights.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import timm
import torch
import torchvision
import yaml
from torch import Tensor, nn

from fgvis_lightning import FGVis
from fgvis_lightning.data.batches import Sweep, SweepData
from fgvis_lightning.data.items import Item
from fgvis_lightning.method.games import log_probability
from fgvis_lightning.networks.load import load_classifier
from fgvis_lightning.networks.zoo import PACKAGED

WARM = 3  # steps that are not counted
STATUS = Path("/proc/self/status")


def make(name: str, seed: int = 0) -> nn.Module:
    """The network as a user has it, without gradients to its weights."""
    torch.manual_seed(seed)
    if name in PACKAGED:
        return load_classifier(name).network
    made = getattr(torchvision.models, name)() if hasattr(torchvision.models, name) else timm.create_model(name)
    return made.eval().requires_grad_(False)


class Bare:
    """The unmodified network, once there and back; in a type of its own, or under autocast."""

    def __init__(self, network: nn.Module, images: Tensor, dtype: torch.dtype, autocast: bool = False) -> None:
        self.autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast)
        self.network = network.to(dtype).to(memory_format=torch.channels_last)
        self.x = images.to(dtype).contiguous(memory_format=torch.channels_last)
        self.targets = torch.zeros(len(images), dtype=torch.long)

    def run(self) -> float:
        start = time.perf_counter()
        e = self.x.clone().requires_grad_()
        with self.autocast:
            logits = self.network(e)
        log_probability(logits, self.targets).sum().backward()
        return time.perf_counter() - start


class Pairs(pl.Callback):
    """Times each step, and a bare pass after it; and looks how large the process was in it."""

    def __init__(self, bare: Bare | None = None) -> None:
        self.bare = bare
        self.last = 0.0
        self.steps: list[float] = []
        self.passes: list[float] = []
        self.peaks: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        # From the end of the last one, so that the loop itself is counted.
        self.last = self.last or time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.steps.append(time.perf_counter() - self.last)
        if self.bare is not None:
            self.passes.append(self.bare.run())
        self.peaks.append(peak())
        self.last = time.perf_counter()


def peak() -> float:
    """The largest size of the process since this was asked last, in MB."""
    if not STATUS.exists():
        return 0
    found = dict(line.split(":") for line in STATUS.read_text().splitlines())
    (STATUS.parent / "clear_refs").write_text("5")
    return int(found["VmHWM"].split()[0]) / 1024


def explain(
    network: nn.Module | str, images: Tensor, precision: str, steps: int, options: dict[str, Any], pairs: Pairs
) -> None:
    """So many steps of FGVis on all images at once."""
    model = FGVis.of(network, iterations=steps, patience=0, **options)
    stream = ((Item(str(number), "", 0, number), image) for number, image in enumerate(images))
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=1,
            callbacks=[pairs],
            logger=True,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            precision=precision,
            default_root_dir=folder,
        )
        trainer.fit(model, datamodule=SweepData(Sweep(stream, len(images), len(images))))


def main() -> None:
    """Measure time, or memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--options", type=yaml.safe_load, default={}, help="of FGVis")
    parser.add_argument("--memory", choices=("bare", "fgvis", "both"), default=None)
    options = parser.parse_args()
    torch.set_num_threads(2)
    if options.memory == "both":
        own = [[sys.executable, *sys.argv[:-1], part] for part in ("bare", "fgvis")]
        found = [subprocess.run(one, check=True, capture_output=True, text=True).stdout.split() for one in own]
        bare_peak, step, first = (float(number) for numbers in found for number in numbers)
        what = f"{options.network} {options.precision} B={options.batch_size}: bare {bare_peak:.0f} MB"
        ratios = f"ratio {step / bare_peak:.2f} and {first / bare_peak:.2f}"
        print(f"{what}, FGVis {step:.0f} MB in an iteration, {first:.0f} MB in the first, {ratios}")
        return
    dtype = torch.float32 if options.precision == "32-true" else torch.bfloat16
    images = torch.rand(options.batch_size, 3, options.size, options.size, generator=torch.Generator().manual_seed(0))
    if options.memory:  # what the libraries need
        tiny = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
        explain(tiny, images[:1, :, :32, :32], options.precision, 2, {}, Pairs())
        gc.collect()
        before = peak() and peak()
    network = options.network if options.network in PACKAGED else make(options.network)
    if options.memory == "fgvis":
        pairs = Pairs()
        explain(network, images, options.precision, 4, options.options, pairs)
        print(max(pairs.peaks[1:]) - before, pairs.peaks[0] - before)
        return
    # The quickest bare pass is one without autocast; for memory it is the user's, whose weights are float32.
    autocast = bool(options.memory) and options.precision == "bf16-mixed"
    bare = Bare(make(options.network), (images - 0.5) / 0.25, torch.float32 if autocast else dtype, autocast)
    if options.memory == "bare":
        del network
        bare.run()
        bare.run() and peak() and bare.run()
        print(peak() - before)
        return
    pairs = Pairs(bare)
    explain(network, images, options.precision, WARM + options.pairs, options.options, pairs)
    steps, passes = pairs.steps[WARM:], pairs.passes[WARM:]
    ratios = sorted(step / one for step, one in zip(steps, passes, strict=True))
    print(
        f"{options.network} {options.precision} B={options.batch_size} {options.options}: "
        f"step {1e3 * statistics.median(steps):.0f} ms, bare {1e3 * statistics.median(passes):.0f} ms, "
        f"ratio {statistics.median(ratios):.3f} ({ratios[0]:.2f}–{ratios[-1]:.2f}, {len(ratios)} pairs)"
    )


if __name__ == "__main__":
    main()
