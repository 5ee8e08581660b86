"""What happens to layers in practice: saved, copied, cast, compiled, autocast, in either memory format."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bnbench.norms import NORM_TYPES, NORMS, Norm, build_norm
from tests.norms.variants import (
    INPUTS,
    KINDS,
    REFERENCES,
    VARIANTS,
    assert_close,
    expected,
    laid_out,
    randomized,
)

pytestmark = pytest.mark.norms
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
every_kind = pytest.mark.parametrize("variant", KINDS, ids=str)
LAST = torch.channels_last


def some(shape=(4, 4, 3, 5), seed=0, mean=0.0, std=1.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * std + mean


def trained(variant, steps=4):
    """A layer that has seen a few batches."""
    norm = randomized(variant.build(), 1)
    for step in range(steps):
        norm(some(seed=step))
    return norm


def both_modes(norm, x):
    """Outputs in eval, and then in training."""
    training = norm.training
    outputs = norm.eval()(x), norm.train()(x)
    norm.train(training)
    return outputs


def same(norm, other, x):
    for got, want in zip(both_modes(norm, x), both_modes(other, x), strict=True):
        assert torch.equal(got, want)
    for name, value in norm.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_all_are_norms_by_type():
    for variant in VARIANTS:
        norm = variant.build()
        assert isinstance(norm, Norm) and isinstance(norm, NORM_TYPES), variant
        assert norm.num_features == 4 and norm.path == ""
        assert norm.includes_activation == (variant.kind in ("frn", "evonorm_s0", "evonorm_b0"))
        assert not norm.includes_activation or norm.act == variant.options.get("act", True)


@every_variant
def test_the_state_goes_through_a_file_into_a_fresh_layer(variant):
    norm, file = trained(variant), io.BytesIO()
    torch.save(norm.state_dict(), file)
    file.seek(0)
    fresh = variant.build()
    fresh.load_state_dict(torch.load(file, weights_only=True), strict=True)
    same(norm, fresh, some(seed=9))


@every_variant
def test_a_copy_is_its_own(variant):
    norm = trained(variant)
    norm.path = "stem.1"
    norm.register_forward_hook(lambda module, args, output: None)
    twin = copy.deepcopy(norm)
    assert twin.path == "stem.1" and twin.training == norm.training and repr(twin) == repr(norm)
    assert len(twin._forward_hooks) == 1
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    same(copy.deepcopy(norm), twin, some(seed=9))
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(1)
    twin(some(seed=10))
    for name, value in norm.state_dict().items():
        assert torch.equal(value, before[name]), name


@every_variant
def test_printing_says_the_options(variant):
    text = repr(variant.build())
    assert "4" in text
    for name, value in variant.options.items():
        shown = name in ("ghosts", "act", "r_max", "d_max", "warmup", "r_end", "d_end")
        assert not shown or f"{name}={value:g}" in text or f"{name}={value}" in text or value == 1


# Compilation


def check_compiled(variant, training, backend):
    torch._dynamo.reset()
    norm = randomized(variant.build(), 5).train(training)
    eager = copy.deepcopy(norm)
    compiled = torch.compile(norm, backend=backend, fullgraph=True)
    results = []
    for layer, function in ((eager, eager), (norm, compiled)):
        x = some().requires_grad_()
        y = function(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])))
    for want, got in zip(*results, strict=True):
        assert_close(got, want, 1e-5)
    for name, value in eager.state_dict().items():
        assert_close(norm.state_dict()[name], value, 1e-6, name)


@every_kind
def test_compiles_whole(variant):
    check_compiled(variant, True, "aot_eager")


@pytest.mark.slow
@every_variant
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_every_variant_compiles_whole(variant, training):
    check_compiled(variant, training, "aot_eager")


@pytest.mark.slow
@every_kind
def test_compiles_to_code(variant):
    check_compiled(variant, True, "inductor")


# Dtypes


@every_variant
def test_a_layer_cast_to_double_is_exact(variant):
    norm = randomized(variant.build(), 5).double()
    x = some().double()
    want, buffers, _ = expected(variant, norm, x)
    y = norm(x)
    assert y.dtype == torch.double
    assert_close(y, want, 1e-11)
    for name, value in norm.named_buffers():
        assert value.dtype in (torch.double, torch.long)
        assert_close(value, buffers[name], 1e-12, name)


@every_variant
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_layer_cast_to_bfloat16(variant, training):
    """Parameters and running statistics in bf16 too: right to its 8 bits, as are all gradients."""
    norm = randomized(variant.build(), 5).bfloat16().train(training)
    x = some().bfloat16().requires_grad_()
    plain = x.detach().double().requires_grad_()
    want, buffers, leaves = expected(variant, norm, plain)
    y = norm(x)
    assert y.dtype == torch.bfloat16
    assert_close(y, want, 0.02)
    dy = some(seed=3).bfloat16()
    got = torch.autograd.grad(y, [x, *norm.parameters()], dy)
    wanted = torch.autograd.grad(want, [plain, *leaves.values()], dy.double(), materialize_grads=True)
    for name, one, other in zip(["input", *leaves], got, wanted, strict=True):
        assert one.dtype == torch.bfloat16
        assert_close(one, other, 0.03, name)
    for name, value in norm.named_buffers():
        assert_close(value, buffers[name], 0.01, name)


@every_variant
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_autocast_keeps_statistics_in_fp32(variant, training):
    """Mean 8, deviation 0.05 in the channels: E[x^2] - mean^2 in bf16 would be all error."""
    norm = randomized(variant.build(), 5).train(training)
    if not training and "running_var" in norm.state_dict():
        norm.running_mean.fill_(8) if "running_mean" in norm.state_dict() else None
        norm.running_var.fill_(0.0025)
    x = some((8, 4, 6, 6), mean=8, std=0.05).bfloat16()
    plain = x.detach().double().requires_grad_()  # what bf16 holds of it: two bits of the deviation
    want, buffers, leaves = expected(variant, norm, plain)
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x)
    assert y.dtype == torch.bfloat16  # on CUDA torch's autocast makes it fp32 for group and layer norms
    # Half a unit in the last of bf16's 8 bits; none rounds its weight and bias, too.
    assert_close(y, want, 2**-6 if variant.kind == "none" else 2**-8)
    for name, value in norm.named_buffers():
        assert_close(value, buffers[name], 1e-5, name)
        assert value.dtype in (torch.float, torch.long)
    dy = some((8, 4, 6, 6), seed=3)
    got = torch.autograd.grad(y, [x, *norm.parameters()], dy.to(y.dtype))
    wanted = torch.autograd.grad(
        want, [plain, *leaves.values()], dy.to(y.dtype).double(), materialize_grads=True
    )
    for name, one, other in zip(["input", *leaves], got, wanted, strict=True):
        assert one.dtype == (torch.bfloat16 if name == "input" else torch.float)
        assert_close(one, other, 2**-6 if name == "input" else 2e-3, name)  # parameters: sums in fp32


# Memory formats


@every_variant
@settings(max_examples=6, deadline=None, derandomize=True)
@given(given_input=INPUTS, training=st.booleans())
def test_channels_last_in_and_out(variant, given_input, training):
    x, dy = given_input.tensors()
    norm = randomized(variant.build(given_input.channels), 5).double().train(training)
    state = copy.deepcopy(norm.state_dict())
    results = []
    for memory_format in (torch.contiguous_format, LAST):
        norm.load_state_dict(state)
        leaf = x.contiguous(memory_format=memory_format).detach().requires_grad_()
        y = norm(leaf)
        assert y.is_contiguous(memory_format=memory_format)
        results.append((y, *torch.autograd.grad(y, leaf, dy)))
    for got, want in zip(*results, strict=True):
        assert_close(got, want, 1e-11)


# Sizes


@every_variant
def test_no_images(variant):
    """A rank's share may be empty: an empty output, zero gradients, statistics as they were."""
    norm = trained(variant)
    n = REFERENCES if variant.kind == "vbn" else 0
    for training in (True, False):
        norm.train(training)
        before = {name: value.clone() for name, value in norm.named_buffers()}
        x = some((n, 4, 3, 3)).requires_grad_()
        y = norm(x)
        assert y.shape == x.shape
        y[REFERENCES:].sum().backward()
        assert all(p.grad is None or (p.grad == 0).all() for p in norm.parameters())
        for name, value in norm.named_buffers():
            assert name == "num_batches_tracked" or torch.equal(value, before[name]), (name, training)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.kind not in ("in", "vbn")], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_maps_of_one_pixel(variant, layout):
    """As behind a global pooling. Instance norm has no statistics there, vbn is tested apart."""
    norm = randomized(variant.build(), 5).double()
    x = laid_out(some((6, 4, 1, 1)).double(), layout).requires_grad_()
    plain = x.detach().clone().requires_grad_()
    want, buffers, _ = expected(variant, norm, plain)
    y = norm(x)
    assert_close(y, want, 1e-12)
    dy = some((6, 4, 1, 1), seed=2).double()
    (dx,), (right,) = torch.autograd.grad(y, x, dy), torch.autograd.grad(want, plain, dy)
    assert_close(dx, right, 1e-11)
    for name, value in norm.named_buffers():
        assert_close(value, buffers[name], 1e-12, name)


@pytest.mark.parametrize("kind", sorted(set(NORMS) - {"vbn", "ghost"}))
def test_one_channel(kind):
    options = {"num_groups": 1} if kind in ("gn", "ws_gn", "evonorm_s0") else {}
    norm = build_norm(kind, 1, **options)
    if kind == "ln2d":
        with pytest.raises(ValueError, match="one value per channel of a pixel"):
            norm(some((4, 1, 3, 3)))
    else:
        for x in (some((4, 1, 3, 3)), some((4, 1, 3, 3)).contiguous(memory_format=LAST)):
            assert norm(x).isfinite().all()


def test_blocks_of_images_are_one_batch(monkeypatch):
    """Large batches go by blocks: however many images each has, and with a last one that is smaller."""
    from bnbench.norms import blocks

    for variant in VARIANTS:
        if variant.kind not in ("frn", "evonorm_s0", "evonorm_b0"):
            continue
        results = []
        for images in (100, 1, 3):
            monkeypatch.setattr(blocks, "BLOCK", images * 4 * 15 / torch.get_num_threads())
            monkeypatch.setattr(blocks, "BLOCK", int(blocks.BLOCK) + 1)
            norm = randomized(variant.build(), 5).double()
            x = some((8, 4, 3, 5)).double().requires_grad_()
            y = norm(x)
            leaves = [x, *norm.parameters()]
            results.append((y, *torch.autograd.grad(y.square().sum(), leaves), *norm.buffers()))
        for other in results[1:]:
            for got, want in zip(other, results[0], strict=True):
                assert_close(got, want, 1e-12, variant)
