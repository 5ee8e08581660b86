"""`bnbench bench data`: all contenders make the same batches, by the same law. No time is judged here."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as tv

from bnbench import cli
from bnbench.benchmarks import data
from bnbench.benchmarks.data import BATCH, MEAN, OURS, PADDING, PILLOW, SIDE, STD, TENSORS, Settings

TINY = Settings(images=2 * BATCH, rounds=2, workers=1)


def test_every_contender_gives_windows_of_its_own_pictures_standardized():
    """By the label alone a picture is not known, so each image is looked for among all windows of all of them."""
    contenders = data.loaders(TINY)
    pixels = contenders[OURS].data.images
    padded = F.pad(pixels, [PADDING] * 4)
    shifts = range(2 * PADDING + 1)
    corners = torch.stack([padded[:, :, i : i + SIDE, j : j + SIDE] for i in shifts for j in shifts], 1)
    known = {row.numpy().tobytes() for row in corners.flatten(0, 1)}
    mirrored = {row.numpy().tobytes() for row in corners.flip(-1).flatten(0, 1)}
    for name, loader in contenders.items():
        batches = list(loader)
        assert len(batches) == 2, name
        found = []
        for images, labels in batches:
            assert images.shape == (BATCH, 3, SIDE, SIDE) and images.dtype == torch.float32, name
            assert images.is_contiguous(), name
            assert labels.dtype == torch.int64 and labels.shape == (BATCH,), name
            back = tv.normalize(images.double(), [0, 0, 0], [1 / std for std in STD])
            back = tv.normalize(back, [-mean for mean in MEAN], [1, 1, 1]) * 255
            assert (back - back.round()).abs().max() < 1e-3, name
            found += [image.numpy().tobytes() for image in back.round().to(torch.uint8)]
        plain = sum(image in known for image in found)
        assert plain + sum(image in mirrored for image in found) == len(found), name
        assert 0.3 < plain / len(found) < 0.7, name


def test_an_endless_loader_goes_on_with_other_batches():
    batches = data.forever(data.loaders(TINY)[OURS])
    four = [next(batches)[0] for _ in range(4)]
    assert not torch.equal(torch.cat(four[:2]), torch.cat(four[2:]))


@pytest.fixture(scope="module")
def result():
    return data.measure(TINY)


def test_its_result_has_a_ratio_for_each_round(result):
    assert set(result["images_per_s"]) == {OURS, TENSORS, PILLOW}
    assert all(len(values) == 2 and min(values) > 0 for values in result["images_per_s"].values())
    rows = {row["name"]: row for row in result["figures"]}
    ratio = rows[f"{OURS} / {TENSORS}"]
    ours, theirs = (result["images_per_s"][name] for name in (OURS, TENSORS))
    rounds = sorted(mine / its for mine, its in zip(ours, theirs, strict=True))
    assert [ratio["low"], ratio["high"]] == rounds
    assert ratio["unit"] == "x" and ratio["better"] == "higher" and ratio["target"] is None
    json.dumps(result, allow_nan=False)
    assert "256 images of 32x32" in data.table(result) and f"{OURS} / {PILLOW}" in data.table(result)


def test_the_target_is_judged_at_the_default_alone():
    found = {OURS: [200_000.0] * 6, TENSORS: [16_000.0] * 6, PILLOW: [10_000.0] * 6}
    judged = {figure.name: figure.met for figure in data.figures(found, Settings().judged)}
    assert judged.pop(f"{OURS} / {TENSORS}") == "yes" and set(judged.values()) == {None}
    slow = data.figures({**found, OURS: [150_000.0] * 6}, True)
    assert [figure.met for figure in slow if figure.target] == ["no"]
    assert not Settings(images=1000).judged and not Settings(workers=4).judged and Settings(rounds=3).judged


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--images=127"], "--images=127 must be at least 128"),
        (["--rounds=0"], "--rounds=0 must be at least 1"),
        (["--workers=0"], "--workers=0 must be at least 1"),
        (["--images=many"], "many"),
    ],
)
def test_a_bad_option_is_one_line(words, said, capsys):
    assert cli.main(["bench", "data", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("bnbench bench: ") and said in error and error.count("\n") == 1
