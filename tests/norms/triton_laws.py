"""The laws of the Triton kernels, run by test_norms_triton.py in a process of their own: interpreted, or on a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bnbench.norms import GhostBatchNorm2d, GroupNorm, InstanceNorm2d, LayerNorm, fused

DEVICE = "cpu" if fused.INTERPRETED else "cuda"


@pytest.fixture(autouse=True)
def _at_any_size():
    with fused.at_any_size():
        yield


SHAPES = [(3, 12, 5, 7), (2, 6, 3, 3), (4, 160, 9, 9), (2, 8, 40, 40), (1, 4, 1, 3), (4, 300, 2, 1)]


def values(shape: tuple[int, ...], seed: int, mean: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) + mean
    return x.to(DEVICE).contiguous(memory_format=torch.channels_last)


def affine(channels: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(9)
    weight, bias = torch.randn(2, channels, generator=generator).to(DEVICE)
    return weight.requires_grad_(), bias.requires_grad_()


def distances(found: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> list[float]:
    return [
        float((a.detach().double() - b.detach()).norm() / b.detach().norm())
        for a, b in zip(found, exact, strict=True)
    ]


def in_fp64(x: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
    return [t.detach().double().contiguous().requires_grad_() for t in (x, weight, bias)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("groups", [1, 2, "all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_groups_are_those_of_fp64(shape, groups, dtype):
    groups = shape[1] if groups == "all" else groups
    if shape[1] // groups * shape[2] * shape[3] == 1:
        pytest.skip("one value a group")
    x, dy = values(shape, 0, 1.0).to(dtype).requires_grad_(), values(shape, 1).to(dtype)
    weight, bias = affine(shape[1])
    assert fused.applies(x)
    y = fused.group_norm(x, groups, weight, bias, 1e-5)
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    found = (y, *torch.autograd.grad(y, (x, weight, bias), dy))
    exact_inputs = in_fp64(x, weight, bias)
    y64 = F.group_norm(exact_inputs[0], groups, *exact_inputs[1:], 1e-5)
    exact = (y64, *torch.autograd.grad(y64, exact_inputs, dy.double()))
    assert max(distances(found, exact)) < (
        3e-5 if dtype == torch.float32 else 1e-2
    )  # of two values, some digits more


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[0] % 2 == 0])
def test_ghosts_are_those_of_fp64(shape):
    x, dy = values(shape, 2, 1.0).requires_grad_(), values(shape, 3)
    weight, bias = affine(shape[1])
    y, mean, var = fused.ghost_norm(x, 2, weight, bias, 1e-5)
    found = (y, mean, var, *torch.autograd.grad(y, (x, weight, bias), dy))
    x64, w64, b64 = in_fp64(x, weight, bias)
    of_ghosts = [x64[0::2], x64[1::2]]
    y64 = torch.empty_like(x64)
    y64 = torch.stack(
        [F.batch_norm(part, None, None, w64, b64, True, eps=1e-5) for part in of_ghosts], 1
    ).flatten(0, 1)
    means = torch.stack([part.mean((0, 2, 3)) for part in of_ghosts])
    variances = torch.stack([part.var((0, 2, 3), correction=0) for part in of_ghosts])
    exact = (y64, means, variances, *torch.autograd.grad(y64, (x64, w64, b64), dy.double()))
    assert max(distances(found, exact)) < 1e-5


def test_pieces_without_number_are_put_together(monkeypatch):
    monkeypatch.setattr(fused, "TILE", 64)
    monkeypatch.setattr(fused, "MERGED", 16)
    test_groups_are_those_of_fp64((2, 6, 9, 7), 2, torch.float32)
    test_ghosts_are_those_of_fp64((6, 20, 5, 5))


def test_a_large_mean_costs_what_its_own_rounding_costs():
    x = values((2, 8, 40, 40), 4, 1000.0)
    weight, bias = torch.ones(8, device=DEVICE), torch.zeros(8, device=DEVICE)
    exact = F.group_norm(x.double(), 4, weight.double(), bias.double())
    (found,) = distances((fused.group_norm(x, 4, weight, bias, 1e-5),), (exact,))
    assert found < 5e-4  # E[x^2] - E[x]^2 in fp32 would leave no digit


def test_a_gradient_of_another_format_is_taken():
    x = values((2, 8, 5, 5), 5).requires_grad_()
    weight, bias = affine(8)
    dy = values((2, 8, 5, 5), 6)
    y = fused.group_norm(x, 2, weight, bias, 1e-5)
    (one,) = torch.autograd.grad(y, x, dy, retain_graph=True)
    (other,) = torch.autograd.grad(y, x, dy.contiguous())
    assert torch.equal(one, other)


def test_layers_choose_and_say_so():
    x = values((4, 8, 5, 5), 7)
    for layer in (GroupNorm(8, num_groups=2), LayerNorm(8), InstanceNorm2d(8), GhostBatchNorm2d(8, ghosts=2)):
        layer.to(DEVICE)
        reference = layer(x.contiguous())
        assert layer.kernel == "torch"
        y = layer(x)
        assert layer.kernel == "triton"
        assert y.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(y, reference, rtol=1e-5, atol=1e-5)
        for other in (x.double(), x[:0]):
            layer.to(other.dtype)(other)
            assert layer.kernel == "torch"


@pytest.mark.parametrize("statistics", ["mean", "rank0", "sequential"])
def test_running_statistics_move_as_without_triton(statistics):
    x = values((6, 8, 5, 5), 8, 2.0)
    layers = [GhostBatchNorm2d(8, ghosts=3, statistics=statistics).to(DEVICE) for _ in range(2)]
    for _ in range(3):
        layers[0](x.contiguous())
        layers[1](x)
    assert [layer.kernel for layer in layers] == ["torch", "triton"]
    for name, buffer in layers[0].named_buffers():
        torch.testing.assert_close(layers[1].get_buffer(name), buffer, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 8, 5, 5), (2, 8, 1, 1)])
def test_what_no_ghost_can_be_made_of_is_refused_as_without_triton(shape):
    with pytest.raises(ValueError, match=r"does not split|one value per channel"):
        GhostBatchNorm2d(8, ghosts=2).to(DEVICE)(values(shape, 0))
