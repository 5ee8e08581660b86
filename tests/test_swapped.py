"""What a swap changed that was not asked for: of a record's notes, told once and in few lines."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor, nn

from bnbench.models import build_model
from bnbench.norms import swap_norms
from bnbench.report import build
from bnbench.report.fairness import swapped
from bnbench.swapped import changes
from tests.records_factory import make_record, write


class Branching(nn.Module):
    """torch.fx cannot follow its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        found = self.norm(self.conv(images)).relu()
        if found.mean() > 1:
            found = found / 2
        return self.head(found.mean((2, 3)))


def told(model: nn.Module, kind: str, **options: int) -> list[str]:
    return changes(swap_norms(model, kind, **options).as_dict())


@pytest.mark.parametrize("kind", ["bn", "gn", "frn", "evonorm_b0", "ws_gn", "none"])
def test_of_ordinary_networks_there_is_nothing_to_tell(kind: str) -> None:
    groups = {"num_groups": 8} if kind.endswith("gn") else {}
    for model in ("resnet8", "cifar_vgg11"):
        assert told(build_model(model, 10), kind, **groups) == []


def test_other_groups_are_told_with_one_line_for_many() -> None:
    (line,) = told(build_model("resnet8", 10), "gn", num_groups=5)
    assert (
        line == "norm1 and 2 more: num_groups 4, not 5: 16 channels; likewise at 2 other numbers of channels"
    )
    (line,) = told(build_model("resnet8", 10), "evonorm_s0", num_groups=32)  # some of them without a ReLU too
    assert line.startswith("norm1, blocks.0.norm1: num_groups 16, not 32: 16 channels")


@pytest.mark.parametrize(
    ("kind", "words"),
    [("frn", "norm: act=False: the model cannot be traced"), ("ws_bn", "by the order of modules")],
)
def test_a_network_that_cannot_be_traced_is_told(kind: str, words: str) -> None:
    lines = told(Branching(), kind)
    assert any(words in line for line in lines)
    assert any("Branching cannot be traced by torch.fx" in line for line in lines)


@pytest.mark.parametrize("swap", [{}, {"notes": None}, {"notes": []}])
def test_a_record_without_notes_tells_nothing(swap: dict[str, object]) -> None:
    assert changes(swap) == []


def test_both_pages_list_each_change_once_also_of_one_cell(tmp_path: Path) -> None:
    for seed in (0, 1):
        record = make_record(norm="gn", nbs=None, seed=seed)
        record.norm_swap = {
            "notes": ["b1: num_groups 4, not 5: 8 channels", "b2: act=False: no ReLU behind it alone"]
        }
        write(tmp_path, record)
    made = build([tmp_path], tmp_path / "report")
    page = made.page_md.read_text()
    assert "What the swap of norms changed" in page
    assert page.count("- gn in resnet8: b1: num_groups 4, not 5: 8 channels\n") == 1
    assert "act=False" not in page
    assert "gn in resnet8: b1: num_groups 4, not 5: 8 channels</li>" in made.page_html.read_text()


def test_what_act_false_means_is_said_where_it_stands() -> None:
    record = make_record(norm="frn", nbs=None)
    record.norm_swap = {"notes": ["b1: act=False: the model cannot be traced"]}
    assert "the network keeps its own behind it" in swapped([record])
    assert swapped([make_record()]) == ""
