"""Mistakes: what is typed or lies there, and the line that it gets. Nothing is written, and nothing there is lost."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
import torch
from command_line import NETWORK, TINY
from PIL import Image

from fgvis_lightning.cli import main

if sys.platform == "linux":
    import resource

FIT = [*TINY, "--trainer.accelerator", "cpu"]
FILES = {
    "bad.png": b"\x89PNG\r\n\x1a\nnonsense",
    "zero.png": b"",
    "file": b"x",
    "texts/a.txt": b"x",
    "names.txt": b"a\nb\n",
    "nopath.csv": b"file\na.png\n",
    "blank.csv": b'path\n""\n',
    "none.csv": b"",
    "label.csv": b"path,label\nin/p0.png,1\n",
    "odd.csv": b"path,target\nin/p0.png,moped\n",
    "gone.csv": b"path,target\ngone.png,1\n",
    "bytes.csv": b"path\n\xff\x00\n",
    "big.csv": b"path,target\nin/p0.png,99\n",
    "broken.yaml": b"model: [unclosed",
    "list.yaml": b"- 1\n",
    "deep.json": b"[" * 5000 + b"]" * 5000,
    "unknown.yaml": b"model:\n  lamb: 3\n",
    "pickle.pt": b"\x80\x04cos\nsystem\n.",
}
OPTIONS: dict[str, dict[str, str]] = {
    "--model.lam": {
        "-1": "Expected lam to be 'auto' or a number from 0 to 1e30, but got -1.0.",
        "nan": "--model.lam: Expected a number or auto, but got nan",
        "inf": "--model.lam: Expected a number or auto, but got inf",
        "1e39": "Expected lam to be 'auto' or a number from 0 to 1e30, but got 1e+39.",
        "x": "--model.lam: Expected a number or auto, but got x",
        "": "--model.lam: Expected a number or auto, but got an empty text",
        "[1]": "--model.lam: Expected a number or auto, but got [1]",
    },
    "--model.level": {
        "0": "Expected level to be more than 0, but got",
        "-0.1": "Expected level to be more than 0, but got",
        "nan": "--model.level: Expected a number, but got nan",
        "inf": "--model.level: Expected a number, but got inf",
        "x": "--model.level: Expected a number, but got x",
    },
    "--model.iterations": {
        "0": "Expected iterations from 1 to 1000000, but got 0.",
        "-1": "Expected iterations from 1 to 1000000, but got -1.",
        "1.5": "--model.iterations: Expected a whole number, but got 1.5",
        "x": "--model.iterations: Expected a whole number, but got x",
        "null_": "--model.iterations: Expected a whole number, but got null_",
        "99999999999999999999": "Expected iterations from 1 to 1000000, but got 99999999999999999999.",
    },
    "--model.seeds": {
        "0": "Expected seeds from 1 to 1000, but got 0.",
        "-1": "Expected seeds from 1 to 1000, but got -1.",
        "x": "--model.seeds: Expected a whole number, but got x",
        "1000000000000": "Expected seeds from 1 to 1000, but got 1000000000000.",
    },
    "--model.patience": {
        "-1": "Expected patience from 0 to 1000000, but got -1.",
        "x": "--model.patience: Expected a whole number, but got x",
    },
    "--model.tolerance": {
        "-1": "Expected tolerance to be at least 0 and less than 1, but got -1.0.",
        "nan": "--model.tolerance: Expected a number, but got nan",
        "x": "--model.tolerance: Expected a number, but got x",
    },
    "--model.noise": {
        "-1": "Expected noise to be a number of at least 0, but got -1.0.",
        "nan": "--model.noise: Expected a number, but got nan",
        "inf": "--model.noise: Expected a number, but got inf",
        "x": "--model.noise: Expected a number, but got x",
    },
    "--model.seed": {
        "x": "--model.seed: Expected a whole number, but got x",
        "-1": "Expected seed from 0 to 4611686018427387904, but got -1.",
        "1.5": "--model.seed: Expected a whole number, but got 1.5",
        "99999999999999999999999": "Expected seed from 0 to 4611686018427387904, but got 99999999999999999999999.",
    },
    "--model.score": {
        "foo": "--model.score: Expected one of probability, log_probability, but got foo",
    },
    "--model.reference": {
        "foo": "--model.reference: Expected one of zero, blurred, noise, black, but got foo",
    },
    "--model.game": {
        "foo": "--model.game: Expected one of preservation, deletion, generation, repression, but got",
        "Deletion": "--model.game: Expected one of preservation, deletion, generation, repression, but got",
        "": "--model.game: Expected one of preservation, deletion, generation, repression, but got",
    },
    "--model.defended": {
        "maybe": "--model.defended: Expected true or false, but got maybe",
    },
    "--model.optimizer": {  # a function is refused by jsonargparse, or in its older versions by the program
        "os.system": "--model.optimizer",
        "torch.optim.Foo": "--model.optimizer: Expected a class_path that the option accepts, but got",
        "builtins.print": "--model.optimizer",
        "torch.optim.SGD": "Expected optimizer to be a solver for lam: auto, fgvis_lightning.method.solvers.Pruning",
    },
    "--model.network": {
        "nonsense": "Expected network to be a class_path (module.Class), a packaged network (packaged_",
        "": "or a timm model, but got ''.",
        "toy_networks.Missing": "Expected network to be a class_path (module.Class), a packaged network (packaged_",
        "os.system": "Expected network to be a class_path (module.Class), a packaged network (packaged_",
        "toy_networks:Tiny": "but got 'toy_networks:Tiny'. Did you mean toy_networks.Tiny?",
        "models/own.py:Tiny": "but got 'models/own.py:Tiny'. Did you mean models.own.Tiny?",
        "missing_module.X": "Expected network to be a class_path (module.Class), a packaged network (packaged_",
        "hf:foo": "Expected transformers to load an image classifier from foo, but it could not",
        "resnet19": "Expected network to be a class_path (module.Class), a packaged network (packaged_",
    },
    "--model.classifier.size": {
        "[0,16]": "Expected size to be a height and a width from 1 to 16384 and resize at least as large,",
        "[16]": "Expected a size of 2 for Tiny, whose first convolution takes images (B,C,H,W), but got one of 1.",
        "x": "--model.classifier.size: Expected a whole number or tuple, but got x",
        "[16,-1]": "Expected size to be a height and a width from 1 to 16384 and resize at least as large,",
        "[16,16,16]": "Expected a size of 2 for Tiny, whose first convolution takes images (B,C,H,W), but got one of",
        "[1000000000,1000000000]": "Expected size to be a height and a width from 1 to 16384",
    },
    "--model.classifier.resize": {
        "0": "Expected size to be a height and a width from 1 to 16384 and resize at least as large,",
        "-1": "Expected size to be a height and a width from 1 to 16384 and resize at least as large,",
        "8": "Expected size to be a height and a width from 1 to 16384 and resize at least as large,",
        "x": "--model.classifier.resize: Expected a whole number, but got x",
    },
    "--model.classifier.mean": {
        "[1,2]": "Expected mean and std with a value for each channel and std > 0, but got (1.0, 2.0) and",
        "x": "--model.classifier.mean: Expected tuple, but got x",
        "[nan,0,0]": "--model.classifier.mean: Expected a number. Got value: nan, but got ['nan', 0, 0]",
    },
    "--model.classifier.std": {
        "[0,0,0]": "Expected mean and std with a value for each channel and std > 0, but got (0.485, 0.456, 0.406)",
        "[1,1]": "Expected mean and std with a value for each channel and std > 0, but got (0.485, 0.456, 0.406)",
        "[-1,1,1]": "Expected mean and std with a value for each channel and std > 0, but got (0.485, 0.456, 0.406)",
        "[nan,1,1]": "--model.classifier.std: Expected a number. Got value: nan, but got ['nan', 1, 1]",
    },
    "--model.task": {
        "foo": "--model.task: Expected one of multiclass, multilabel, binary, but got foo",
        "regression": "--model.task: Expected multiclass, multilabel or binary, but got regression. An amount is not",
        "binary": "Expected one or two outputs for task binary, but got 5. Set multiclass or multilabel.",
    },
    "--model.outputs": {"foo": "--model.outputs: Expected one of logits, probabilities"},
    "--model.threshold": {
        "0": "Expected threshold between 0 and 1, but got 0.0.",
        "2": "Expected threshold between 0 and 1, but got 2.0.",
        "x": "--model.threshold: Expected a number, but got x",
    },
    "--model.classifier.bands": {
        "[1,2]": "Expected bands to be three from 1 to 3, but got (1, 2).",
        "[0,1,2]": "Expected bands to be three from 1 to 3, but got (0, 1, 2).",
        "[1,2,4]": "Expected bands to be three from 1 to 3, but got (1, 2, 4).",
    },
    "--model.inputs": {
        "{age: }": "Expected the input age as numbers or an .npy file, but got None",
        "{age: missing.npy}": "Expected the input age as numbers or an .npy file, but got 'missing.npy'",
        "3": "--model.classifier.inputs: Expected",
    },
    "--model.reduce": {
        "missing": "--model.classifier.reduce: Expected",
        "fgvis_lightning.networks.reduce.SegmentationLogits": "Expected dense logits (B,K,H,W), but got (1, 5).",
    },
    "--model.classifier.channels": {
        "foo": "--model.classifier.channels: Expected one of gray, rgb, all",
    },
    "--model.classifier.interpolation": {
        "foo": "Expected interpolation to be one of nearest, nearest-exact, bilinear, bicubic, box,",
    },
    "--model.classifier.order": {
        "RGX": "Expected order to be the letters R, G and B, e.g. BGR, but got 'RGX'.",
        "rgb": "Expected order to be the letters R, G and B, e.g. BGR, but got 'rgb'.",
        "": "Expected order to be the letters R, G and B, e.g. BGR, but got ''.",
    },
    "--model.classifier.levels": {
        "[1]": "Expected levels to be black and a larger white, e.g. [0, 4095], but got (1.0,).",
        "[5,2]": "Expected levels to be black and a larger white, e.g. [0, 4095], but got (5.0, 2.0).",
        "x": "--model.classifier.levels: Expected tuple, but got x",
        "[nan,1]": "--model.classifier.levels: Expected a number. Got value: nan, but got ['nan', 1]",
    },
    "--model.classifier.checkpoint": {
        "missing.pt": "Expected a file with weights, but missing.pt: No such file or directory.",
        "in": "Expected a file with weights, but in: Is a directory.",
        "in/p0.png": "Expected a file with weights that torch.load(weights_only=True) can read, but got in/p0.png:",
        "pickle.pt": "Expected a file with weights that torch.load(weights_only=True) can read, but got pickle.pt:",
        "notstate.pt": "Expected a state_dict (names to tensors) in notstate.pt, but got something else.",
        "other.pt": "Expected weights of Tiny in other.pt, but they do not fit: features.0.weight is",
        "": "Expected a file with weights, but an empty name: No such file or directory.",
    },
    "--model.classifier.classes": {
        "missing.txt": "Expected a text file with class names, but got missing.txt: No such file or",
        "in": "Expected a text file with class names, but got in: Is a directory.",
        "names.txt": "Expected 5 class names for Tiny, but got 2.",
        "in/p0.png": "Expected a text file with class names, but got in/p0.png: 'charmap' codec can't",
    },
    "--model.classifier.weights": {
        "Foo": "Expected weights as ResNet18_Weights.IMAGENET1K_V1, but got 'Foo': Invalid weight name",
        "ResNet18_Weights.FOO": "Expected weights as ResNet18_Weights.IMAGENET1K_V1, but got 'ResNet18_Weights.FOO':",
    },
    "--model.classifier.output": {
        "foo": "Expected Tiny to have several outputs, since output is 'foo', but it has one tensor.",
        "7": "Expected Tiny to have several outputs, since output is 7, but it has one tensor.",
    },
    "--model.defense.gate": {
        "foo": "--model.defense.gate: Expected one of strict, restoring, but got foo",
    },
    "--model.defense.exempt": {
        "[nonsense]": "Expected exempt to name functions of torch, such as 'sigmoid', or classes of modules,",
    },
    "--model.defense.gated": {
        "[nonsense]": "Expected gated to name functions of torch, such as 'sigmoid', or classes of modules,",
        "[torch.nn.Foo]": "Expected gated to name a class that can be imported, but got 'torch.nn.Foo': module",
    },
    "--data.targets": {
        "": "Expected the index of a class, but got the name '': the class names of Tiny are unknown.",
        "[]": "Expected targets, e.g. predicted, but got an empty list.",
        "top0": "Expected top with a number from 1 to 10000, but got top0.",
        "top999999999999": "Expected top with a number from 1 to 10000, but got top999999999999.",
        "top": "Expected the index of a class, but got the name 'top': the class names of Tiny are",
        "absent0": "Expected absent with a number from 1 to half of the classes, but got absent0 for 0",
        "absent999": "Expected absent with a number from 1 to half of the classes, but got absent999 for 0",
        "99": "Expected targets among the 5 classes of Tiny (0 to 4), but got 99.",
        "-1": "Expected a class index from 0 to K - 1, but got -1.",
        "moped": "Expected the index of a class, but got the name 'moped': the class names of Tiny",
        "label": "Expected a label for each image, but in/p0.png has none. Use folders named after",
        "1.5": "Expected the index of a class, but got the name '1.5': the class names of Tiny are",
        "null_": "Expected the index of a class, but got the name 'null_': the class names of Tiny",
    },
    "--data.classes": {
        "[moped]": "Expected the index of a class, but got the name 'moped': the class names of Tiny",
        "[99]": "Expected a label for each image, but in/p0.png has none. Use folders named after",
        "[]": "Expected a label for each image, but in/p0.png has none. Use folders named after",
    },
    "--data.batch_size": {
        "0": "Expected batch_size to be at least 1, or auto, but got 0.",
        "-3": "Expected batch_size to be at least 1, or auto, but got -3.",
        "x": "--data.batch_size: Expected a whole number or auto, but got x",
        "nan": "--data.batch_size: Expected a whole number or auto, but got nan",
        "1.5": "--data.batch_size: Expected a whole number or auto, but got 1.5",
        "true": "--data.batch_size: Expected a whole number. Got value: True or auto, but got true",
    },
    "--data.num_workers": {
        "-1": "Expected num_workers to be at least 0, but got -1.",
        "x": "--data.num_workers: Expected a whole number, but got x",
        "1.5": "--data.num_workers: Expected a whole number, but got 1.5",
    },
    "--data.upscale": {
        "maybe": "--data.upscale: Expected true or false, but got maybe",
    },
    "--output": {
        "file": "Expected a writable folder, but got file: Not a directory. Choose another",
        "file/under": "Expected a writable folder, but got file/under: Not a directory. Choose",
        "in/p0.png": "Expected a writable folder, but got in/p0.png: Not a directory. Choose",
        "/proc/x": "Expected a writable folder, but got /proc/x: No such file or directory.",
        "a\u0000b": "Expected a writable folder, but got a\u0000b: embedded null byte. Choose another",
        "": "Expected --output to name a folder, but got an empty name.",
    },
    "--trainer.devices": {
        "0": "Expected valid options of Lightning's Trainer, but it reports:",
        "x": "Expected valid options of Lightning's Trainer, but it reports:",
        "-2": "Expected valid options of Lightning's Trainer, but it reports:",
    },
    "--trainer.accelerator": {
        "foo": "Expected valid options of Lightning's Trainer, but it reports:",
        "gpu": "Expected valid options of Lightning's Trainer, but it reports:",
        "tpu": "Expected valid options of Lightning's Trainer, but it reports:",
    },
    "--trainer.precision": {
        "foo": "--trainer.precision: Expected a whole number or one of transformer-engine,",
    },
    "--trainer.strategy": {
        "foo": "Expected valid options of Lightning's Trainer, but it reports:",
        "ddp": "Expected the strategy independent, or auto, but got DDPStrategy: it would average the",
        "fsdp": "Expected valid options of Lightning's Trainer, but it reports:",
    },
    "--trainer.max_epochs": {
        "x": "--trainer.max_epochs: Expected a whole number, but got x",
    },
    "--trainer.num_nodes": {
        "0": "Expected valid options of Lightning's Trainer, but it reports:",
    },
    "--config": {
        "missing.yaml": "--config: File does not exist:",
        "broken.yaml": 'Problems parsing config: while parsing a flow sequence in "<unicode string>", line 1,',
        "list.yaml": "Unexpected config: - 1",
        "deep.json": "Expected a configuration in YAML, but it is nested too deeply or not a text.",
        "unknown.yaml": "Subcommand 'fit' does not accept option 'model.lamb'",
        "in": "--config: Path is not a file:",
        "in/p0.png": "Expected a configuration in YAML, but it is nested too deeply or not a text.",
        "": "--config: Unexpected config:",
    },
    "--model.lamb": {
        "1": "Expected an option of this command, but got --model.lamb. Nearest: --model.lam,",
    },
    "--dat.images": {
        "x": "Expected an option of this command, but got --dat.images. Nearest: --data.images,",
    },
    "--data.image": {
        "x": "Expected an option of this command, but got --data.image. Nearest: --data.images,",
    },
    "--writer.panels": {
        "maybe": "--writer.panels: Expected true or false, but got maybe",
    },
    "--ouput": {
        "x": "Expected an option of this command, but got --ouput. Nearest: --output",
    },
}
"""Options of ``fit``, their bad values, and how the line begins that is printed then."""

IMAGES = {
    "": "Expected a file, a glob, a folder or a CSV file with images, but got an empty name.",
    " ": "Expected a file, a glob, a folder or a CSV file with images, but got an empty name.",
    "missing": "Expected a file, a glob, a folder or a CSV file with images, but missing does not exist.",
    "empty": "Expected images in empty, but there are none.",
    "pipe.png": "Expected an image, but pipe.png is not a regular file.",
    "texts": "Expected images in texts, but there are none.",
    "bad.png": "Expected an image, but bad.png cannot be decoded: Truncated File Read",
    "zero.png": "Expected an image, but Pillow does not recognize the format of zero.png.",
    "small.png": "Expected an image of at least half the network's input of 16×16 pixels, but small.png",
    "nopath.csv": "Expected a CSV file with a header and a column 'path', but nopath.csv has ['file'].",
    "blank.csv": "Expected an image in each row of blank.csv, but the column 'path' of row 2 is empty.",
    "none.csv": "Expected a CSV file with a header and a column 'path', but none.csv has [].",
    "label.csv": "Expected the classes in a column 'target' of label.csv, but it has 'label'. Rename it.",
    "odd.csv": "Expected the index of a class, but got the name 'moped': the class names of Tiny",
    "gone.csv": "Expected an image, but the file gone.png does not exist.",
    "bytes.csv": "Expected an image, but ÿ\u0000 cannot be decoded: embedded null byte",
    "big.csv": "Expected targets among the 5 classes of Tiny (0 to 4), but got 99.",
    "*.jpg": "Expected a file, a glob, a folder or a CSV file with images, but *.jpg does not exist.",
    "package:nonsense/x.png": "Expected the package 'nonsense' with the file x.png, but it is not installed.",
    "package:skimage/nope.png": "skimage/nope.png does not exist.",
    "/dev/zero": "Expected an image, but /dev/zero is not a regular file.",
    "/dev/null": "Expected an image, but /dev/null is not a regular file.",
    "in\u0000x": "Expected a file, a glob, a folder or a CSV file with images, but in\u0000x does not exist.",
    "[]": "Expected images in [], but there are none.",
    "~nobody/x": "Expected a file, a glob, a folder or a CSV file with images, but ~nobody/x does not exist.",
    "texts/a.txt": "Expected an image, but Pillow does not recognize the format of texts/a.txt.",
    "file": "Expected an image, but Pillow does not recognize the format of file.",
}
"""What ``--data.images`` cannot be."""

COMMANDS: list[tuple[list[str], str]] = [
    (
        ["fitt"],
        "Expected a command, fit, predict, report, compare, evaluate, benchmark, pointing, bias, ",
    ),
    (["fit"], "Expected --data.images, but got nothing."),
    (
        ["fit", *FIT, "--data.images", "in", "--model.game", "deletion", "--model.level", "2"],
        "Expected level to be more than 0 and less than 1 for deletion, but got 2.0.",
    ),
    (
        ["fit", "--data.images", "in", "--data.images", "x.jpg"],
        "Expected --data.images once, but got it several times.",
    ),
    (
        ["evaluate", "--results=a", "--results=b"],
        "Expected --results once, but got it several times. For a list, write",
    ),
    (["fit", "--data.images"], "argument --data.images/--data.images+: expected one argument"),
    (
        [""],
        "Expected a command, fit, predict, report, compare, evaluate, benchmark, pointing, bias, ",
    ),
    (["completion", "foo"], "Expected shell to be one of bash, zsh, tcsh"),  # and those that this shtab knows
    (["completion"], "Expected shell to be one of bash, zsh, tcsh"),
    (["report"], "Expected FOLDER, but got nothing."),
    (["report", "missing"], "Expected a results folder, but missing is not a folder."),
    (["report", "file"], "Expected a results folder, but file is not a folder."),
    (["report", "empty"], "Expected a results folder, but empty has no explanations, failures or tables. Make some"),
    (["report", "in"], "Expected a results folder, but in has no explanations, failures or tables. Make some"),
    (["report", "texts", "--limit", "-1"], "Expected --limit of at least 0 megabytes, but got -1.0."),
    (["report", "in", "--limit", "nan"], "--limit: Expected a number, but got nan"),
    (["report", "in", "--output", "x.txt"], "Expected a file FILE.html as --output, but got x.txt."),
    (
        ["report", "in", "--images", "missing"],
        "Expected a file, a glob, a folder or a CSV file with images, but missing does not exist.",
    ),
    (["evaluate"], "Expected --results, but got nothing."),
    (
        ["evaluate", "--results", "[missing]", *NETWORK],
        "Expected a folder of fit or compare, but found no explanations in missing.",
    ),
    (
        ["evaluate", "--results", "[in]", *NETWORK],
        "Expected a folder of fit or compare, but found no explanations in in.",
    ),
    (
        ["evaluate", "--results", "[]", *NETWORK],
        "Expected folders of fit or compare in --results, but got an empty list.",
    ),
    (["evaluate", "--results", "x", *NETWORK], "Expected a folder of fit or compare, but found no explanations in x."),
    (
        ["evaluate", "--results", "[in]", "--profile", "foo", *NETWORK],
        "Expected profile to be one of rise, group_cam, xplique, degradation, but got 'foo'.",
    ),
    (["compare"], "Expected --data.images and --methods, but got nothing."),
    (
        ["compare", "--data.images", "missing", *NETWORK],
        "Expected --methods, but got nothing. --help shows the required options.",
    ),
    (
        ["compare", "--data.images", "in", "--methods", "{a: os.system}", *NETWORK],
        "--methods: Import path os.system does not correspond to a subclass of Method",
    ),
    (["compare", "--data.images", "in", "--methods", "[foo]", *NETWORK], "--methods: Expected dict, but got ['foo']"),
    (["pointing"], "Expected --results and --truth, but got nothing."),
    (
        ["pointing", "--results", "in", "--truth", "texts", *NETWORK],
        "Expected a folder of fit or compare, but found no explanations in in.",
    ),
    (["bias"], "Expected --data.images, but got nothing."),
    (
        ["bias", "--data.images", "missing", *NETWORK],
        "Expected a file, a glob, a folder or a CSV file with images, but missing does not exist.",
    ),
    (["adversarial"], "Expected --data.images, but got nothing."),
    (
        ["adversarial", "--data.images", "missing", *NETWORK],
        "Expected a file, a glob, a folder or a CSV file with images, but missing does not exist.",
    ),
    (["sanity"], "Expected --images and --methods, but got nothing."),
    (
        ["sanity", "--data.images", "missing", *NETWORK],
        "Expected an option of this command, but got --data.images. Nearest: --images,",
    ),
    (
        ["adversarial", "--data.images", "in", "--optimizers", "{a: os.system}", *NETWORK],
        "--optimizers: Expected list, but got {'a': 'os.system'}",
    ),
    (["sanity", "--images", "in", "--methods", "[foo]", *NETWORK], "--methods: Expected dict, but got ['foo']"),
    (
        ["bias", "--data.images", "in", "--analysis", "foo", *NETWORK],
        "Expected an option of this command, but got --analysis. Nearest: --pairs,",
    ),
]

CASES = [
    *(
        (["fit", *FIT, "--data.images", "in", option, value], line)
        for option in OPTIONS
        for value, line in OPTIONS[option].items()
    ),
    *((["fit", *FIT, "--data.images", value], line) for value, line in IMAGES.items()),
    *COMMANDS,
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two photos, and with much that is none."""
    place = tmp_path_factory.mktemp("place")
    for name in ("in", "empty", "texts"):
        (place / name).mkdir()
    noise = torch.Generator().manual_seed(0)
    for number in range(2):
        pixels = torch.randint(0, 256, (40, 40, 3), dtype=torch.uint8, generator=noise)
        Image.fromarray(pixels.numpy()).save(place / "in" / f"p{number}.png")
    Image.new("RGB", (4, 4)).save(place / "small.png")
    if hasattr(os, "mkfifo"):
        os.mkfifo(place / "pipe.png")
    for name, content in FILES.items():
        (place / name).write_bytes(content)
    torch.save({"a": 1}, place / "notstate.pt")
    torch.save({"a": torch.zeros(1)}, place / "other.pt")
    return place


def peak() -> float:
    """The most memory that this process has had, in bytes; 0 where nothing tells."""
    if sys.platform != "linux":
        return 0
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def contents(place: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def test_there_are_many() -> None:
    assert len(CASES) >= 150


@pytest.mark.parametrize(
    ("command", "line"), CASES, ids=lambda value: " ".join(value[-2:])[:40] if isinstance(value, list) else ""
)
def test_mistakes(
    command: list[str],
    line: str,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    before, begun, before_peak = contents(place), time.monotonic(), peak()
    if "--output" not in command:
        command = [*command, *(["--output", str(tmp_path / "out")] if command[:1] == ["fit"] else [])]
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    says = error[error.index("fgvis: ") :]
    assert line in says
    assert "Traceback" not in error
    assert len(says.splitlines()) <= 2, "one line, or a line for each image"
    assert time.monotonic() - begun < 60, "seconds"
    assert peak() - before_peak < 3e9, "bytes"
    left = contents(place)
    assert {name: left.get(name) for name in before} == before, "nothing that was there is lost"
    assert not list((tmp_path / "out").glob("explanations/*.safetensors"))
