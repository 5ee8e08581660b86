"""Weight standardization: filters of mean 0 and variance 1; parameters and keys of Conv2d."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bnbench.norms import WSConv2d, build_norm
from bnbench.norms.weight import plain, standardize
from tests.norms.variants import assert_close

pytestmark = pytest.mark.norms
CONVS = st.fixed_dictionaries(
    {
        "groups": st.sampled_from([1, 2, 4]),
        "kernel_size": st.sampled_from([2, 3, (1, 3)]),
        "stride": st.sampled_from([1, 2]),
        "padding": st.sampled_from([0, 1, "same"]),
        "dilation": st.sampled_from([1, 2]),
        "bias": st.booleans(),
        "padding_mode": st.sampled_from(["zeros", "reflect", "circular"]),
    }
).filter(lambda o: o["padding"] != "same" or o["stride"] == 1)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(options=CONVS, spread=st.sampled_from([1e-2, 1.0, 50.0]), seed=st.integers(0, 1000))
def test_a_convolution_with_standardized_filters(options, spread, seed):
    """(w - mean) / sqrt(var + 1e-6) over the fan-in, biased variance: written out, for any convolution."""
    torch.manual_seed(seed)
    conv = nn.Conv2d(4, 8, **options).double()
    with torch.no_grad():
        conv.weight.mul_(spread).add_(spread * torch.randn(8, 1, 1, 1))
    ws = WSConv2d.of(conv)
    x = torch.randn(2, 4, 7, 6, dtype=torch.double, requires_grad=True)
    w = conv.weight
    mean, var = w.mean((1, 2, 3), keepdim=True), w.var((1, 2, 3), keepdim=True, correction=0)
    normal = (w - mean) / (var + 1e-6).sqrt()
    want = conv._conv_forward(x, normal, conv.bias)
    y = ws(x)
    assert_close(y, want, 1e-11)
    dy = torch.randn_like(y)
    leaves = [x, *conv.parameters()]
    for got, right in zip(
        torch.autograd.grad(y, leaves, dy), torch.autograd.grad(want, leaves, dy), strict=True
    ):
        assert_close(got, right, 1e-10)


def test_filters_have_mean_0_and_variance_1_over_the_fan_in():
    for groups in (1, 2, 8):
        w = standardize(nn.Conv2d(8, 16, 3, groups=groups).double().weight)
        assert_close(w.mean((1, 2, 3)), torch.zeros(16), 1e-15)
        assert_close(
            w.var((1, 2, 3), correction=0), torch.ones(16), 1e-3
        )  # eps = 1e-6 against 1/72 and above


def test_the_scale_and_offset_of_a_filter_do_not_matter():
    conv = WSConv2d(3, 4, 3).double()
    x = torch.randn(2, 3, 5, 5, dtype=torch.double)
    y = conv(x)
    with torch.no_grad():
        conv.weight.mul_(1000).add_(7)
    assert_close(conv(x), y, 1e-4)


def test_parameters_keys_and_settings_are_the_convolutions():
    conv = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2).eval()
    conv.weight.requires_grad_(False)
    ws = WSConv2d.of(conv)
    assert list(ws.state_dict()) == list(conv.state_dict()) == ["weight", "bias"]
    assert ws.weight is conv.weight and ws.bias is conv.bias and not ws.training
    assert torch.equal(ws.state_dict()["weight"], conv.weight)  # the raw one
    assert type(plain(ws)) is nn.Conv2d and plain(ws).weight is conv.weight
    fresh = WSConv2d(4, 8, 3, stride=2, padding=1, groups=2)
    fresh.load_state_dict(conv.state_dict())
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(fresh(x), ws(x))
    assert torch.equal(plain(ws)(x), conv(x))
    assert torch.equal(copy.deepcopy(ws)(x), ws(x))
    assert not torch.allclose(ws(x), conv(x))


def test_it_is_timms():
    timm = pytest.importorskip("timm.layers", reason="the peer is timm's StdConv2d")
    peer = timm.StdConv2d(4, 8, 3, stride=2, padding=1, groups=2, bias=True).double()
    ours = WSConv2d(4, 8, 3, stride=2, padding=1, groups=2).double()
    ours.load_state_dict(peer.state_dict())
    x = torch.randn(2, 4, 6, 6, dtype=torch.double, requires_grad=True)
    y, want = ours(x), peer(x)
    assert_close(y, want, 1e-13)
    dy = torch.randn_like(y)
    got = torch.autograd.grad(y, [x, *ours.parameters()], dy)
    for one, other in zip(got, torch.autograd.grad(want, [x, *peer.parameters()], dy), strict=True):
        assert_close(one, other, 1e-12)


def test_memory_format_autocast_and_compilation():
    torch.manual_seed(0)
    conv = WSConv2d(4, 8, 3)
    x = torch.randn(2, 4, 6, 6)
    y = conv(x)
    last = copy.deepcopy(conv).to(memory_format=torch.channels_last)
    y_last = last(x.contiguous(memory_format=torch.channels_last))
    assert y_last.is_contiguous(memory_format=torch.channels_last)
    assert_close(y_last, y, 1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(x).dtype == torch.bfloat16
        assert_close(conv(x), y, 0.02)
    assert_close(copy.deepcopy(conv).bfloat16()(x.bfloat16()), y, 0.03)
    compiled = torch.compile(conv, backend="aot_eager", fullgraph=True)
    assert_close(compiled(x), y, 1e-6)


def test_constant_filters_and_filters_of_one_weight():
    conv = WSConv2d(2, 3, 3)
    nn.init.ones_(conv.weight)
    assert torch.equal(standardize(conv.weight), torch.zeros_like(conv.weight))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        WSConv2d(4, 4, 1, groups=4)(torch.randn(1, 4, 3, 3))


def test_ws_kinds_are_plain_norms_whose_convolutions_are_the_swaps_affair():
    x = torch.randn(4, 4, 3, 3)
    assert torch.equal(build_norm("ws_gn", 4, num_groups=2)(x), nn.GroupNorm(2, 4)(x))
    assert torch.equal(build_norm("ws_bn", 4)(x), nn.BatchNorm2d(4)(x))
