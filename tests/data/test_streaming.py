"""Streamed images: the order, shares and augmentation of a step are those of every world and number of workers."""

from __future__ import annotations

import dataclasses
import multiprocessing
import re
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from bnbench.compose import compose_jobs
from bnbench.data import (
    FileSet,
    ImageSet,
    Normalizer,
    StreamedTestLoader,
    StreamedTrainLoader,
    TrainLoader,
    load,
)
from bnbench.data.folder import list_image_folder
from bnbench.span import DEVICE, span_of

IMAGES, GLOBAL_BATCH, SIZE = 21, 8, 12
NAMES = ("ant", "bee of the south", "çedilla")
PLAIN = Normalizer((0.0,) * 3, (1.0,) * 3, torch.device("cpu"), torch.float64)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of seven JPEGs in train/ and in test/, no two of a size."""
    folder, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split in ("train", "test"):
        for name in NAMES:
            (folder / split / name).mkdir(parents=True)
            for i in range(IMAGES // 3):
                pixels = draw.integers(0, 256, (17 + 2 * i, 40 - 3 * i, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.jpg")
    return folder


@pytest.fixture(scope="module")
def files(root: Path) -> FileSet:
    """The training images, the label of each its number."""
    listed = list_image_folder(str(root), "test", SIZE, None, None).train
    assert isinstance(listed, FileSet)
    return dataclasses.replace(listed, labels=torch.arange(len(listed)), num_classes=len(listed))


def _loader(
    files, rank=0, world=1, span=DEVICE, workers=0, accumulate=1, augment="resized_crop_flip", seed=5
):
    place = {"span": span, "rank": rank, "world_size": world, "accumulate": accumulate}
    return StreamedTrainLoader(
        files, PLAIN, augment, workers=workers, global_batch=GLOBAL_BATCH, seed=seed, **place
    )


def _epoch(loader, epoch=0):
    loader.set_epoch(epoch)
    return list(loader)


def _same(one, other) -> bool:
    return all(torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


def test_the_order_is_that_of_decoded_images(files):
    decoded = ImageSet(torch.zeros(len(files), 3, 2, 2, dtype=torch.uint8), files.labels, len(files))
    place = {"span": span_of(4, 2, 2), "rank": 1, "world_size": 2, "accumulate": 2}
    there = TrainLoader(decoded, PLAIN, "none", global_batch=GLOBAL_BATCH, seed=5, **place)
    here = _loader(files, 1, 2, place["span"], accumulate=2)
    assert (len(here), here.steps) == (len(there), there.steps) == (4, 2)
    for epoch in (0, 1):
        orders = [[labels.tolist() for _, labels in _epoch(loader, epoch)] for loader in (here, there)]
        assert orders[0] == orders[1]


@pytest.mark.parametrize(
    ("world", "nbs", "accumulate"), [(2, 4, 1), (2, 2, 1), (2, 8, 1), (4, 4, 1), (2, 2, 2)]
)
def test_every_world_sees_the_step_that_one_rank_sees(files, world, nbs, accumulate):
    span = span_of(nbs, GLOBAL_BATCH // world // accumulate, world)
    for epoch in (0, 1):
        one = _epoch(_loader(files), epoch)
        for rank in range(world):
            batches = _epoch(_loader(files, rank, world, span, accumulate=accumulate), epoch)
            for number, (images, labels) in enumerate(batches):
                step, part = divmod(number, accumulate)
                mine = slice(accumulate * span.residue(rank, world) + part, None, accumulate * world)
                assert torch.equal(labels, one[step][1][mine])
                assert torch.equal(images, one[step][0][mine])


def test_workers_change_nothing_and_end_when_told(files):
    """Also where precise statistics read the first steps in the midst of an epoch, and an epoch is broken off."""
    alone = [_epoch(_loader(files), epoch) for epoch in range(3)]
    helped = _loader(files, workers=2)
    helped.set_epoch(1)
    for number, (batch, want) in enumerate(zip(helped, alone[1], strict=True)):
        assert _same([batch], [want])
        if number == 0:
            assert _same(list(islice(iter(helped), 1)), alone[1][:1])
    first = multiprocessing.active_children()
    assert next(iter(helped))[1].tolist() == alone[1][0][1].tolist()
    assert _same(_epoch(helped, 2), alone[2])
    assert {child.pid for child in multiprocessing.active_children()} == {child.pid for child in first}
    assert len(first) == 2, "kept from epoch to epoch"
    helped.close()
    assert multiprocessing.active_children() == []
    helped.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_can_be_gone_on_with_anywhere(files, workers):
    place = (0, 2, span_of(4, 2, 2))
    whole = _epoch(_loader(files, *place, accumulate=2), 1)
    loader = _loader(files, *place, accumulate=2, workers=workers)
    loader.set_epoch(1)
    for first in (3, 0, 2, len(whole)):
        assert _same(list(loader.batches(first)), whole[first:])
    loader.close()


def test_every_image_of_every_step_draws_its_own_augmentation(files):
    one_picture = dataclasses.replace(files, files=files.files[:1].repeat(len(files)))
    images = [
        image for epoch in range(3) for batch, _ in _epoch(_loader(one_picture), epoch) for image in batch
    ]
    assert len({image.numpy().tobytes() for image in images}) == len(images) == 3 * 2 * GLOBAL_BATCH
    again = [image for batch, _ in _epoch(_loader(one_picture, seed=6)) for image in batch]
    assert not any(torch.equal(a, b) for a, b in zip(images, again, strict=False))


def test_the_runs_own_random_numbers_are_left_alone(files):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    batches = _epoch(_loader(files))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    assert _same(batches, _epoch(_loader(files)))


def test_without_augmentation_an_image_is_the_center_of_itself_resized(files):
    """Resize to 256 / 224 of the size, then crop: torchvision's functional forms."""
    seen = files.pixels(torch.tensor([4, 11]))
    for pixels, index in zip(seen, (4, 11), strict=True):
        image = Image.open(files.path(index)).convert("RGB")
        want = tv.center_crop(tv.resize(image, [round(SIZE * 256 / 224)]), [SIZE, SIZE])
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(want))
    assert seen.shape[1:] == files.shape and seen.dtype == torch.uint8
    for images, labels in _epoch(_loader(files, augment="none")):
        torch.testing.assert_close(images * 255, files.pixels(labels).double(), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("world", "batch", "workers"), [(1, 64, 0), (2, 4, 1), (4, 3, 0), (21, 5, 0)])
def test_validation_takes_every_image_exactly_once(files, world, batch, workers):
    loaders = [
        StreamedTestLoader(files, PLAIN, workers=workers, batch=batch, rank=rank, world_size=world)
        for rank in range(world)
    ]
    taken: list[int] = []
    for loader in loaders:
        batches = list(loader)
        assert len(batches) == len(loader) > 0
        for images, labels in batches:
            assert 0 < len(labels) <= batch
            torch.testing.assert_close(images * 255, files.pixels(labels).double(), rtol=0, atol=1e-10)
            taken += labels.tolist()
        loader.close()
    assert sorted(taken) == list(range(IMAGES))


def test_sets_below_a_step_or_a_world_are_refused(files):
    few = files.take(torch.arange(7))
    with pytest.raises(ValueError, match=r"global_batch=8 is more than the 7 training images"):
        _loader(few)
    with pytest.raises(ValueError, match=r"7 test images do not reach for 8 ranks"):
        StreamedTestLoader(few, PLAIN, workers=0, batch=4, rank=0, world_size=8)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("content", [b"", b"<html>404</html>", None], ids=["empty", "text", "cut off"])
def test_a_file_that_does_not_decode_is_named_when_its_turn_comes(files, tmp_path, workers, content):
    whole = files.path(9).read_bytes()
    (tmp_path / "bad.jpg").write_bytes(whole[:200] if content is None else content)
    names = files.files.astype(object)
    names[9] = str(tmp_path / "bad.jpg").encode()  # an absolute path stands for itself
    broken = dataclasses.replace(files, files=np.array(names.tolist()))
    loader = _loader(broken, workers=workers)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}/bad.jpg does not decode")):
        [_epoch(loader, epoch) for epoch in range(3)]
    loader.close()


# The set, as words ask for it


def _load(root: Path, *words: str, name: str = "streamed_folder"):
    (config,) = compose_jobs([f"data={name}", f"data.root={root}", f"data.image_size={SIZE}", *words], False)
    return load(config.data)


def test_a_set_is_listed_without_opening_a_file(root, tmp_path):
    for split in ("train", "val"):
        for name in NAMES:
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "no picture.jpg").touch()
    splits = _load(tmp_path)
    assert (len(splits.train), len(splits.test), splits.train.num_classes) == (3, 3, 3)
    assert splits.train.shape == (3, SIZE, SIZE)
    assert splits.test.path(0) == tmp_path / "val" / "ant" / "no picture.jpg"


def test_a_part_is_what_image_folder_chooses(root):
    streamed = _load(root, "data.max_train=10", "data.max_test=4")
    decoded = _load(root, "data.max_train=10", "data.max_test=4", name="image_folder")
    assert torch.equal(streamed.train.labels, decoded.train.labels) and len(streamed.test) == 4
    with pytest.raises(ValueError, match=r"data\.max_test=22 is more than the 21 images"):
        _load(root, "data.max_test=22")


def test_class_folders_that_differ_are_refused(root, tmp_path):
    for split, names in (("train", NAMES), ("val", (*NAMES[:2], "deer"))):
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "0.jpg").touch()
    with pytest.raises(ValueError, match=r"train/ and val/ differ in their class folders: deer, çedilla$"):
        _load(tmp_path)
    (tmp_path / "train" / "ant" / "0.jpg").unlink()
    with pytest.raises(ValueError, match=r"ant") as caught:
        _load(tmp_path)
    assert "\n" not in str(caught.value)


def test_imagenet_is_its_train_and_val_and_has_a_thousand_classes(root, tmp_path):
    with pytest.raises(ValueError, match=r"has no val/ folder: imagenet needs train/ and val/"):
        _load(root, name="imagenet")
    for split in ("train", "val"):
        (tmp_path / split).symlink_to(root / "train")
    (tmp_path / "test").mkdir()  # ImageNet's, without labels
    with pytest.raises(ValueError, match=r"data\.num_classes=1000, but data=imagenet .* has 3 classes"):
        _load(tmp_path, name="imagenet")
    assert len(_load(tmp_path, "data.num_classes=3", name="imagenet").test) == IMAGES


def test_workers_are_no_part_of_a_run_and_the_files_are(root, tmp_path):
    def identity(*words: str, folder: Path = root):
        size = f"data.image_size={SIZE}"
        (run,) = compose_jobs(["data=streamed_folder", f"data.root={folder}", size, *words], False)
        return run.identity()["data"]

    assert identity() == identity("data.workers=0") == identity("data.num_classes=3")
    assert identity() != identity("data.augment=none")
    for split in ("train", "test"):
        (tmp_path / split / "ant").mkdir(parents=True)
    assert identity() != identity(folder=tmp_path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.workers=-1"], r"data\.workers=-1 must be .* at least 0"),
        (["data.workers=null"], r"data\.workers has no value, and data=streamed_folder needs one"),
        (["data.augment=crop"], r"unknown data\.augment 'crop'; known: none, resized_crop_flip"),
        (["data.num_classes=4"], r"data\.num_classes=4, but data=streamed_folder .* has 3 classes"),
    ],
)
def test_a_mistake_is_one_line(root, words, said):
    with pytest.raises(ValueError, match=said) as caught:
        _load(root, *words)
    assert "\n" not in str(caught.value)


def test_what_is_not_streamed_has_no_workers():
    with pytest.raises(ValueError, match=r"data\.workers=2 would be ignored by data=digits"):
        compose_jobs(["+data.workers=2"], False)
