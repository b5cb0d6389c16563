from __future__ import annotations

import copy
import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_lightning import callbacks
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities.model_summary.model_summary import ModelSummary
from torch import Tensor, nn
from toy_networks import NotANumber, Plain, Tiny, WrongShape

from fgvis_lightning import DefendedCNN, Explanation, FGVis, InputError, explain, load_explanation, load_explanations
from fgvis_lightning.data.batches import Sweep, SweepData
from fgvis_lightning.data.items import Item
from fgvis_lightning.method.games import GAMES, blend
from fgvis_lightning.method.options import NEAR_ONE
from fgvis_lightning.networks.preprocessing import IMAGENET_MEAN, IMAGENET_STD

GAME_NAMES = list(GAMES)


def images(count: int = 3, seed: int = 0, size: int = 12) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def fit(
    model: FGVis, batch: Tensor, iterations: int, precision: Any = "32-true", size: int | None = None
) -> pl.Trainer:
    """One batch through a Trainer as the command line has it, without any output."""
    stream = [(Item(str(i), "", -1), image) for i, image in enumerate(batch)]
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        trainer.fit(model, datamodule=SweepData(Sweep(stream, size or len(batch), len(batch))))
    return trainer


def slow_masks(network: nn.Module, x: Tensor, target: int, game: str, lam: float, iterations: int) -> Tensor:
    """The method of one image (1,3,H,W), step by step in plain PyTorch."""
    keep, start = game in ("preservation", "generation"), 0.0 if game in ("generation", "repression") else NEAR_ONE
    defended = DefendedCNN(network)
    defended.record(x)
    mask = torch.full_like(x, start)
    for _ in range(iterations):
        mask.requires_grad_()
        score = defended(mask * x).softmax(1)[0, target]
        objective = lam * mask.sum() - score if keep else score - lam * mask.sum()
        (gradient,) = torch.autograd.grad(objective, mask)
        largest = gradient.abs().max()
        mask = (mask.detach() - 0.1 * gradient / (largest if largest > 0 else 1)).clamp(0, 1)
    return mask


@pytest.mark.parametrize("game", GAME_NAMES)
def test_masks_equal_the_slow_procedure(game: str) -> None:
    """Summed losses, per-image normalization, clamping and all, in float64 and one image at a time."""
    network = Tiny().double().eval()
    batch = images(3).double()
    as_published: dict[str, Any] = {"score": "probability", "noise": 0.0}
    model = FGVis(network, game=game, lam=2e-4, iterations=8, **as_published)  # type: ignore[arg-type]
    fit(model, batch, 8, "64-true")
    mean, std = (torch.tensor(values).double()[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    for i in range(3):
        x = ((batch[i : i + 1] - mean) / std).contiguous(memory_format=torch.channels_last)
        target = int(network(x).argmax())
        expected = slow_masks(network, x, target, game, 2e-4, 8)
        torch.testing.assert_close(model.mask[i : i + 1].detach(), expected, rtol=1e-6, atol=1e-8)
        assert not torch.equal(expected, torch.full_like(expected, model.options.start))


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_mask_is_the_only_parameter(seeds: int) -> None:
    model = FGVis(Tiny(), iterations=2, seeds=seeds)
    fit(model, images(2), 2)
    assert [name for name, _ in model.named_parameters()] == ["mask"]
    assert model.mask.shape == (2 * seeds, 3, 12, 12)
    assert model.masks.shape == (2, 3, 12, 12)
    assert list(model.state_dict()) == ["mask"]
    summary = ModelSummary(model)
    assert (summary.total_parameters, summary.trainable_parameters) == (2 * seeds * 3 * 12 * 12,) * 2


@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 2**31))
@pytest.mark.parametrize("game", GAME_NAMES)
@pytest.mark.parametrize(("lam", "noise"), [("auto", 0.0), ("auto", 0.1), (0.01, 0.0), (0.01, 0.1)])
def test_an_explanation_does_not_depend_on_its_batch(game: Any, lam: Any, noise: float, seed: int) -> None:
    network, batch = Tiny(seed=seed), images(4, seed)
    options: dict[str, Any] = {"game": game, "lam": lam, "iterations": 12, "noise": noise, "batch_size": 4}
    together = explain(network, batch, **options)
    for i in range(4):
        alone = explain(network, batch[i : i + 1], **options)
        assert torch.equal(alone.mask[0], together.mask[i])
        assert torch.equal(alone.score_explanation[0], together.score_explanation[i])


def test_two_runs_with_one_seed_are_equal_and_two_seeds_are_not() -> None:
    runs = [explain(Tiny(), images(), game="deletion", lam=0.0, iterations=5, noise=0.3, seed=s) for s in (1, 1, 2)]
    assert torch.equal(runs[0].mask, runs[1].mask)
    assert not torch.equal(runs[0].mask, runs[2].mask)


@pytest.mark.parametrize("reference", ["zero", "blurred", "noise", "black"])
@pytest.mark.parametrize("score", ["probability", "log_probability"])
def test_scores_are_those_of_the_plain_network_on_the_explanation(reference: Any, score: Any) -> None:
    network, batch = Tiny().eval(), images()
    explanation = explain(
        network, batch, game="preservation", lam=0.003, iterations=6, reference=reference, score=score
    )
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    x = (batch - mean) / std
    with torch.no_grad():
        scores = network(x).softmax(1)
    torch.testing.assert_close(explanation.score_image, scores.max(1).values, rtol=1e-5, atol=1e-6)
    assert torch.equal(explanation.targets, scores.argmax(1))
    if reference in ("zero", "black"):
        r = None if reference == "zero" else (torch.zeros_like(batch) - mean) / std
        with torch.no_grad():
            again = network(blend(x, explanation.mask, r)).softmax(1).gather(1, explanation.targets[:, None])[:, 0]
        torch.testing.assert_close(explanation.score_explanation, again, rtol=1e-5, atol=1e-6)
    assert torch.equal(explanation.mask, explanation.mask.half().float()), "not what a file would hold"
    assert explanation.mask.std() > 0


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed", "64-true"])
@pytest.mark.parametrize("lam", ["auto", 0.01])
def test_precisions(precision: str, lam: Any) -> None:
    network, batch = Tiny(), images()
    explanation = explain(network, batch, game="preservation", lam=lam, iterations=10, precision=precision)
    exact = explain(network, batch, game="preservation", lam=lam, iterations=10)
    assert explanation.mask.isfinite().all()
    assert explanation.mask.std() > 0.01
    torch.testing.assert_close(explanation.score_image, exact.score_image, rtol=1e-5, atol=1e-6)
    assert (explanation.mask - exact.mask).abs().mean() < (1e-3 if precision == "64-true" else 0.15)


def test_one_image_for_several_classes() -> None:
    image = images(1)
    found = explain(Tiny(), image, [2, 0], iterations=3)
    assert found.targets.tolist() == [2, 0]
    assert found.images is not None
    assert torch.equal(found.images, image.repeat(2, 1, 1, 1))
    assert torch.equal(found.mask, explain(Tiny(), image.repeat(2, 1, 1, 1), [2, 0], iterations=3).mask)


def test_mixed_precision_measures_the_level_in_its_own_precision() -> None:
    """Otherwise an image whose score is lower in bfloat16 reaches no level, not even its own."""
    batch = images(8)
    found = explain(Tiny(), batch, game="preservation", iterations=3, seeds=1, precision="bf16-mixed")
    assert found.reached is not None
    assert found.reached.tolist() == [0] * 8  # the first mask is the image itself, whose lead is 0


def test_optimizer_is_configurable_and_starts_anew_with_each_batch() -> None:
    def momentum(params: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(params, lr=0.05, momentum=0.9)

    options: dict[str, Any] = {"game": "deletion", "lam": 0.001, "iterations": 6, "optimizer": momentum}
    batch = images(4)
    halves = explain(Tiny(), batch, batch_size=2, **options)
    second = explain(Tiny(), batch[2:], batch_size=2, **options)
    assert torch.equal(halves.mask[2:], second.mask)
    assert not torch.equal(second.mask, explain(Tiny(), batch[2:], **{**options, "optimizer": torch.optim.Adam}).mask)


def snapshot(network: nn.Module) -> dict[str, Any]:
    return {
        "state": {name: tensor.clone() for name, tensor in network.state_dict().items()},
        "pointers": [tensor.data_ptr() for tensor in network.state_dict().values()],
        "training": [module.training for module in network.modules()],
        "requires_grad": [parameter.requires_grad for parameter in network.parameters()],
        "grad": [parameter.grad for parameter in network.parameters()],
        "hooks": [
            [dict(getattr(module, name)) for name in vars(module) if "_hooks" in name] for module in network.modules()
        ],
        "types": [type(module) for module in network.modules()],
    }


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fails", [False, True])
def test_the_callers_network_is_left_as_it_was(training: bool, fails: bool) -> None:
    network = Tiny().train(training)
    network.head.weight.requires_grad_(False)
    network(images()).sum().backward()
    network.features[0].register_forward_hook(lambda *_: None)
    before = snapshot(copy.deepcopy(network)), snapshot(network)
    random = torch.random.get_rng_state()
    if fails:
        with pytest.raises(InputError):
            explain(network, images(), targets=[0, 1, 99], iterations=2)
        network_that_breaks = network
        network_that_breaks.features[0].register_forward_pre_hook(lambda *_: 1 / 0)
        before = snapshot(copy.deepcopy(network)), snapshot(network)
        with pytest.raises(ZeroDivisionError):
            explain(network, images(), iterations=2)
    else:
        explain(network, images(), iterations=3)
    after = snapshot(network)
    assert all(torch.equal(before[0]["state"][name], tensor) for name, tensor in after["state"].items())
    for key in ("pointers", "training", "requires_grad", "grad", "hooks", "types"):
        assert all(a is b or a == b for a, b in zip(before[1][key], after[key], strict=True)), key
    assert torch.equal(random, torch.random.get_rng_state())


def test_explain_is_silent(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    level, filters = logging.getLogger("pytorch_lightning").level, list(warnings.filters)
    explain(Tiny(), images(), iterations=2)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert logging.getLogger("pytorch_lightning").level == level
    assert warnings.filters == filters


def test_defaults_and_targets() -> None:
    batch = images()
    explanation = explain(Tiny(), batch, [4, 0, 4], iterations=2)
    assert isinstance(explanation, Explanation)
    assert explanation.targets.tolist() == [4, 0, 4]
    assert explanation.mask.shape == (3, 3, 12, 12)
    assert explanation.saliency().shape == (3, 12, 12)
    assert explanation.saliency().min() >= 0
    assert explanation.sparsity.shape == explanation.score_image.shape == explanation.score_explanation.shape == (3,)
    own = explain(Tiny(), batch, [4, 0, 4], iterations=2, normalize=((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
    assert not torch.equal(own.score_image, explanation.score_image)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"game": "destruction"}, "Expected game to be one of preservation, .* but got 'destruction'"),
        ({"game": 5}, "Expected game to be one of preservation, .* but got 5"),
        ({"lam": -0.1}, "Expected lam to be 'auto' or a number from 0 to 1e30, but got -0.1"),
        ({"lam": "automatic"}, "Expected lam to be 'auto' or a number"),
        ({"lam": float("nan")}, "Expected lam to be 'auto' or a number"),
        ({"iterations": 0}, "Expected iterations from 1 to 1000000, but got 0"),
        ({"noise": -1.0}, "Expected noise to be a number of at least 0"),
        ({"level": 0.0}, "Expected level to be more than 0"),
        ({"score": "logit"}, "Expected score to be one of probability, log_probability, but got 'logit'"),
        ({"reference": "white"}, "Expected reference to be one of zero, .* but got 'white'"),
        ({"exempt": ["softmacks"]}, "Expected exempt to name functions"),
        ({"class_names": ["a"]}, "Expected options of FGVis, but got class_names. Nearest: classes"),
        ({"targets": [0, 1]}, r"Expected 3 targets, class indices from 0, but got \[0, 1\]"),
        ({"targets": [0, 1, -1]}, "Expected 3 targets, class indices from 0"),
        ({"targets": [0, 1, 5]}, r"Expected targets among the 5 classes of Tiny \(0 to 4\), but got 5"),
        ({"classes": ["a", "b"]}, "Expected 5 class names for Tiny, but got 2"),
        (
            {"images": images() * 5 - 2},
            r"Expected images in \[0,1\] before normalization, but got .* Pass mean and std",
        ),
        ({"images": images()[:, :1]}, r"Expected images of shape \(B,3,H,W\) or \(3,H,W\), but got \(3, 1, 12, 12\)"),
        ({"images": (images() * 255).long()}, r"Expected images in \[0,1\].* got torch.int64"),
        ({"images": images(size=4)}, r"Expected Tiny to run on images of 4×4 pixels, but it does not|4×4"),
        (
            {"network": WrongShape()},
            r"Expected WrongShape to return logits of shape \(3, classes\), but got \(3, 5, 1\)",
        ),
        (
            {"network": NotANumber()},
            "to return finite logits, but got NaN or infinity for 3 of 3 images",
        ),
        ({"batch_size": -1}, "Expected batch_size from 1 to"),
        ({"batch_size": 0}, "Expected batch_size from 1 to"),
        ({"batch_size": "all"}, "Expected batch_size from 1 to 1000000, a whole number, but got 'all'"),
        ({"seeds": 2.0}, "Expected seeds from 1 to 1000, a whole number, but got 2.0"),
        ({"iterations": "5"}, "Expected iterations from 1 to"),
        ({"iterations": 2.5}, "Expected iterations from 1 to"),
        ({"patience": None}, "Expected patience from 0 to"),
        ({"level": "0.5"}, "Expected level to be a number, but got '0.5'"),
        ({"normalize": (0.5, 0.5)}, "Expected normalize to be mean and std with a number for each channel"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str) -> None:
    if options.get("images") is not None and options["images"].shape[-1] == 4:
        options["network"] = Plain(size=8)
    options = {"network": Tiny(), "images": images(), "iterations": 2, **options}
    with pytest.raises(InputError, match=message):
        explain(**options)


def test_auto_judges_masks_without_the_noise() -> None:
    network, batch = Tiny(), images()
    explanation = explain(network, batch, game="preservation", iterations=60, noise=1.0)
    assert explanation.feasible is not None
    assert explanation.feasible.all()
    assert (explanation.score_explanation >= explanation.score_image * (1 - 1e-6)).all()
    assert (explanation.sparsity > 0).all()
    assert not torch.equal(explanation.mask, explain(network, batch, game="preservation", iterations=60).mask)


@pytest.mark.parametrize("options", [{"devices": 2, "strategy": "ddp"}, {"devices": 1, "strategy": "ddp"}])
def test_strategies_that_average_masks_are_refused(options: dict[str, Any]) -> None:
    model = FGVis(Tiny(), iterations=2)
    model.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **options)
    with pytest.raises(
        InputError, match="Expected the strategy independent, or auto, but got DDPStrategy: it would average the masks"
    ):
        model.setup("fit")


OPTIONS: list[tuple[str, Any]] = [
    ("accumulate_grad_batches", 2),  # half of the steps would be lost
    ("gradient_clip_val", 0.5),  # the masks of different images would share one norm
    ("fast_dev_run", True),  # ends after one iteration
    ("overfit_batches", 3),
    ("limit_train_batches", 0),
    ("limit_train_batches", 1),
    ("limit_train_batches", 0.5),
    ("max_steps", 3),
]


@pytest.mark.parametrize(("name", "given"), OPTIONS)
def test_options_for_training_networks_are_refused(name: str, given: Any) -> None:
    model = FGVis(Tiny(), iterations=2)
    options: dict[str, Any] = {name: given}
    model.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **options)
    with pytest.raises(InputError, match=f"Expected no --trainer.{name}, since .* but got {given}. Remove it"):
        model.setup("fit")


@pytest.mark.parametrize(
    "callback",
    [
        callbacks.BatchSizeFinder(),
        callbacks.GradientAccumulationScheduler({0: 2}),
        callbacks.LearningRateFinder(),
        callbacks.LearningRateMonitor(),  # a solver has no learning rate
        callbacks.StochasticWeightAveraging(0.1),
    ],
    ids=lambda callback: type(callback).__name__,
)
def test_callbacks_for_training_networks_are_refused(callback: pl.Callback) -> None:
    model = FGVis(Tiny(), iterations=2)
    model.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[callback])
    with pytest.raises(InputError, match=f"Expected callbacks .* but got {type(callback).__name__}. Remove it"):
        model.setup("fit")


@pytest.mark.filterwarnings("ignore::lightning_fabric.utilities.warnings.PossibleUserWarning")
def test_learning_rates_are_watched_where_there_is_one(tmp_path: Path) -> None:
    watch = callbacks.LearningRateMonitor()
    quiet: Any = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, logger=CSVLogger(tmp_path), callbacks=[watch], **quiet)
    data = SweepData(Sweep([(Item("0", "", -1), images(1)[0])], 1, 1))
    trainer.fit(FGVis(Tiny(), iterations=2, lam=0.01), datamodule=data)
    assert watch.lrs == {"lr-SGD": [0.1]}


def test_defense_holds_back_a_false_class_that_autograd_reaches() -> None:
    """Without gates the generation game drives the score further than the image's features can."""
    network, batch = Tiny(seed=3), images(8, seed=5)
    options: dict[str, Any] = {"game": "generation", "lam": 0.0, "iterations": 60}
    undefended = explain(network, batch, [0] * 8, defended=False, **options)
    defended = explain(network, batch, [0] * 8, **options)
    assert (undefended.score_explanation > defended.score_explanation).all()


class Swish(nn.Module):
    """An activation written by hand, in a network with two outputs."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class TwoOutputs(Plain):
    def __init__(self) -> None:
        super().__init__(Swish())

    def forward(self, x: Tensor) -> Any:
        logits = super().forward(x)
        return logits[:, :1], logits


def test_gated_and_output_reach_the_network() -> None:
    torch.manual_seed(0)
    network = TwoOutputs()
    x = torch.rand(2, 3, 8, 8)
    with pytest.raises(InputError, match="2 of mul of a tensor with a function of itself in act"):
        explain(network, x, iterations=2, output=1)
    with pytest.raises(
        InputError, match="Expected the logits of TwoOutputs in its output 'logits', but got tuple with 0, 1"
    ):
        explain(network, x, iterations=2)
    explanation = explain(network, x, iterations=5, output=1, gated=[f"{__name__}.Swish"])
    assert explanation.coverage is not None
    assert explanation.coverage.gated == {"Swish": 2}
    assert explanation.coverage.closed is not None
    assert explanation.coverage.closed.shape == (2, 2)
    assert "2 of 2 nonlinearity calls gated: 2 Swish" in str(explanation.coverage)


def test_network_with_a_path_without_gates_is_explained_with_a_warning() -> None:
    class Skip(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return self.head((self.conv2(self.act(self.conv1(x))) + self.conv2(self.conv1(x))).flatten(1))

    x = torch.rand(1, 3, 8, 8)
    with pytest.warns(UserWarning, match="Skip: A path from the image to the logits has no gate"):
        explain(Skip(), x, iterations=2, exempt=["residual"])
    explain(Skip(), x, iterations=2)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
@pytest.mark.parametrize("game", ["preservation", "generation"])
def test_closed_gates_on_the_image_stop_the_run(game: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reference pass that is computed in another way than the iterations."""
    explain(Tiny(), images(), game=game, iterations=2, precision=precision)  # type: ignore[arg-type]
    record = DefendedCNN.record
    monkeypatch.setattr(DefendedCNN, "record", lambda self, x: record(self, x * 0.999))
    with pytest.raises(
        InputError, match=r"Expected every gate to be open on the image itself.*first relu in features.2"
    ):
        explain(Tiny(), images(), game=game, iterations=2, precision=precision)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("network", "told"),
    [
        (lambda: torch.jit.trace(Tiny().eval(), torch.rand(1, 3, 16, 16)), "scripted, traced or exported"),
        (lambda: Tiny().double(), "but its weights are torch.float64"),
        (lambda: Tiny().half(), "but its weights are torch.float16"),
    ],
)
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_networks_that_are_not_classifiers_in_float32_are_refused(network: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        explain(network(), torch.rand(2, 3, 16, 16), iterations=2)


def test_images_of_whole_numbers_are_refused_with_the_remedy() -> None:
    with pytest.raises(InputError, match="Divide them by 255"):
        explain(Tiny(), torch.randint(256, (2, 3, 16, 16)))


def test_explains_in_inference_mode() -> None:
    images, network = torch.rand(2, 3, 16, 16), Tiny().eval()
    outside = explain(network, images, iterations=3)
    with torch.inference_mode():
        inside = explain(network, images.clone(), iterations=3)
    assert torch.equal(inside.mask, outside.mask)


def test_a_run_that_fails_leaves_no_hooks() -> None:
    class Odd(nn.Module):
        """Runs once."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.layers(x) + (torch.erfinv(x.tanh()).mean() if self.calls else 0)

    for network, size in ((Odd().eval(), 16), (nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).eval(), 16)):
        with pytest.raises(InputError):
            explain(network, torch.rand(1, 3, size, size), iterations=2)
        for module in network.modules():
            assert not any(getattr(module, name) for name in vars(module) if "_hooks" in name)


@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize("options", [{}, {"lam": 0.01}, {"defended": False}, {"precision": "bf16-mixed"}])
def test_what_is_saved_comes_back(tmp_path: Path, game: Any, options: dict[str, Any]) -> None:
    found = explain(Tiny(), images(), game=game, iterations=12, classes=[*"abcde"], **options)
    for index in range(3):
        found.save(tmp_path / f"{index}.safetensors", index)
    loaded = load_explanations(tmp_path)
    assert list(loaded) == [found[0], found[1], found[2]] == list(found)
    assert repr(loaded) == repr(found)
    assert Explanation.concatenate(list(loaded[1:])) == found[1:]
    assert (loaded[0].names, loaded[0].metadata, loaded[0].ids) == (found.names[:1], {}, ("0",))


@pytest.mark.filterwarnings("ignore:.*has no gate")
def test_a_network_without_gates_comes_back(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(432, 4)).eval()
    found = explain(network, images(1), iterations=3)
    found.save(tmp_path / "0.safetensors")
    assert load_explanation(tmp_path / "0.safetensors") == found


@pytest.mark.parametrize(("batch_size", "total"), [(None, 3), (2, 6), (1, 9)])
def test_a_bar_counts_the_iterations_of_all_batches(
    capsys: pytest.CaptureFixture[str], batch_size: int | None, total: int
) -> None:
    explain(Tiny(), images(), iterations=3, seeds=1, batch_size=batch_size, progress=True)
    shown = capsys.readouterr().err
    assert f"0/{total} " in shown
    assert f"{total}/{total} " in shown
    assert "iterations" in shown
    explain(Tiny(), images(), iterations=3, seeds=1, batch_size=batch_size)
    assert "iterations" not in capsys.readouterr().err


def test_a_bar_leaves_out_what_a_converged_batch_does_not_need(capsys: pytest.CaptureFixture[str]) -> None:
    found = explain(Tiny(), images(), iterations=400, lam=1e-6, batch_size=1, patience=5, tolerance=0.9, progress=True)
    assert found.iterations is not None
    needed = int(found.iterations.sum())
    assert needed < 1200
    assert "0/1200 " in (shown := capsys.readouterr().err)
    assert f"{needed}/{needed} " in shown
