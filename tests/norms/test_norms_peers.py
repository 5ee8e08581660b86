"""Peers as oracles: the same outputs, gradients and statistics, or a difference that is stated and tested.

timm takes its statistics in fp32 whatever the input is, so that it agrees to fp32's digits only.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from torch import nn

from bnbench.norms import build_norm
from tests.norms.variants import INPUTS, assert_close, randomized

pytestmark = pytest.mark.norms
few = settings(max_examples=12, deadline=None, derandomize=True)


@pytest.fixture(scope="module")
def timm():
    return pytest.importorskip("timm.layers", reason="timm, a test-only dependency, is not installed")


def check_peer(ours, peer, given_input, tolerance, dtype=torch.double):
    """Outputs, gradients by input and parameters, and buffers: in training, then in eval mode."""
    ours = randomized(ours, given_input.seed).to(dtype)
    peer = peer.to(dtype)
    peer.load_state_dict(ours.state_dict(), strict=False)
    own = dict(peer.named_parameters())
    assert set(own) == set(dict(ours.named_parameters()))
    x, dy = given_input.tensors(dtype)
    for training in (True, False):
        results = []
        for norm in (ours.train(training), peer.train(training)):
            leaf = x.detach().requires_grad_()
            parameters = [norm.get_parameter(name) for name in own]
            y = norm(leaf)
            results.append((y, *torch.autograd.grad(y, [leaf, *parameters], dy)))
        for what, got, want in zip(("output", "input", *own), *results, strict=True):
            assert_close(got, want, tolerance, what)
        for name, buffer in peer.named_buffers():
            assert_close(ours.get_buffer(name), buffer, tolerance, name)


TORCHS = {
    "bn": nn.BatchNorm2d,
    "syncbn": nn.BatchNorm2d,
    "ws_bn": nn.BatchNorm2d,
    "in": lambda c: nn.InstanceNorm2d(c, affine=True),
    "gn": lambda c: nn.GroupNorm(2, c),
    "ws_gn": lambda c: nn.GroupNorm(2, c),
    "ln": lambda c: nn.GroupNorm(1, c),
}


@pytest.mark.parametrize("kind", TORCHS)
@few
@given(given_input=INPUTS)
def test_torchs_layers(kind, given_input):
    c = given_input.channels
    options = {"num_groups": 2} if kind in ("gn", "ws_gn") else {}
    check_peer(build_norm(kind, c, **options), TORCHS[kind](c), given_input, 1e-11)


@few
@given(given_input=INPUTS)
def test_torchs_layer_norm_over_pixels_and_channels(given_input):
    """nn.LayerNorm has a weight a pixel, ours one a channel: alike without."""
    x, dy = given_input.tensors()
    ours, per_pixel = build_norm("ln", x.shape[1]).double(), nn.LayerNorm(list(x.shape[1:])).double()
    last, torchs = build_norm("ln2d", x.shape[1]).double(), nn.LayerNorm(x.shape[1]).double()
    for norm, peer in (
        (ours, per_pixel),
        (last, lambda x: torchs(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
    ):
        leaf = x.detach().requires_grad_()
        y, want = norm(leaf), peer(leaf)
        assert_close(y, want, 1e-12)
        (dx,), (right,) = torch.autograd.grad(y, leaf, dy), torch.autograd.grad(want, leaf, dy)
        assert_close(dx, right, 1e-11)


@few
@given(given_input=INPUTS)
def test_timms_layer_norm_2d(timm, given_input):
    c = given_input.channels
    check_peer(build_norm("ln2d", c, eps=1e-6), timm.LayerNorm2d(c), given_input, 1e-11)


@pytest.mark.parametrize("act", [True, False])
@few
@given(given_input=INPUTS)
def test_timms_filter_response_norm(timm, act, given_input):
    """timm's eps is 1e-5, fixed."""
    c = given_input.channels
    peer = timm.FilterResponseNormTlu2d(c, apply_act=act)
    check_peer(build_norm("frn", c, eps=1e-5, act=act), peer, given_input, 3e-5)


def test_timm_halves_the_tlus_gradient_where_its_sides_are_equal(timm):
    """torch.maximum gives each side half; ours goes to tau."""
    peer = timm.FilterResponseNormTlu2d(1)
    peer(torch.zeros(1, 1, 2, 2)).sum().backward()
    assert (peer.tau.grad, peer.bias.grad) == (2, 2)


@few
@given(given_input=INPUTS)
def test_timms_evonorm_s0(timm, given_input):
    c = given_input.channels
    check_peer(build_norm("evonorm_s0", c, num_groups=2), timm.EvoNorm2dS0(c, groups=2), given_input, 3e-5)


@few
@given(given_input=INPUTS)
def test_timms_evonorm_b0(timm, given_input):
    """timm's eps is 1e-3. It has no step count."""
    c = given_input.channels
    check_peer(build_norm("evonorm_b0", c, eps=1e-3), timm.EvoNorm2dB0(c), given_input, 3e-4)


def test_timms_evonorms_without_activation_do_not_normalize(timm):
    """With apply_act=False timm's are gamma * x + beta. Ours divide by the std, as the S0a of timm does."""
    x = torch.randn(4, 4, 3, 3) * 5
    for peer in (timm.EvoNorm2dB0(4, apply_act=False), timm.EvoNorm2dS0(4, groups=2, apply_act=False)):
        assert torch.equal(peer(x), x)
    ours = build_norm("evonorm_s0", 4, num_groups=2, act=False, eps=1e-3)
    assert_close(ours(x), timm.EvoNorm2dS0a(4, groups=2, apply_act=False)(x), 1e-6)


def test_timms_split_batch_norm_is_not_ghost_bn(timm):
    """It splits by chunks, with an affine part for each: named here so that nobody takes it for an oracle."""
    x = torch.randn(4, 2, 3, 3)
    peer = timm.SplitBatchNorm2d(2, num_splits=2)
    assert len(list(peer.parameters())) == 4
    assert not torch.allclose(peer(x), build_norm("ghost", 2, ghosts=2)(x))
    chunks = torch.cat([x[::2], x[1::2]])
    assert_close(peer(chunks)[:2], build_norm("ghost", 2, ghosts=2)(x)[::2], 1e-6)
