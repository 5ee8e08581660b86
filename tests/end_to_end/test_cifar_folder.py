"""Real photographs in class folders, on two ranks."""

from __future__ import annotations

import lzma
import tarfile
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.end_to_end.commands import NO_LOGGER, records, train

pytestmark = pytest.mark.end_to_end
ARCHIVE = Path(__file__).parents[3] / "shared" / "data" / "cifar10-images.tar.xz"
PER_CLASS = {"train": 16, "test": 7}
SECONDS = 30


@pytest.fixture
def pictures(workplace: Path) -> Path:
    """The first images of each class of both splits; the archive is read only as far as that takes."""
    if not ARCHIVE.is_file():
        pytest.skip(f"{ARCHIVE} is not here: CIFAR-10 as JPEGs, which this test trains on")
    root, taken, started = workplace / "cifar10", Counter[tuple[str, str]](), time.monotonic()
    wanted = 10 * sum(PER_CLASS.values())
    with lzma.open(ARCHIVE) as packed, tarfile.open(fileobj=packed, mode="r|") as archive:
        for member in archive:
            if time.monotonic() - started > SECONDS:
                pytest.fail(f"{taken.total()} of {wanted} images after {SECONDS} s")
            if not member.isfile() or not member.name.endswith(".jpg"):
                continue
            split, name, _ = Path(member.name).parts[-3:]
            if taken[split, name] == PER_CLASS[split]:
                continue
            taken[split, name] += 1
            target = root / split / name / Path(member.name).name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.extractfile(member).read())  # type: ignore[union-attr]
            if taken.total() == wanted:
                break
    assert taken.total() == wanted
    return root


def test_an_image_folder_trains_on_two_ranks(workplace: Path, pictures: Path) -> None:
    words = ("data=image_folder", f"data.root={pictures}", "data.augment=crop_flip", "global_batch=32")
    assert train(*words, *NO_LOGGER, "epochs=2", "norm.batch_size=8", "name=c") == 0
    (record,) = records(workplace / "runs")
    assert record.status == "completed"
    assert record.identity["data"]["augment"] == "crop_flip"
    assert str(workplace) not in str(record.identity)  # the same images elsewhere are the same data
    data = record.provenance["data"]
    assert (data["train_images"], data["test_images"], data["classes"]) == (160, 70, 10)
    wrong = record.metrics["final_val_error"] * 70 / 100
    assert wrong == pytest.approx(round(wrong), abs=1e-9)

    # Moved, it is the same run with the same pixels and weights; another file is another run.
    elsewhere = pictures.rename(workplace / "elsewhere")
    assert train(*(word.replace(str(pictures), str(elsewhere)) for word in words),
                 *NO_LOGGER, "epochs=2", "norm.batch_size=8", "name=moved") == 0  # fmt: skip
    (moved,) = records(workplace / "runs" / "moved")
    assert moved.id == record.id
    assert moved.metrics["weights_sha256"] == record.metrics["weights_sha256"]
