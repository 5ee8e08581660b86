"""One normalization batch size, reached by whatever world, is one measurement."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from bnbench import data
from bnbench.config import DataConfig
from bnbench.models import build_model
from bnbench.norms import swap_norms
from bnbench.records import find_records, read_record
from tests.end_to_end.commands import NO_LOGGER, TINY, records, the_record, train

pytestmark = pytest.mark.end_to_end
TOLERANCE = 1e-10
TEST_IMAGES = 65  # no world above 1 rank divides it
FP64 = ("trainer.precision=fp64", f"data.max_test={TEST_IMAGES}", *NO_LOGGER)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "weights.pt", weights_only=True)


@pytest.fixture(scope="module")
def routes(shared_workplace: Path) -> Path:
    """NBS 32 and 64 of a global batch of 64, on worlds of 1, 2 and 4 ranks, with crops; 2 epochs of 2 steps."""
    before = Path.cwd()
    os.chdir(shared_workplace)
    try:
        words = ("trainer.devices=1,2,4", "norm.batch_size=32,64", "data.augment=crop", "epochs=2")
        assert train("-m", "name=routes", *TINY, *FP64, *words) == 0
    finally:
        os.chdir(before)
    return shared_workplace / "runs" / "routes"


def same_weights(first: Path, second: Path) -> None:
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=TOLERANCE, atol=TOLERANCE, msg=name)


@pytest.mark.parametrize(
    ("nbs", "ranks", "span"),
    [
        pytest.param(32, 2, {"kind": "device", "ghosts": 1, "ranks": 1}, id="2 ranks x 32"),
        pytest.param(32, 4, {"kind": "group", "ghosts": 1, "ranks": 2}, id="4 ranks x 16 in groups of 2"),
        pytest.param(64, 2, {"kind": "world", "ghosts": 1, "ranks": 2}, id="2 ranks, world"),
        pytest.param(64, 4, {"kind": "world", "ghosts": 1, "ranks": 4}, id="4 ranks, world"),
    ],
)
def test_every_route_to_an_nbs_trains_the_same_weights(
    routes: Path, nbs: int, ranks: int, span: dict[str, object]
) -> None:
    alone, reference = the_record(routes, nbs=nbs, world_size=1)
    folder, record = the_record(routes, nbs=nbs, world_size=ranks)
    # That the routes differ is the point: else this test would compare a run with itself.
    assert record.provenance["world"]["span"] == span
    assert reference.provenance["world"]["span"]["ghosts"] == 64 // nbs
    same_weights(alone, folder)
    assert record.metrics["final_val_error"] == reference.metrics["final_val_error"]
    for key in ("final_val_loss", "train_loss", "train_error"):
        assert record.metrics[key] == pytest.approx(reference.metrics[key], rel=TOLERANCE)


def test_accumulation_is_a_route_too(routes: Path) -> None:
    """NBS 32 by 2 ranks x 2 parts x 16, where 2 ranks share statistics: the weights of 1 rank x 2 ghosts of 32.

    Running statistics differ, since each part updates them: they are not compared.
    """
    words = (
        "trainer.devices=2",
        "norm.batch_size=32",
        "data.augment=crop",
        "epochs=2",
        "recipe.accumulate=2",
    )
    before = Path.cwd()
    os.chdir(routes.parent.parent)
    try:
        assert train("name=accumulated", *TINY, *FP64, *words) == 0
    finally:
        os.chdir(before)
    folder, record = the_record(routes.parent / "accumulated", world_size=2)
    assert record.identity["per_device_batch"] == 16
    alone, reference = the_record(routes, nbs=32, world_size=1)
    one, other = weights(alone), weights(folder)
    for name in one:
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            torch.testing.assert_close(other[name], one[name], rtol=TOLERANCE, atol=TOLERANCE, msg=name)
    assert record.metrics["train_loss"] == pytest.approx(reference.metrics["train_loss"], rel=TOLERANCE)
    assert record.provenance["start"] == reference.provenance["start"]


def test_the_nbs_makes_a_difference(routes: Path) -> None:
    """Else the equalities above would hold of a norm that ignores it."""
    one, other = (weights(the_record(routes, nbs=nbs, world_size=1)[0]) for nbs in (32, 64))
    assert max((one[name] - other[name]).abs().max() for name in one if one[name].is_floating_point()) > 1e-4


BATCH_KINDS = ("brn", "frozen", "evonorm_b0", "ws_bn")


@pytest.fixture(scope="module")
def kinds(shared_workplace: Path) -> Path:
    """The other kinds with an NBS, at 32 of a global batch of 64; and Virtual BN, whose reference all share."""
    before = Path.cwd()
    os.chdir(shared_workplace)
    try:
        words = ("trainer.devices=1,2,4", "data.augment=crop", "epochs=2", "name=kinds")
        assert train("-m", f"norm={','.join(BATCH_KINDS)}", "norm.batch_size=32", *TINY, *FP64, *words) == 0
        assert train("-m", "norm=vbn", "norm.reference_size=8", *TINY, *FP64, *words) == 0
    finally:
        os.chdir(before)
    return shared_workplace / "runs" / "kinds"


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("kind", [*BATCH_KINDS, "vbn"])
@pytest.mark.once
def test_every_route_of_every_kind_trains_the_same_weights(kinds: Path, kind: str, ranks: int) -> None:
    """Ghosts, devices and groups of ranks: brn reads statistics merged at every step, frozen freezes them."""
    runs = {
        record.identity["world_size"]: path.parent
        for path in find_records(kinds)
        if (record := read_record(path)).identity["norm"]["name"] == kind
    }
    same_weights(runs[1], runs[ranks])


@pytest.mark.once
def test_every_kind_on_every_world_starts_from_the_same_weights_and_order(kinds: Path, routes: Path) -> None:
    starts = [record.provenance["start"] for folder in (kinds, routes) for record in records(folder)]
    assert len(starts) == 3 * (len(BATCH_KINDS) + 1) + 6
    assert all(start == starts[0] for start in starts)
    assert set(starts[0]) == {"weights_sha256", "order_sha256"}


def test_another_seed_starts_from_other_weights_in_another_order(workplace: Path) -> None:
    assert train("-m", "seed=0,1", "norm=bn,none", *TINY, *NO_LOGGER, "name=seeds", "trainer.devices=1") == 0
    starts: dict[int, set[str]] = {}
    for record in records(workplace / "runs" / "seeds"):
        starts.setdefault(record.identity["seed"], set()).update(record.provenance["start"].values())
    assert [len(hashes) for hashes in starts.values()] == [2, 2], "the same for both norms"
    assert not starts[0] & starts[1]


@pytest.fixture(scope="module")
def worlds(shared_workplace: Path) -> Path:
    """NBS 8 of a global batch of 48 on worlds of 1, 2 and 3 ranks, none of which divides the test set."""
    before = Path.cwd()
    os.chdir(shared_workplace)
    try:
        words = ("trainer.devices=1,2,3", "global_batch=48", "norm.batch_size=8")
        assert train("-m", "name=worlds", *TINY, *FP64, *words) == 0
    finally:
        os.chdir(before)
    return shared_workplace / "runs" / "worlds"


def test_validation_counts_each_image_once_on_every_world(worlds: Path) -> None:
    folder, alone = the_record(worlds, world_size=1)
    loss, error = validate_by_hand(folder, alone.config)
    for ranks in (1, 2, 3):
        _, record = the_record(worlds, world_size=ranks)
        assert record.provenance["data"]["test_images"] == TEST_IMAGES
        assert record.metrics["final_val_error"] == pytest.approx(error, rel=1e-12)
        assert record.metrics["final_val_loss"] == pytest.approx(loss, rel=1e-9)


def validate_by_hand(folder: Path, config: dict[str, object]) -> tuple[float, float]:
    """Mean loss and error in percent of saved weights, over the whole test set in one batch."""
    dataset = DataConfig(**config["data"])  # type: ignore[arg-type]
    test = data.load(dataset).test
    assert len(test) == TEST_IMAGES
    normalize = data.Normalizer(dataset.mean, dataset.std, torch.device("cpu"), torch.double)
    model = build_model(**config["model"], num_classes=10)  # type: ignore[arg-type]
    swap_norms(model, "bn")
    model.double().load_state_dict(weights(folder))
    with torch.no_grad():
        logits = model.eval()(normalize(test.images))
    wrong = (logits.argmax(1) != test.labels).double().mean()
    return F.cross_entropy(logits, test.labels).item(), 100 * wrong.item()


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_same_run_twice_ends_in_the_same_bits(workplace: Path, ranks: int) -> None:
    words = (*TINY, *NO_LOGGER, "data.augment=crop", f"trainer.devices={ranks}")
    for name in ("once", "again"):
        assert train(*words, f"name={name}") == 0
    (once,), (again,) = records(workplace / "runs" / "once"), records(workplace / "runs" / "again")
    assert once.metrics == again.metrics
    assert len(once.metrics["weights_sha256"]) == 64
    assert once.identity == again.identity
