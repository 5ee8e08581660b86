"""Images as they are decoded: split first, labelled by class, chosen alike, and named where broken."""

from __future__ import annotations

import pickle
import re
import struct
import zlib
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from sklearn import datasets

from bnbench.compose import compose_jobs
from bnbench.data import digits, load
from bnbench.data.folder import load_image_folder
from bnbench.data.images import ImageSet
from bnbench.data.published import load_published


@pytest.fixture(scope="module")
def loaded():
    return digits.load_digits()


def test_digits_have_the_stated_sizes(loaded):
    for split, size in ((loaded.train, 10_376), (loaded.test, 2_000)):
        assert split.images.shape == (size, 3, 16, 16)
        assert split.images.dtype == torch.uint8
        assert torch.equal(split.images[:, 0], split.images[:, 1])
        assert torch.equal(split.images[:, 0], split.images[:, 2])
        assert split.labels.unique().tolist() == list(range(10)) and split.num_classes == 10


def test_digits_are_the_same_every_time(loaded):
    torch.manual_seed(99)  # what a run has drawn before is no matter
    state = torch.get_rng_state()
    again = digits.load_digits()
    assert (again.train.digest(), again.test.digest()) == (loaded.train.digest(), loaded.test.digest())
    assert torch.equal(torch.get_rng_state(), state), "loading draws nothing from the run's own numbers"


def test_no_source_digit_is_on_both_sides(monkeypatch):
    """The split comes before the copies: recomputed with copies that are the digits themselves."""

    def unaltered(images, labels, copies, seed):
        return ImageSet(images, labels, num_classes=10)

    monkeypatch.setattr(digits, "_augmented", unaltered)
    splits = digits.load_digits()
    train, test = ({image.numpy().tobytes() for image in s.images} for s in (splits.train, splits.test))
    source = datasets.load_digits().images.astype(np.float32) / 16
    assert not train & test
    assert train | test == {image.tobytes() for image in source}
    assert (len(splits.train), len(splits.test)) == (1297, 500)


def test_copies_differ_and_keep_their_label(loaded):
    sources = loaded.train.labels[: digits.TRAIN_IMAGES]
    assert torch.equal(loaded.train.labels, sources.repeat(digits.TRAIN_COPIES))
    assert len(loaded.train.images.flatten(1).unique(dim=0)) == len(loaded.train)


def test_the_default_data_are_the_first_of_them(loaded):
    config = compose_jobs(["data.max_train=100", "data.max_test=50"], multirun=False)[0].data
    splits = load(config)
    assert splits.train.digest() == loaded.train.first(100, "max_train").digest()
    assert splits.test.digest() == loaded.test.first(50, "max_test").digest()


@pytest.mark.parametrize("count", [1, 7, 20])
def test_a_choice_is_nested_without_repeats_and_bounded(count):
    numbers = ImageSet(torch.arange(20), torch.arange(20), num_classes=20)
    chosen = numbers.first(count, "max_train")
    assert len(set(chosen.images.tolist())) == len(chosen) == count
    assert torch.equal(chosen.images, chosen.labels)
    if count < 19:  # a smaller choice is part of a larger one
        assert torch.equal(numbers.first(count + 1, "max_train").images[:count], chosen.images)
    with pytest.raises(ValueError, match=r"data\.max_train=21 is more than the 20 images"):
        numbers.first(21, "max_train")


# Image folders


def _save(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def _noise(seed: int, side: int = 8) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


@pytest.fixture
def tree(tmp_path) -> Path:
    """Three classes, six images each in train/, two in test/: lossless, of the size asked for."""
    for split, count in (("train", 6), ("test", 2)):
        for label, name in enumerate(("zebra", "ant", "mole")):
            for number in range(count):
                _save(tmp_path / split / name / f"{number}.png", _noise(100 * count + 10 * label + number))
    return tmp_path


def test_labels_follow_the_sorted_class_names(tree):
    splits = load_image_folder(str(tree), 8, None, None)
    assert (len(splits.train), len(splits.test), splits.train.num_classes) == (18, 6, 3)
    assert splits.train.images.dtype == torch.uint8
    for split, folder in ((splits.train, "train"), (splits.test, "test")):
        for label, name in enumerate(sorted(("zebra", "ant", "mole"))):
            want = {np.asarray(Image.open(path)).tobytes() for path in (tree / folder / name).iterdir()}
            got = split.images[split.labels == label].permute(0, 2, 3, 1).contiguous()
            assert {image.numpy().tobytes() for image in got} == want


@pytest.mark.parametrize("count", [1, 5, 18])
def test_a_part_is_what_the_whole_decoded_would_give(tree, count):
    whole = load_image_folder(str(tree), 8, None, None).train.first(count, "max_train")
    part = load_image_folder(str(tree), 8, count, None)
    assert part.train.digest() == whole.digest()
    assert part.train.num_classes == 3, "classes are the folder's, not those that happened to be chosen"
    assert len(part.test) == 6


def test_more_images_than_there_are_is_refused(tree):
    with pytest.raises(ValueError, match=r"data\.max_test=7 is more than the 6 images"):
        load_image_folder(str(tree), 8, None, 7)


def test_images_that_are_not_chosen_are_not_decoded(tree):
    everything = load_image_folder(str(tree), 8, 4, None).train
    kept = {image.permute(1, 2, 0).contiguous().numpy().tobytes() for image in everything.images}
    for path in (tree / "train").rglob("*.png"):
        if np.asarray(Image.open(path)).tobytes() not in kept:
            path.write_bytes(b"broken")
    assert load_image_folder(str(tree), 8, 4, None).train.digest() == everything.digest()


def test_any_size_and_mode_becomes_rgb_of_the_size_asked(tree):
    shade = 77
    for number, mode in enumerate(("L", "RGB", "RGBA", "P", "LA", "1")):
        image = Image.new("RGB", (31, 17), (shade, shade, shade))
        image = image.convert(mode) if mode != "1" else Image.new("1", (31, 17), 1)
        _save(tree / "train" / "ant" / f"{number}.png", image)
    _save(tree / "train" / "ant" / "wide.jpg", Image.new("L", (64, 9), shade))
    splits = load_image_folder(str(tree), 12, None, None)
    assert splits.train.images.shape[1:] == (3, 12, 12)
    ants = splits.train.images[splits.train.labels == 0].flatten(1).int()
    # An even image stays even; quantized modes may miss its shade by a little.
    assert (ants.amax(1) - ants.amin(1)).max() <= 1
    assert (ants[:6, 0] - torch.tensor([shade] * 5 + [255])).abs().max() <= 2
    assert abs(ants[6, 0] - shade) <= 2, "wide.jpg"


def test_deep_shades_are_kept_or_refused(tree):
    """A 16-bit grayscale PNG, as scanners and microscopes write: clipping would turn it white."""
    path = tree / "train" / "ant" / "0.png"
    _save(path, Image.fromarray((np.arange(64, dtype=np.uint16) * 1024).reshape(8, 8)))
    shades, message = 0, ""
    try:
        shades = len(load_image_folder(str(tree), 8, None, None).train.images[0].unique())
    except ValueError as error:
        message = str(error)
    assert shades > 60 or str(path) in message


def _png_of(width: int, height: int) -> bytes:
    """A PNG header that promises a picture of that size, correct to its checksum."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return start + struct.pack(">I", 100) + b"IDAT"


def _jpeg(tmp_path: Path) -> bytes:
    _save(tmp_path / "whole.jpg", _noise(0, side=64))
    return (tmp_path / "whole.jpg").read_bytes()


BROKEN = {
    "truncated.jpg": lambda folder: _jpeg(folder)[:700],
    "header-only.jpg": lambda folder: _jpeg(folder)[:20],
    "text.jpg": lambda folder: b"<html>404</html>",
    "empty.png": lambda folder: b"",
    "header-only.png": lambda folder: _png_of(8, 8),
    "huge.png": lambda folder: _png_of(60_000, 60_000),
    "header.ppm": lambda folder: b"P6 8 x 255\n" + bytes(200),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_image_that_does_not_decode_is_named(tree, tmp_path_factory, name):
    path = tree / "test" / "mole" / name
    path.write_bytes(BROKEN[name](tmp_path_factory.mktemp("source")))
    with pytest.raises(ValueError, match=re.escape(f"{path} does not decode")) as caught:
        load_image_folder(str(tree), 8, None, None)
    assert "\n" not in str(caught.value)


def test_class_folders_that_differ_are_named(tree):
    (tree / "test" / "ant").rename(tree / "test" / "bee")
    with pytest.raises(ValueError, match=f"{re.escape(str(tree))}: .*differ.* ant, bee$"):
        load_image_folder(str(tree), 8, None, None)


@pytest.mark.parametrize("case", ["no images", "no classes", "missing"])
def test_a_folder_without_images_is_named(tree, case):
    for path in (tree / "train").rglob("*.png"):
        path.unlink()
    if case != "no images":
        for path in (tree / "train").iterdir():
            path.rmdir()
    if case == "missing":
        (tree / "train").rmdir()
    with pytest.raises(ValueError, match=re.escape(str(tree / "train"))) as caught:
        load_image_folder(str(tree), 8, None, None)
    assert "\n" not in str(caught.value)


def test_a_set_too_large_for_memory_is_refused_before_it_is_decoded(tree):
    with pytest.raises(ValueError, match=r"18 images of 100000x100000 .* GiB.*data\.image_size"):
        load_image_folder(str(tree), 100_000, None, None)


# CIFAR-10


@pytest.mark.parametrize(
    "error",
    [
        URLError("Name or service not known"),
        RuntimeError("File not found or corrupted.\nTry again"),
        TimeoutError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_cifar10_without_a_network_is_one_clear_line(tmp_path, monkeypatch, error):
    def fail(self):
        raise error

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", fail)
    with pytest.raises(ValueError, match=r"data=cifar10.*image_folder or data=digits") as caught:
        load_published("cifar10", str(tmp_path / "new"), True, None, None)
    assert str(tmp_path / "new") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_failed_download_removes_nothing_of_others(tmp_path, monkeypatch):
    """It may take minutes, in which somebody else puts files beside it into the folder it made."""
    root, other = tmp_path / "data" / "cifar10", tmp_path / "data" / "mine" / "photo.jpg"

    def fail(self):
        other.parent.mkdir()
        other.touch()
        raise URLError("Connection reset by peer")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", fail)
    with pytest.raises(ValueError, match="data=cifar10"):
        load_published("cifar10", str(root), True, None, None)
    assert other.exists()


def test_cifar10_that_is_not_there_and_may_not_be_fetched(tmp_path):
    with pytest.raises(ValueError, match=r"data=cifar10 is not at data\.root="):
        load_published("cifar10", str(tmp_path), False, None, None)


def test_cifar10_on_disk_needs_no_network(tmp_path, monkeypatch):
    """Made-up batches in its own format: rows of 3,072 bytes, one colour plane after another."""
    monkeypatch.setattr(
        torchvision.datasets.cifar, "check_integrity", lambda path, md5=None: Path(path).is_file()
    )
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    random = np.random.default_rng(0)
    rows = random.integers(0, 256, (24, 3072), dtype=np.uint8)
    labels = random.integers(0, 10, 24).tolist()
    names = [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]
    for place, name in enumerate(names):
        part = slice(4 * place, 4 * place + 4)
        (folder / name).write_bytes(pickle.dumps({"data": rows[part], "labels": labels[part]}))
    classes = {"label_names": [str(n) for n in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(classes))
    splits = load_published("cifar10", str(tmp_path), True, None, 3)
    assert torch.equal(splits.train.images, torch.from_numpy(rows[:20].reshape(20, 3, 32, 32)))
    assert splits.train.labels.tolist() == labels[:20]
    assert (len(splits.test), splits.test.num_classes) == (3, 10)
    with pytest.raises(ValueError, match=r"^data\.max_train=21 is more than the 20 images"):
        load_published("cifar10", str(tmp_path), False, 21, None)
