"""One table, one door; a swap that says what it did."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bnbench import catalog
from bnbench.folders import config_folder
from bnbench.models import MODELS, build_model
from bnbench.norms import NORMS, build_norm, merge_running_statistics, swap_norms
from tests.ranks import on_ranks

pytestmark = pytest.mark.norms


def test_the_catalog_the_builders_and_the_config_groups_are_one_list():
    files = {
        group: {path.stem for path in (config_folder() / group).glob("*.yaml")} for group in catalog.GROUPS
    }
    for group in ("norm", "model", "data"):  # a user's own by dotted path
        files[group].remove(catalog.CUSTOM)
    assert set(NORMS) == set(catalog.NORMS) == files["norm"]
    assert set(MODELS) == set(catalog.MODELS) == files["model"]
    assert set(catalog.DATASETS) == files["data"]


def test_unknown_kinds_and_options_name_the_known():
    with pytest.raises(ValueError, match="unknown norm 'bnn'; known: bn, syncbn, ghost, brn"):
        build_norm("bnn", 4)
    with pytest.raises(ValueError, match="unknown option 'groups' of norm 'gn'; known: num_groups, eps"):
        build_norm("gn", 4, groups=2)


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        ("bn", {"num_features": 0}), ("gn", {"num_groups": "8"}), ("ghost", {"ghosts": 1.5}),
        ("ghost", {"ghosts": 2, "momentum": None}), ("bn", {"momentum": 2.0}), ("ln", {"eps": -1e-5}),
        ("frn", {"eps": "1e-5"}),
    ],
    ids=str,
)  # fmt: skip
def test_a_setting_that_is_no_number_of_its_range_is_one_line(kind, setting):
    name, value = list(setting.items())[-1]
    with pytest.raises(ValueError, match=rf"^{kind}: {name}={value!r} must be a "):
        build_norm(kind, **{"num_features": 8, **setting})


def test_groups_that_do_not_divide_are_an_error_with_the_divisors():
    with pytest.raises(
        ValueError, match=r"num_groups=8 does not divide num_features=12; choose one of 1, 2, 3, 4"
    ):
        build_norm("gn", 12, num_groups=8)


def test_ghosts_and_a_group_of_ranks_exclude_each_other():
    with pytest.raises(ValueError, match="exclude each other"):
        build_norm("bn", 4, ghosts=2, process_group=object())


def test_group_norm_of_one_group_is_layer_norm_over_chw_and_of_c_groups_instance_norm():
    x = torch.randn(3, 6, 4, 5, dtype=torch.double)
    one, each = build_norm("gn", 6, num_groups=1).double(), build_norm("gn", 6, num_groups=6).double()
    torch.testing.assert_close(one(x), nn.functional.layer_norm(x, x.shape[1:]), rtol=0, atol=1e-12)
    torch.testing.assert_close(each(x), nn.functional.instance_norm(x), rtol=0, atol=1e-12)


def test_a_swap_keeps_convolutions_affine_mode_and_dtype_and_goes_back():
    model = build_model("resnet8", 10).double()
    model(torch.randn(4, 3, 16, 16, dtype=torch.double))  # running statistics worth keeping
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.eval()
    report = swap_norms(model, "bn", ghosts=2)
    assert len(report.replaced) == 7
    assert not model.training
    swapped = model.state_dict()
    assert all(torch.equal(swapped[name], tensor) for name, tensor in before.items())
    swap_norms(model, "gn", num_groups=4)
    swap_norms(model, "bn")
    for name, tensor in model.state_dict().items():
        if "running" not in name and "tracked" not in name:  # GroupNorm has none to hand on
            assert torch.equal(tensor, before[name]), name


def test_a_swap_falls_back_to_the_largest_divisor_and_reports_it():
    model = nn.Sequential(nn.Conv2d(3, 12, 1), nn.BatchNorm2d(12), nn.BatchNorm2d(16))
    report = swap_norms(model, "gn", num_groups=8)
    assert (model[1].num_groups, model[2].num_groups) == (6, 8)
    assert report.notes() == ["1: num_groups 6, not 8: 12 channels"]
    assert report.as_dict()["replaced"] == 2


def test_a_model_without_norms_is_refused():
    with pytest.raises(ValueError, match="holds no BatchNorm2d"):
        swap_norms(nn.Sequential(nn.Conv2d(3, 4, 1)), "gn")


def _merged(world, policy):
    model = nn.Sequential(nn.BatchNorm2d(3).double(), nn.BatchNorm2d(2).double())
    for number, module in enumerate(model):
        module.running_mean.fill_(world.place.rank + number)
        module.running_var.fill_(10 * (world.place.rank + 1))
    merge_running_statistics(model, policy)
    first = model.state_dict()
    merge_running_statistics(model, policy)  # a second merge changes nothing
    assert all(torch.equal(first[name], tensor) for name, tensor in model.state_dict().items())
    return model[0].running_mean[0].item(), model[1].running_mean[0].item(), model[1].running_var[0].item()


@pytest.mark.parametrize(("policy", "want"), [("mean", (0.5, 1.5, 15.0)), ("rank0", (0.0, 1.0, 10.0))])
def test_running_statistics_merge_by_policy(policy, want):
    assert on_ranks(2, _merged, policy) == [want, want]
