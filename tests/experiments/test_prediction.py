from __future__ import annotations

from pathlib import Path

import pytest
from command_line import NETWORK
from toy_networks import Tiny

from fgvis_lightning.cli import main
from fgvis_lightning.data.images import as_float, load_image
from fgvis_lightning.networks.load import load_classifier


def test_prints_the_most_probable_classes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["predict", *NETWORK, "--data.images", str(folder), "--top", "2", "--device", "cpu"])
    out, _ = capsys.readouterr()
    head, *blocks = out.strip().split("\n\n")
    assert head.startswith("network: Tiny")
    classifier = load_classifier(Tiny(), size=(16, 16))
    files = sorted(folder.iterdir())
    assert len(blocks) == len(files) == 3
    for block, file in zip(blocks, files, strict=True):
        name, *lines = block.splitlines()
        assert name == file.stem.replace(" ", "_")
        x = classifier.preprocessing.normalize(as_float(load_image(str(file), classifier.preprocessing, upscale=True)))
        top = classifier.network(x[None])[0].softmax(0).topk(2)
        assert [line.split()[0] for line in lines] == [f"{value:.3f}" for value in top.values]
        assert [line.split()[-1] for line in lines] == [str(index) for index in top.indices.tolist()]


def test_labels_have_probabilities_of_their_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data.images", str(folder / "photo 0.png"), "--model.task", "multilabel", "--device", "cpu"]
    main(["predict", *NETWORK, *options])
    values = [float(line.split()[0]) for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    classifier = load_classifier(Tiny(), size=(16, 16))
    image = load_image(str(folder / "photo 0.png"), classifier.preprocessing, upscale=True)
    logits = classifier.network(classifier.preprocessing.normalize(as_float(image))[None])[0]
    assert values == pytest.approx(logits.sigmoid().sort(descending=True).values[:5].tolist(), abs=6e-4)


def test_little_is_not_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Tiny.forward
    monkeypatch.setattr(Tiny, "forward", lambda self, x: 6 * forward(self, x))
    main(["predict", *NETWORK, "--data.images", str(folder / "photo 0.png"), "--device", "cpu"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith(" <0.001  ")
    assert lines[-5].startswith((" >0.999  ", "  0.9"))


def test_mistakes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "broken.png").write_bytes(b"not an image")
    with pytest.raises(SystemExit) as ended:
        main(["predict", *NETWORK, "--data.images", str(folder), "--device", "cpu"])
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert out.count("photo_") == 3, "the others are printed"
    assert "fgvis: 1 of 4 images could not be read:" in err
    assert "broken.png" in err
    with pytest.raises(SystemExit):
        main(["predict", "--data.images", str(folder), "--top", "0"])
    assert "Expected --top to be at least 1, but got 0." in capsys.readouterr().err


def test_a_size_may_be_one_number() -> None:
    assert load_classifier(Tiny(), size=24).preprocessing == load_classifier(Tiny(), size=(24, 24)).preprocessing
