"""fp32 where it hurts: large means, small deviations; NaN and infinity that show themselves."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.norms.variants import REFERENCES, VARIANTS, assert_close, expected, laid_out, randomized

pytestmark = pytest.mark.norms
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)


def errors(variant, mean, std, training=True, layout="contiguous"):
    """Of an fp32 layer against the formula in fp64 on the same values, relative: by output, gradient, buffer."""
    norm = randomized(variant.build(), 5).train(training)
    with torch.no_grad():
        for name, value in norm.named_buffers():
            value.fill_({"running_mean": mean, "running_var": std**2}.get(name, 0))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 4, 12, 12, generator=generator) * std + mean
    dy = torch.randn(8, 4, 12, 12, generator=generator)
    plain = x.detach().double().requires_grad_()
    want, buffers, leaves = expected(variant, norm, plain)
    x = laid_out(x, layout).requires_grad_()
    y = norm(x)
    got = [y, *torch.autograd.grad(y, [x, *norm.parameters()], dy)]
    wanted = [
        want,
        *torch.autograd.grad(want, [plain, *leaves.values()], dy.double(), materialize_grads=True),
    ]
    names = ["output", "input", *leaves]
    for name, value in norm.named_buffers():
        names, got, wanted = [*names, name], [*got, value], [*wanted, buffers[name]]
    return {
        name: ((one.double() - other).abs().max() / other.abs().max().clamp(min=1e-30)).item()
        for name, one, other in zip(names, got, wanted, strict=True)
    }


@every_variant
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_mean_8_and_deviation_5_hundredths(variant, training, layout):
    """E[x^2] - mean^2 in one pass of fp32 is off by 1e-2 there."""
    for name, error in errors(variant, 8, 0.05, training, layout).items():
        assert error < 2e-4, (name, error)


@every_variant
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_mean_1000_and_deviation_5_hundredths(variant, training):
    """x itself has 3 digits of deviation; one pass would have none. Statistics to 6 digits all the same.

    Outputs lose what gamma / std * x + shift loses: 20,000 in fp32 leaves 1e-3, in torch's BN on CPU, too.
    """
    found = errors(variant, 1000, 0.05, training)
    for name in ("running_mean", "running_var"):
        # evonorm_b0 merges its images' means, each rounded to fp32: a digit less.
        assert found.pop(name, 0) < (5e-5 if variant.kind == "evonorm_b0" else 1e-6), name
    for name, error in found.items():
        assert error < 2e-2, (name, error)


@pytest.mark.parametrize("mean", [0, 8, 1000])
def test_no_batch_norm_is_less_exact_than_torchs(mean):
    """Twice its error at most, for output, gradients and statistics."""
    torchs = copy.copy(next(v for v in VARIANTS if v.kind == "bn"))
    base = errors(Torchs(torchs), mean, 0.05)
    for variant in VARIANTS:
        if variant.kind in ("bn", "syncbn", "ghost", "brn", "ws_bn") and "ghosts" not in variant.options:
            for name, error in errors(variant, mean, 0.05).items():
                assert error <= 2 * base.get(name, 0) + 1e-6, (variant, name, error, base.get(name))


@every_variant
@pytest.mark.parametrize("autocast", [True, False])
def test_gradients_of_parameters_are_summed_in_fp32(variant, autocast):
    """Over 16,384 pixels, which bf16 would stop counting at 256."""
    norm = randomized(variant.build(), 5)
    x = torch.randn(16, 4, 32, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    dy = 1 + torch.rand(x.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    want, _, leaves = expected(variant, norm, x.double())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = norm(x.requires_grad_())
    assert y.dtype == torch.bfloat16
    if not leaves:
        return
    wanted = torch.autograd.grad(want, list(leaves.values()), dy.double())
    got = torch.autograd.grad(y, list(norm.parameters()), dy)
    for name, one, other in zip(leaves, got, wanted, strict=True):
        # none has weight and bias in the input's dtype, and so the sums' last rounding, too.
        assert_close(one, other, 2**-8 if variant.kind == "none" else 1e-3, name)


class Torchs:
    """torch's BatchNorm2d in the place of a variant."""

    def __init__(self, variant):
        self.variant = variant

    def build(self):
        return nn.BatchNorm2d(4)

    def __getattr__(self, name):
        return getattr(self.variant, name)


@every_variant
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_what_is_not_finite_shows(variant, training):
    """It raises nothing, and reaches the output of its image (and of whom it shares statistics with)."""
    for bad in (float("nan"), float("inf"), -float("inf")):
        check_not_finite(variant, bad, training)


def check_not_finite(variant, bad, training):
    norm = randomized(variant.build(), 7).train(training)
    x = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    x[4, 1, 0, 0] = bad
    clean = norm(x.nan_to_num(0, 0, 0)) if not training else None
    leaf = x.clone().requires_grad_()
    y = norm(leaf)
    y.sum().backward()
    # TLU and sigmoid send -inf (or inf, by the sign of gamma and v) to a finite limit: where it is a number.
    clamps = variant.kind in ("frn", "evonorm_s0", "evonorm_b0") and variant.options.get("act", True)
    if not clamps or bad != bad:
        assert not y[4, 1].isfinite().all()
    if clean is not None:
        others = [0, 1, 2, 3, 5]
        assert torch.equal(y[others], clean[others])  # and no one else's, in eval
        channels = {"gn": [2, 3], "ws_gn": [2, 3], "evonorm_s0": [2, 3], "ln": [], "ln2d": []}
        for c in channels.get(variant.kind, [0, 2, 3]):
            assert torch.equal(y[4, c], clean[4, c])


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.alone and v.kind != "vbn"], ids=str)
def test_in_training_a_bad_image_spoils_no_other_where_statistics_are_its_own(variant):
    norm = randomized(variant.build(), 7)
    x = torch.randn(6, 4, 3, 3)
    clean = norm(x)
    x[4] = float("nan")
    y = norm(x)
    assert torch.equal(y[[0, 1, 2, 3, 5]], clean[[0, 1, 2, 3, 5]])
    assert y[4].isnan().all()


def test_a_bad_reference_spoils_all_and_a_bad_image_only_itself():
    norm = randomized(next(v for v in VARIANTS if v.kind == "vbn").build(), 7)
    x = torch.randn(6, 4, 3, 3)
    clean = norm(x)
    x[5] = float("nan")
    assert torch.equal(norm(x)[:5], clean[:5])
    x[REFERENCES - 1] = float("nan")
    assert norm(x).isnan().all()


@every_variant
def test_constant_channels_give_finite_outputs_and_gradients(variant):
    """A dead ReLU before the norm, as in any network."""
    for value in (0.0, 3.0):
        norm = randomized(variant.build(), 7)
        x = torch.full((4, 4, 3, 3), value, requires_grad=True)
        norm(x).square().sum().backward()
        assert x.grad.isfinite().all()
        assert all(p.grad.isfinite().all() for p in norm.parameters())
        plain = x.detach().double().requires_grad_()
        want, _, _ = expected(variant, randomized(variant.build(), 7), plain)
        assert_close(randomized(variant.build(), 7)(x), want, 1e-3)
