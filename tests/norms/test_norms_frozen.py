"""Frozen BN: torchvision's from the start, or BN whose statistics stop."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bnbench.norms import FrozenBatchNorm2d, NoNorm2d, build_norm, freeze_statistics, swap_norms
from tests.norms.variants import INPUTS, assert_close, randomized

pytestmark = pytest.mark.norms
few = settings(max_examples=15, deadline=None, derandomize=True)


def torchvisions():
    return pytest.importorskip("torchvision", reason="the peer is torchvision's").ops.FrozenBatchNorm2d


@few
@given(given_input=INPUTS, eps=st.sampled_from([1e-12, 1e-5, 1e-3]), training=st.booleans())
def test_it_is_torchvisions(given_input, eps, training):
    x, dy = given_input.tensors()
    ours = randomized(build_norm("frozen", given_input.channels, eps=eps), given_input.seed).double()
    peer = torchvisions()(given_input.channels, eps=eps).double()
    peer.load_state_dict(ours.state_dict())
    leaf = x.detach().requires_grad_()
    y, want = ours.train(training)(leaf), peer(leaf)
    assert_close(y, want, 1e-12)
    (dx,), (dx_want,) = torch.autograd.grad(y, leaf, dy), torch.autograd.grad(want, leaf, dy)
    assert_close(dx, dx_want, 1e-12)


def test_states_go_to_and_from_torchvisions_and_bns():
    bn = randomized(nn.BatchNorm2d(3), 5)
    frozen, peer = build_norm("frozen", 3), torchvisions()(3)
    assert str(frozen.load_state_dict(bn.state_dict())) == "<All keys matched successfully>"
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(frozen(x), bn.eval()(x))
    peer.load_state_dict(bn.state_dict())
    again = build_norm("frozen", 3)
    again.load_state_dict(peer.state_dict())  # torchvision's has no count
    assert torch.equal(again(x), frozen(x))
    whole = nn.Sequential(nn.Conv2d(3, 3, 1), build_norm("frozen", 3))  # under a prefix
    state = nn.Sequential(nn.Conv2d(3, 3, 1), peer).state_dict()
    keys = set(state)
    whole.load_state_dict(state)
    assert set(state) == keys  # the caller's own dictionary is left alone
    back = nn.BatchNorm2d(3)
    back.load_state_dict(frozen.state_dict())
    assert back.num_batches_tracked == bn.num_batches_tracked
    with pytest.raises(RuntimeError, match="running_var"):
        build_norm("frozen", 3).load_state_dict(
            {k: v for k, v in bn.state_dict().items() if k != "running_var"}
        )


def test_nothing_of_it_trains_or_moves():
    frozen = randomized(build_norm("frozen", 3), 5).train()
    before = copy.deepcopy(frozen.state_dict())
    assert not list(frozen.parameters())
    frozen(torch.randn(4, 3, 4, 4, requires_grad=True)).sum().backward()
    assert all(torch.equal(before[name], value) for name, value in frozen.state_dict().items())


def test_without_statistics_it_is_the_identity_but_for_eps():
    x = torch.randn(2, 3, 4, 4, dtype=torch.double)
    assert_close(FrozenBatchNorm2d(3, eps=1e-15).double()(x), x, 1e-14)


BATCH_NORMS = [
    ("frozen", {"after": 0.5}), ("frozen", {"after": 0.5, "ghosts": 2}), ("bn", {}), ("syncbn", {}),
    ("ghost", {"ghosts": 2}), ("brn", {}), ("ws_bn", {}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "options"), BATCH_NORMS, ids=str)
def test_frozen_statistics_stop_and_the_affine_part_goes_on(kind, options):
    norm = randomized(build_norm(kind, 3, **options), 5).double()
    x = torch.randn(4, 3, 4, 4, dtype=torch.double)
    norm(x)
    after = {name: b.clone() for name, b in norm.named_buffers()}
    model = nn.Sequential(NoNorm2d(3).double(), norm)
    freeze_statistics(model)
    leaf = x.clone().requires_grad_()
    y = model.train()(leaf)
    y.square().sum().backward()
    for name, buffer in norm.named_buffers():
        assert torch.equal(buffer, after[name]), name
    fixed = randomized(build_norm("frozen", 3, eps=norm.eps), 5).double()
    fixed.load_state_dict(norm.state_dict())
    assert_close(y, fixed(x), 1e-14)
    twin = x.clone().requires_grad_()
    fixed(twin).square().sum().backward()
    assert_close(leaf.grad, twin.grad, 1e-13)  # the statistics are constants to the gradient
    assert norm.weight.grad.abs().sum() > 0 and norm.bias.grad.abs().sum() > 0
    assert torch.autograd.gradcheck(norm, (leaf.detach()[:1].requires_grad_(),))  # one image will do, too
    assert "frozen" in repr(norm)
    assert copy.deepcopy(norm).frozen
    assert list(norm.state_dict()) == list(build_norm("bn", 3).state_dict())


def test_a_swap_keeps_frozen_statistics_frozen_and_what_is_not_ours_is_named():
    model = nn.Sequential(build_norm("bn", 3), nn.BatchNorm2d(3), build_norm("evonorm_b0", 3))
    assert freeze_statistics(model) == ["1", "2"]
    swap_norms(model, "ghost", ghosts=2)
    assert [layer.frozen for layer in model] == [True, False, False]
    assert freeze_statistics(model) == []


def test_frozen_layers_take_what_training_could_not():
    """One value a channel, and batches that do not split: the statistics are there."""
    for kind, options in BATCH_NORMS:
        norm = build_norm(kind, 3, **options)
        with pytest.raises(ValueError, match=r"one value per channel|even groups"):
            norm(torch.randn(1, 3, 1, 1))
        freeze_statistics(norm)
        assert norm(torch.randn(1, 3, 1, 1)).isfinite().all()


def test_before_it_is_frozen_it_is_bn():
    x = torch.randn(4, 3, 4, 4)
    frozen, bn = build_norm("frozen", 3, after=0.3), nn.BatchNorm2d(3)
    assert torch.equal(frozen(x), bn(x))
    assert torch.equal(frozen.running_var, bn.running_var)
    assert [name for name, _ in frozen.named_parameters()] == ["weight", "bias"]


@pytest.mark.parametrize("after", [-0.1, 1.0, 1.5])
def test_a_fraction_outside_training_is_an_error(after):
    with pytest.raises(ValueError, match=f"after={after} must be a fraction of training"):
        build_norm("frozen", 3, after=after)
