from __future__ import annotations

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision
import yaml
from command_line import CPU, NETWORK, TINY, fit
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_networks import Hungry, Tiny

from fgvis_lightning import load_explanation, load_explanations
from fgvis_lightning.cli import main
from fgvis_lightning.experiments.run import SweepRun
from fgvis_lightning.results.folder import Levels
from fgvis_lightning.results.numbers import percent

PhotoMaker = Callable[..., Path]


def fails(capsys: pytest.CaptureFixture[str], output: Path, images: Path | str, *more: str) -> str:
    """The one line that a user's mistake ends with."""
    with pytest.raises(SystemExit) as stopped:
        fit(output, images, *more)
    assert stopped.value.code not in (0, None)
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def test_panels_for_print(photo: PhotoMaker, output: Path) -> None:
    fit(output, photo("in/a.png"), "--writer.formats", "[svg, pdf]")
    found = {path.suffix: path.read_bytes() for path in (output / "panels").iterdir()}
    assert set(found) == {".svg", ".pdf"}
    assert found[".pdf"].startswith(b"%PDF")
    assert b"<svg" in found[".svg"]
    assert b"image/png;base64" in found[".svg"], "the pixels as they are"
    assert b"</text>" in found[".svg"], "words that can be edited"


def test_a_run_leaves_what_the_readme_promises(folder: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = output.parent / "names.txt"
    names.write_text("cat\ndog\nschool bus\ncar\ntree\n")
    fit(
        output,
        folder,
        "--data.batch_size",
        "2",
        "--model.classifier.classes",
        str(names),
        "--data.targets",
        "[school bus, top2]",
    )
    paths = sorted((output / "explanations").iterdir())
    assert len(paths) == 9
    assert paths[0].name == "photo_0@school_bus.safetensors"
    assert {path.stem for path in (output / "panels").iterdir()} == {path.stem for path in paths}
    rows = list(csv.DictReader((output / "summary.csv").read_text().splitlines()))
    assert [row["id"] for row in rows] == [path.stem for path in paths]
    first = load_explanation(paths[0])
    assert first.metadata["image"] == str(folder / "photo 0.png")
    assert (first.targets.tolist(), first.names) == ([2], ("school bus",))
    assert rows[0]["score_explanation"] == repr(float(first.score_explanation))
    assert json.loads(first.metadata["settings"])["lam"] == "auto"
    assert first.coverage is not None
    assert [(layer.name, layer.module) for layer in first.coverage.layers] == [
        ("relu", "features.2"),
        ("relu6", "features.4"),
    ]
    layers = list(csv.DictReader((output / "coverage.csv").read_text().splitlines()))
    assert [(row["layer"], row["module"], row["nonlinearity"], row["items"]) for row in layers] == [
        ("0", "features.2", "relu", "9"),
        ("1", "features.4", "relu6", "9"),
    ]
    shares = [explanation.coverage.closed[0, 0] for explanation in load_explanations(output)]  # type: ignore
    assert float(layers[0]["closed"]) == pytest.approx(float(sum(shares)) / 9, abs=1e-5)
    assert max(shares) > 0
    with Image.open(output / "panels" / "photo_0@school_bus.png") as panel:
        assert panel.width > 2 * 16 * 28, "two pictures side by side, or three"
    printed = capsys.readouterr().out
    assert "9 of 9 items explained" in printed
    assert "tensorboard" not in printed, "one next command"
    assert f"To view all results on one page: fgvis report {output}" in printed
    assert "2 of 2 nonlinearity calls gated: 1 relu, 1 relu6\n" in printed
    assert "closed gates: features.2" in printed
    assert "9 of 9 items done" in printed
    rows = list(csv.DictReader((output / "summary.csv").read_text().splitlines()))
    most = max(rows, key=lambda row: float(row["evidence"]))
    assert f"Look first at {most['id']} (most evidence, {percent(float(most['evidence']))}" in printed
    assert "items/min" in printed
    config = yaml.safe_load((output / "config.yaml").read_text())
    assert config["model"]["iterations"] == 4


def test_saved_configuration_runs_as_it_is(folder: Path, output: Path) -> None:
    fit(output, folder)
    again = output.parent / "again"
    main(["fit", "--config", str(output / "config.yaml"), "--output", str(again)])
    for one, other in zip(load_explanations(output), load_explanations(again), strict=True):
        assert torch.equal(one.mask, other.mask)
        assert one.metadata == other.metadata


def test_tensorboard_shows_curves_masks_and_hyperparameters(folder: Path, output: Path) -> None:
    fit(
        output,
        folder,
        "--tensorboard.every_n_iterations",
        "2",
        "--trainer.log_every_n_steps",
        "1",
        "--data.batch_size",
        "2",
    )
    events = EventAccumulator(str(output / "tensorboard"), size_guidance={"images": 0}).Reload()
    tags = events.Tags()
    assert {"score", "mean evidence"} <= set(tags["scalars"])
    assert len(events.Scalars("score")) == 8
    ids = [explanation.ids[0] for explanation in load_explanations(output)]
    kinds = ("evidence", "by color channel", "panel", "gates")
    assert set(tags["images"]) == {"gates", *(f"{id}/{kind}" for id in ids for kind in kinds)}
    masks = events.Images(f"{ids[0]}/by color channel")
    assert [(image.step, image.width, image.height) for image in masks] == [(2, 16, 16), (4, 16, 16)]
    final = EventAccumulator(str(output / "tensorboard" / "final")).Reload()
    assert {"final/score", "final/mean evidence"} <= set(final.Tags()["scalars"])
    assert "_hparams_/session_start_info" in final.summary_metadata


def test_resuming_explains_what_is_missing(folder: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data.targets", "[predicted, 1]", "--data.batch_size", "4"]
    fit(output, folder, *options)
    whole = list(load_explanations(output))
    gone = sorted((output / "explanations").iterdir())[1:5]
    for path in gone:
        path.unlink()
    capsys.readouterr()
    fit(output, folder, *options)
    assert "4 of 6 items explained, 2 were already there" in capsys.readouterr().out
    for one, other in zip(load_explanations(output), whole, strict=True):
        assert torch.equal(one.mask, other.mask)
        assert one.metadata == other.metadata
    fit(output, folder, *options)
    assert "0 of 6 items explained, 6 were already there" in capsys.readouterr().out


def test_another_progress_bar_takes_the_place_of_ours(
    folder: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(output, folder, "--trainer.callbacks+=TQDMProgressBar")
    printed = capsys.readouterr()
    assert "Epoch 0: 100%" in printed.out + printed.err
    assert "items/min" not in printed.out
    assert "3 of 3 items explained" in printed.out


@pytest.mark.skipif(find_spec("wandb") is not None, reason="needs a logger whose package is missing")
def test_a_logger_whose_package_is_missing(folder: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        fit(output, folder, "--trainer.logger", "WandbLogger")
    assert ended.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("fgvis: Expected to make pytorch_lightning.loggers.WandbLogger, but it reports: ")
    assert "wandb" in error.partition("reports: ")[2]


def test_levels_that_were_missed_are_told(folder: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(output, folder, "--data.targets", "[top1, top2]")
    paths = sorted((output / "explanations").iterdir())
    assert len(paths) == 6
    capsys.readouterr()

    def go_on(missed: int) -> str:
        for number, path in enumerate(paths):
            explanation = load_explanation(path)
            says = {**explanation.metadata, "feasible": str(number >= missed).lower()}
            explanation.save(path, 0, says)
        fit(output, folder, "--data.targets", "[top1, top2]")
        return capsys.readouterr().out

    assert "did not reach" not in go_on(0)
    remedy = ". Try more --model.iterations, or another --model.level.\n"
    assert f"2 of 6 did not reach their level ({paths[0].stem}, {paths[1].stem}){remedy}" in go_on(2)
    assert f"({', '.join(path.stem for path in paths[:5])} and 1 more){remedy}" in go_on(6)


@pytest.mark.parametrize(
    ("least", "words"),
    [
        (("b", 0.127), "Look first at a (most evidence, 36.4 %) and b (least agreement, 0.13; 0.1 to 0.6 is usual)."),
        (("a", 0.127), "Look first at a (most evidence, 36.4 %; least agreement, 0.13; 0.1 to 0.6 is usual)."),
        (None, "Look first at a (most evidence, 36.4 %)."),
    ],
)
def test_what_to_look_at_first_of_several_items(least: tuple[str, float] | None, words: str) -> None:
    for count, lines in ((4, []), (5, [words])):
        writer = SimpleNamespace(levels=Levels(count, [], ("a", 0.3641), least))
        assert SweepRun.what_to_look_at(SimpleNamespace(writer=writer)) == lines  # type: ignore[arg-type]


def test_a_fixed_weight_has_no_level(folder: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(output, folder, "--model.lam", "10")
    printed = capsys.readouterr().out
    assert "3 of 3 items explained" in printed
    assert "did not reach" not in printed


def test_another_configuration_is_refused_and_nothing_is_touched(
    folder: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(output, folder)
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file() and "tfevents" not in path.name}
    error = fails(capsys, output, folder, "--model.game", "deletion")
    assert "(game preservation there and deletion now)" in error
    assert "Choose another --output" in error
    assert before == {path: path.read_bytes() for path in before}


def test_damaged_images_are_reported_and_the_others_explained(
    folder: Path, photo: PhotoMaker, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = photo("whole.jpg", 64, 64).read_bytes()
    (folder / "photo 1b.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "photo 1c.png").write_text("not an image")
    error = fails(capsys, output, folder, "--data.batch_size", "2")
    assert error.startswith("fgvis: 2 of 5 items could not be read:\n")
    assert "photo 1b.jpg cannot be decoded" in error
    assert "Pillow does not recognize the format of" in error
    assert len(load_explanations(output)) == 3
    assert len((output / "summary.csv").read_text().splitlines()) == 4


def test_corrupt_and_foreign_explanations_are_computed_again(
    folder: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(output, folder)
    whole = {path.name: path.read_bytes() for path in (output / "explanations").iterdir()}
    corrupt, foreign, _ = sorted((output / "explanations").iterdir())
    data = bytearray(corrupt.read_bytes())
    data[-20] ^= 1  # within the mask
    corrupt.write_bytes(data)
    other = output.parent / "other"
    fit(other, folder, "--model.game", "deletion")
    foreign.write_bytes((other / "explanations" / foreign.name).read_bytes())
    capsys.readouterr()
    fit(output, folder)
    printed = capsys.readouterr().out
    assert f"{corrupt} is damaged or of another kind (its checksum is wrong): it will be computed again" in printed
    assert f"{foreign} belongs to another configuration: it will be computed again" in printed
    assert "2 of 3 items explained, 1 was already there" in printed
    assert {path.name: path.read_bytes() for path in (output / "explanations").iterdir()} == whole


def test_images_that_are_bombs_or_gone_cost_nothing_else(
    folder: Path, photo: PhotoMaker, output: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    photo("in/photo 3.png", 200, 200)
    photo("in/photo 4.png", 400, 400)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 32_000)  # Pillow warns of the first and refuses the second
    error = fails(capsys, output, folder, "--data.targets", "[predicted, 1]")
    assert error.startswith("fgvis: 4 of 10 items could not be read:\n")
    assert len(error.splitlines()) == 3, "one line for each image"
    assert len(load_explanations(output)) == 6
    assert {path.name for path in (output / "failures").iterdir()} == {"photo_3.txt", "photo_4.txt"}
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    fit(output, folder, "--data.targets", "[predicted, 1]")
    assert "4 of 10 items explained, 6 were already there" in capsys.readouterr().out
    assert not (output / "failures").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_file_names_that_are_no_text(
    folder: Path, photo: PhotoMaker, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = os.fsdecode(b"in/caf\xe9.png")
    photo("plain.png").rename(folder.parent / odd)
    (folder / os.fsdecode(b"broken\xff.png")).write_text("not an image")
    error = fails(capsys, output, folder)
    assert r"broken\udcff.png" in error
    images = [explanation.metadata["image"] for explanation in load_explanations(output)]
    assert str(folder / r"caf\udce9.png") in images
    assert len(images) == 4


def test_threads_of_a_cpu_are_those_of_the_first_run(
    folder: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another number rounds differently."""
    seen = set()
    forward = Tiny.forward

    def counting(self: Tiny, x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():  # folding looks at it without
            seen.add(torch.get_num_threads())
        return forward(self, x)

    before = torch.get_num_threads()
    try:
        for threads in (2, 1):
            torch.set_num_threads(threads)
            fit(output, folder)
            assert torch.get_num_threads() == threads
            assert json.loads((output / "sweep.json").read_text())["cpu_threads"] == 2
            next((output / "explanations").iterdir()).unlink()
            monkeypatch.setattr(Tiny, "forward", counting)
        assert seen == {2}
    finally:
        torch.set_num_threads(before)


def test_batch_size_auto_is_found_once(
    folder: Path, output: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(4):
        (folder / f"more {i}.png").write_bytes((folder / "photo 0.png").read_bytes())
    hungry = ["--model.network", "toy_networks.Hungry", "--data.batch_size", "auto"]
    fit(output, folder, *hungry)
    assert json.loads((output / "sweep.json").read_text())["batch_size"] == 5
    whole = {path.name: path.read_bytes() for path in (output / "explanations").iterdir()}
    assert len(whole) == 7
    for name in list(whole)[2:]:
        (output / "explanations" / name).unlink()
    # Where more would fit meanwhile; the fingerprint names the network.
    with monkeypatch.context() as patched:
        patched.setattr(Hungry, "forward", Tiny.forward)
        fit(output, folder, *hungry)
    assert json.loads((output / "sweep.json").read_text())["batch_size"] == 5
    assert {path.name: path.read_bytes() for path in (output / "explanations").iterdir()} == whole
    error = fails(capsys, output.parent / "fixed", folder, "--model.network", "toy_networks.Hungry")
    assert "Expected a batch of 7 to fit the memory of cpu, but it does not. Use --data.batch_size 3 or auto" in error


def test_masks_that_ranks_would_average_are_refused(
    folder: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = fails(capsys, output, folder, "--trainer.strategy", "ddp", "--trainer.devices", "2")
    assert "Expected the strategy independent, or auto, but got DDPStrategy" in error


@pytest.mark.parametrize(
    ("environment", "launcher"),
    [
        ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, "torchrun"),
        ({"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "sweep", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": "0"}, "SLURM"),
    ],
)
def test_processes_that_are_not_those_of_the_sweep(
    environment: dict[str, str],
    launcher: str,
    folder: Path,
    output: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {**environment, "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}.items():
        monkeypatch.setenv(name, value)
    error = fails(capsys, output, folder)
    message = f"to be 2, the number of processes that {launcher} has started, but got 1 times 1."
    assert f"Expected --trainer.devices times --trainer.num_nodes {message}" in error


def test_only_damaged_images(tmp_path: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_text("not an image")
    error = fails(capsys, output, tmp_path / "a.png")
    assert "1 of 1 items could not be read" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.targets", "shool bus"], "Nearest: school bus"),
        (["--data.targets", "5"], "Expected a class index from 0 to 4, but got 5"),
        (["--model.lam", "-1"], "Expected lam to be 'auto' or a number from 0 to 1e30, but got -1"),
        (["--model.iterations", "0"], "Expected iterations from 1 to 1000000"),
        (["--model.network", "toy_networks.NotANumber"], "to return finite logits"),
        (["--model.network", "toy_networks.WrongShape"], "to return logits of shape"),
        (["--model.network", "toy_networks.Hidden"], "1 of sigmoid"),
        (["--model.defense.exempt", "[softmacks]"], "Expected exempt to name functions"),
        (["--model.network", "resnet19"], "Nearest: resnet"),
        (["--model.classifier.checkpoint", "nowhere.pth"], "nowhere.pth: No such file"),
        (["--model.classifier.size", "[96, 96]"], "at least half the network's input of 96×96 pixels"),
        (["--data.images", "nowhere.png"], "but nowhere.png does not exist"),
        (["--data.images", "package:no_such_package/a.png"], "Expected the package 'no_such_package'"),
        (["--data.batch_size", "0"], "Expected batch_size to be at least 1"),
        (["--model.game", "destruction"], "destruction"),
    ],
)
def test_mistakes_end_in_one_clear_line(
    options: list[str], message: str, folder: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = output.parent / "names.txt"
    names.write_text("cat\ndog\nschool bus\ncar\ntree\n")
    images, options = (options[1], []) if options[0] == "--data.images" else (folder, options)
    error = fails(capsys, output, images, "--model.classifier.classes", str(names), *options)
    assert message in error


def test_output_that_cannot_be_written_to(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    error = fails(capsys, tmp_path / "file" / "out", folder)
    assert "Expected a writable folder" in error
    assert "Choose another --output" in error


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (
            ["torchvision.models.squeezenet1_1", "--model.network.weights", "IMAGENET1K_V1"],
            "SqueezeNet (SqueezeNet1_1_Weights.IMAGENET1K_V1)",
        ),
        (
            ["torchvision.models.resnext50_32x4d", "--model.network.weights", "IMAGENET1K_V1"],
            "ResNet (ResNeXt50_32X4D_Weights.IMAGENET1K_V1)",
        ),
        (
            [
                *("torchvision.models.get_model", "--model.network.name", "shufflenet_v2_x0_5"),
                *("--model.network.dict_kwargs.weights", "DEFAULT"),
            ],
            "ShuffleNetV2 (ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1)",
        ),
    ],
)
def test_torchvision_network_with_its_weights_entry(
    options: list[str], name: str, folder: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`class_path` and weights as torchvision has them; only the download is replaced."""
    torch.manual_seed(3)
    network = torchvision.models.get_model(options[2] if "name" in options[1] else options[0].rpartition(".")[2])
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda *_, **__: network.state_dict())
    main(
        [
            *("fit", "--output", str(output), "--data.images", str(folder), "--model.iterations", "1", *CPU),
            *("--model.network", *options, "--data.upscale", "true", "--data.batch_size", "1"),
        ]
    )
    found = load_explanations(output)[0]
    settings = json.loads(found.metadata["settings"])
    assert settings["network"] == name
    assert (settings["size"], settings["resize"], settings["interpolation"]) == ([224, 224], 256, "bilinear")
    assert found.name(0) in torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]


def test_network_that_cannot_be_built(folder: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = fails(capsys, output, folder, "--model.network", "toy_networks.Broken")
    assert "Expected to build the network toy_networks.Broken, but it raised RuntimeError('no such thing')" in error
    assert "--model.classifier.checkpoint" in error


def test_own_module_with_checkpoint_and_optimizer(folder: Path, output: Path) -> None:
    torch.save(Tiny(seed=7).state_dict(), output.parent / "own.pth")
    fit(
        output,
        folder,
        *("--model.classifier.checkpoint", str(output.parent / "own.pth"), "--model.optimizer", "torch.optim.Adam"),
        *(
            "--model.lam",
            "0.01",
            "--model.optimizer.lr",
            "0.02",
            "--model.classifier.mean",
            "[0.4, 0.4, 0.4]",
            "--trainer.precision",
            "64-true",
        ),
    )
    settings = json.loads(load_explanations(output)[0].metadata["settings"])
    assert settings["network"] == "Tiny (own.pth)"
    assert settings["optimizer"].startswith("Adam {")
    assert "'lr': 0.02" in settings["optimizer"]
    assert settings["mean"] == [0.4, 0.4, 0.4]
    assert settings["precision"] == "64-true"


def test_labels_from_an_imagefolder(photo: PhotoMaker, tmp_path: Path, output: Path) -> None:
    for index, name in enumerate(("n1", "n2", "n3", "n4", "n5")):
        photo(f"tree/{name}/{index}.png", seed=index)
    (tmp_path / "names.txt").write_text("cat\ndog\nbus\ncar\ntree\n")
    fit(output, tmp_path / "tree", "--data.targets", "label", "--model.classifier.classes", str(tmp_path / "names.txt"))
    assert [e.ids[0] for e in load_explanations(output)] == ["0@cat", "1@dog", "2@bus", "3@car", "4@tree"]


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_finished_and_the_next_run_goes_on(folder: Path, output: Path) -> None:
    command = [sys.executable, "-c", "from fgvis_lightning.cli import main; main()", "fit", *TINY, *CPU]
    command += ["--output", str(output), "--data.images", str(folder), "--data.batch_size", "1"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    slow = [*command, "--model.iterations", "1500"]
    log = output.parent / "log.txt"
    with log.open("w") as file:
        process = subprocess.Popen(slow, env=environment, stdout=file, stderr=subprocess.STDOUT)
    while process.poll() is None and not list(output.glob("explanations/*.safetensors")):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) not in (0, None), log.read_text()[-2000:]
    assert "Traceback" not in log.read_text()
    done = len(load_explanations(output))
    assert 1 <= done < 3
    assert len((output / "summary.csv").read_text().splitlines()) == 1 + done
    finished = subprocess.run(slow, env=environment, capture_output=True, text=True, check=True, timeout=300)
    assert f"{3 - done} of 3 items explained, {done} {'was' if done == 1 else 'were'} already there" in finished.stdout
    assert len(load_explanations(output)) == 3


def test_no_command_takes_the_place_of_another(folder: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its ``config.yaml`` would be lost, and ``evaluate`` and ``report`` would show one of the two in silence."""
    fit(output, folder)
    config = (output / "config.yaml").read_bytes()
    images = ["--data.images", str(folder), "--methods", "{gradient: {class_path: fgvis_lightning.baselines.Gradient}}"]
    for command in (
        ["compare", *images],
        ["benchmark", *images],
        ["evaluate", "--results", str(output)],
        ["sanity", "--images", *images[1:]],
    ):
        with pytest.raises(SystemExit) as stopped:
            main([command[0], *NETWORK, *command[1:], "--output", str(output)])
        assert stopped.value.code == 2
        assert (
            f"to be a folder of fgvis {command[0]}, but {output} holds results of fgvis fit" in capsys.readouterr().err
        ), command
    assert (output / "config.yaml").read_bytes() == config
    main(["compare", *NETWORK, *CPU, *images, "--output", str(output / "comparison")])
    with pytest.raises(SystemExit):
        main(["evaluate", "--results", str(output / "comparison"), "--output", str(output / "comparison")])
    assert "to be a folder of fgvis evaluate, but" in capsys.readouterr().err
    assert "holds results of fgvis compare. Choose another one" in fails(capsys, output / "comparison", folder)


def test_an_unknown_command_is_told_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["comparison"])
    assert stopped.value.code == 2
    assert (
        "Expected a command, fit, predict, report, compare, evaluate, benchmark, pointing, bias, adversarial, sanity, "
        "but got 'comparison'. Nearest: compare." in capsys.readouterr().err
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full is Linux's")
@pytest.mark.parametrize("command", [["--help"], ["fit", "--help"], ["report", "{done}"]])
def test_a_full_disk_under_standard_output_is_not_the_results(command: list[str], folder: Path, output: Path) -> None:
    fit(output, folder)
    command = [word.format(done=output) for word in command]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "fgvis_lightning", *command], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith("fgvis: Expected to write to standard output, but got: No space left on device.")


def test_a_file_that_may_not_grow_is_a_full_disk(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def write(*_: object) -> None:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))  # as after `ulimit -f`

    monkeypatch.setattr("fgvis_lightning.report.command.main", write)
    with pytest.raises(SystemExit) as stopped:
        main(["report", str(tmp_path)])
    assert stopped.value.code == 1
    assert capsys.readouterr().err.startswith("fgvis: Expected to write the results, but got: File too large.")


def test_sigterm_during_the_imports_is_a_stop() -> None:
    """A scheduler may preempt a command in its first seconds, too."""
    start = (
        "import os, signal, sys; from fgvis_lightning.cli import main; "
        "stop = lambda name, *_: os.kill(os.getpid(), signal.SIGTERM) if name == 'torch.nn' else None; "
        "sys.meta_path.insert(0, type('Stop', (), {'find_spec': stop})); main(['predict', '--data.images', 'x'])"
    )
    ended = subprocess.run([sys.executable, "-c", start], check=False, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr.count("\n")) == (75, 1)
    assert ended.stderr.startswith("fgvis: Stopped by SIGTERM. Finished items are kept.")


def test_a_pipe_that_closes() -> None:
    command = [sys.executable, "-m", "fgvis_lightning", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read().startswith("fgvis: Standard output was closed.")
    assert process.returncode == 141
