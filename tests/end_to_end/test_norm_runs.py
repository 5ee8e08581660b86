"""Every norm by the command line; runs that go wrong in their statistics, or could not take a step."""

from __future__ import annotations

import sys
import xml.etree.ElementTree
from pathlib import Path

import pytest

from bnbench import catalog
from bnbench.records import find_records, read_record
from tests.end_to_end.commands import NO_LOGGER, TINY, records, train

pytestmark = pytest.mark.end_to_end
LABEL = "synthetic data: throughput only"
SMALL = (*TINY, *NO_LOGGER, "model.width=4")


@pytest.mark.parametrize("placement", catalog.PLACEMENTS)
@pytest.mark.once
def test_every_kind_trains_in_both_placements(workplace: Path, placement: str) -> None:
    kinds = [
        kind for kind, info in catalog.NORMS.items() if placement == "before" or not info.includes_activation
    ]
    words = (f"norm={','.join(kinds)}", f"norm.placement={placement}", "norm.batch_size=4")
    assert train("-m", *words, *SMALL, "name=all") == 0
    found = {record.identity["norm"]["name"]: record for record in records(workplace / "runs")}
    assert found.keys() == {catalog.NORMS[kind].alias_of or kind for kind in kinds}
    for record in found.values():
        assert record.status == "completed", record.error
        assert record.identity["norm"]["placement"] == placement
        assert record.norm_swap["replaced"] == 7
        assert (record.norm_swap["placement"].get("moved", 0) > 0) == (placement == "after")


# Synthetic data


def test_synthetic_data_are_labelled_in_every_output(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("data=synthetic", "data.image_size=8", "logger=wandb", "norm=bn,gn", "name=s")
    assert train("-m", *words, *TINY, "model.width=4") == 0
    out = capsys.readouterr().out
    for line in (line for line in out.splitlines() if line.startswith("[")):
        assert LABEL in line, "the line that a run leaves"
    assert out.count(LABEL) >= 4, "the table too"
    for path in find_records(workplace / "runs"):
        record = read_record(path)
        assert record.identity["data"]["label"] == record.provenance["data"]["label"] == LABEL
    report = workplace / "runs" / "s" / "report"
    for file in ("table.md", "report.md", "report.html", "cells.csv", "runs.csv"):
        assert LABEL in (report / file).read_text(), file
    drawn = (report / "figure.svg").read_text()
    xml.etree.ElementTree.fromstring(drawn)
    assert LABEL in drawn  # matplotlib writes a text beside its outlines


def test_real_data_are_not(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(*SMALL) == 0
    assert "synthetic" not in capsys.readouterr().out
    (record,) = records(workplace / "runs")
    assert "label" not in record.provenance["data"]


# Divergence

POISON = '''
import torch
from bnbench.norms import BatchNorm2d

class Poisonous(BatchNorm2d):
    """Normalizes well, and keeps a variance that is none from its second step on: the loss does not see it."""
    def forward(self, x):
        if self.training and self.num_batches_tracked >= 1:
            self.running_var[0] = torch.inf
        return super().forward(x)
'''


def test_poisoned_statistics_end_the_run_and_leave_no_weights(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (workplace / "poison.py").write_text(POISON)
    words = ("norm=custom", "norm.name=poison.Poisonous", "norm.family=batch", *SMALL, "epochs=3")
    assert train(*words) == 0  # diverged is a result
    (record,) = records(workplace / "runs")
    assert record.status == "diverged"
    assert record.error == "running statistics not finite after step 2: norm1.running_var"
    assert record.metrics["weights_sha256"] is None
    assert not list(workplace.rglob("weights.pt"))
    assert train(*words) == 0  # and is not repeated
    assert records(workplace / "runs") == [record]


def test_a_loss_that_is_no_number_leaves_no_weights(workplace: Path) -> None:
    assert train(*SMALL, "optim.lr=1e18", "optim.warmup_epochs=0") == 0
    (record,) = records(workplace / "runs")
    assert record.status == "diverged"
    assert record.metrics["weights_sha256"] is None
    assert not list(workplace.rglob("weights.pt"))


# Steps that are none

TO_A_POINT = '''
from torch import nn

def net(num_classes, pool=1):
    """Its second norm sees one pixel."""
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(pool), nn.Conv2d(4, 8, 1)]
    return nn.Sequential(*layers, nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * pool**2, num_classes))

def deep(num_classes):
    return nn.Sequential(*[nn.MaxPool2d(2) for _ in range(9)], nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4),
                         nn.Flatten(), nn.Linear(4, num_classes))
'''
ONE_VALUE = {
    "in": ["norm=in"],
    "one image a device": ["norm=bn", "norm.batch_size=1", "global_batch=2"],
    "ghosts of one image": ["norm=bn", "norm.batch_size=1"],
    "brn": ["norm=brn", "norm.batch_size=1"],
    "one reference image": ["norm=vbn", "norm.reference_size=1"],
}


@pytest.mark.parametrize("words", ONE_VALUE.values(), ids=ONE_VALUE.keys())
def test_one_value_a_channel_is_a_line_that_names_the_layer(
    workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (workplace / "points.py").write_text(TO_A_POINT)
    own = ("model=custom", "model.name=points.net", *TINY)
    assert train(*own, "logger=wandb", *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    for text in ("model=points.net", words[0], "16x16", " at 5", "one value per channel"):
        assert text in line
    left = {path.name for path in workplace.iterdir()} - {"__pycache__"}
    assert left == {"points.py"}, "no record, no W&B files"


def test_maps_that_end_are_a_line(
    workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (workplace / "points.py").write_text(TO_A_POINT)
    assert train("model=custom", "model.name=points.deep", *TINY, *NO_LOGGER) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "model=points.deep" in line and "Output size is too small" in line
    assert not (workplace / "runs").exists()


def test_a_probe_leaves_the_model_as_it_was(workplace: Path) -> None:
    """The same bits as before it was there: the weights of a run that needs none of it."""
    import torch

    from bnbench.compose import compose_jobs
    from bnbench.data import dropout_seed
    from bnbench.launch import Place
    from bnbench.models import build_model
    from bnbench.training.setup import DataCache, set_up
    from bnbench.training.world import World

    (config,) = compose_jobs([*SMALL, "norm=brn", "trainer.devices=1", "trainer.accelerator=cpu"])
    world = World.join(Place(0, 1, 0, 1), "cpu", str(workplace / "store"))
    try:
        model = set_up(config, world, DataCache()).module.model
        after = torch.rand(1)
    finally:
        world.leave()
    torch.manual_seed(config.seed)
    fresh = build_model("resnet8", 10, norm={"name": "brn"}, width=4, stem_stride=1, preact=False)
    for (name, one), (_, other) in zip(model.state_dict().items(), fresh.state_dict().items(), strict=True):
        assert torch.equal(one, other), name
    torch.manual_seed(dropout_seed(config.seed, 0))
    assert torch.equal(after, torch.rand(1)), "the random numbers of training begin where the seed says"
