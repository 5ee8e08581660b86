"""Gradients: gradcheck of each kind, whatever gradient comes back, and what is kept for the backward pass."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from bnbench.norms import NORMS, WSConv2d, build_norm
from tests.norms.variants import KINDS, VARIANTS, assert_close, laid_out, randomized

pytestmark = pytest.mark.norms
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)


def checked(norm: nn.Module, x: torch.Tensor) -> bool:
    """gradcheck by the input and every parameter, with the buffers put back between calls."""
    names, parameters = zip(*norm.named_parameters(), strict=True) if list(norm.parameters()) else ((), ())
    buffers = {name: b.clone() for name, b in norm.named_buffers()}

    def call(x, *parameters):
        fresh = {name: b.clone() for name, b in buffers.items()}
        return torch.func.functional_call(norm, dict(zip(names, parameters, strict=True)) | fresh, x)

    leaves = [p.detach().clone().requires_grad_() for p in parameters]
    return torch.autograd.gradcheck(call, (x, *leaves))


@every_variant
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_gradcheck(variant, training):
    # brn at the first step: later r and d follow the input, and are constants to the gradient by definition.
    norm = randomized(variant.build(), 0 if variant.kind == "brn" else 7).double().train(training)
    x = torch.randn(4, 4, 2, 2, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    assert checked(norm, x.requires_grad_())


@pytest.mark.slow
@every_variant
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    training=st.booleans(),
    images=st.sampled_from([2, 4]),
    side=st.sampled_from([(1, 2), (2, 3), (3, 1)]),
    seed=st.integers(0, 1000),
    layout=st.sampled_from(["contiguous", "channels_last", "transposed"]),
)
def test_gradcheck_over_shapes(variant, training, images, side, seed, layout):
    norm = randomized(variant.build(eps=0.01) if variant.kind != "none" else variant.build(), seed)
    if variant.kind == "brn":
        norm.num_batches_tracked.zero_()
    x = torch.randn(images, 4, *side, dtype=torch.double, generator=torch.Generator().manual_seed(seed))
    assert checked(norm.double().train(training), laid_out(x, layout).detach().requires_grad_())


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_gradcheck_of_weight_standardization(groups):
    conv = WSConv2d(4, 4, 2, groups=groups).double()
    x = torch.randn(2, 4, 3, 3, dtype=torch.double, requires_grad=True)
    assert checked(conv, x)


def test_gradcheck_of_filter_response_on_maps_of_one_pixel():
    norm = randomized(build_norm("frn", 3, learn_eps=True), 3).double()
    assert checked(norm, torch.randn(3, 3, 1, 1, dtype=torch.double, requires_grad=True))


@every_variant
def test_second_derivatives_are_right_or_refused(variant):
    """Never silently zero or wrong."""
    norm = randomized(variant.build(), 7).double()
    x = torch.randn(4, 4, 2, 2, dtype=torch.double, requires_grad=True)
    if variant.double:
        norm.eval() if any(True for _ in norm.buffers()) else norm.train()
        assert torch.autograd.gradgradcheck(norm, (x,))
    else:
        (dx,) = torch.autograd.grad(norm(x).square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            dx.sum().backward()


@every_variant
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_any_layout_of_the_gradient_gives_the_same(variant, training):
    """One image too, whose layout is ambiguous, and an expanded gradient, as of a sum."""
    per_group = 1 if variant.alone or not training else getattr(variant.build(), "ghosts", 1)
    images = 3 if variant.kind == "vbn" else per_group
    for n in (images, 4):
        norm = randomized(variant.build(), 7).double().train(training)
        x = torch.randn(n, 4, 3, 2, dtype=torch.double)
        dy = torch.randn(n, 4, 3, 2, dtype=torch.double)
        state = {name: value.clone() for name, value in norm.state_dict().items()}

        def gradient(x, dy, norm=norm, state=state):
            norm.load_state_dict(state)
            leaf = x.detach().requires_grad_()
            return torch.autograd.grad(norm(leaf), [leaf, *norm.parameters()], dy)

        layouts = ("contiguous", "channels_last", "decoded", "window", "transposed")
        for upstream in (dy, dy[:, :, :1, :1].expand_as(dy)):
            want = gradient(x, upstream.contiguous())
            for of_x in layouts:
                for of_dy in (*layouts, None):
                    given_dy = upstream if of_dy is None else laid_out(upstream, of_dy)
                    for got, right in zip(gradient(laid_out(x, of_x), given_dy), want, strict=True):
                        assert_close(got, right, 1e-12, (n, of_x, of_dy))


@every_variant
def test_inputs_and_parameters_without_gradients(variant):
    norm = randomized(variant.build(), 7).double()
    x = torch.randn(4, 4, 2, 2, dtype=torch.double)
    with torch.no_grad():
        y = norm(x)
    assert not y.requires_grad
    parameters = list(norm.parameters())
    if parameters:  # the first layer of a network: an image needs no gradient
        norm(x).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters)
    norm.requires_grad_(False)  # fine-tuning: frozen parameters, a gradient for what is below
    leaf = x.clone().requires_grad_()
    norm(leaf).square().sum().backward()
    assert leaf.grad.abs().sum() > 0


@every_variant
def test_the_input_is_left_as_it_was(variant):
    norm = randomized(variant.build(), 7)
    x = torch.randn(4, 4, 3, 3)
    kept, leaf = x.clone(), x.detach().requires_grad_()
    y = norm(leaf)
    dy = torch.randn_like(y)
    dy_kept = dy.clone()
    y.backward(dy)
    assert torch.equal(leaf.detach(), kept)
    assert torch.equal(dy, dy_kept)


def test_the_tlu_gives_its_gradient_to_tau_where_they_are_equal():
    norm = build_norm("frn", 1)
    x = torch.zeros(1, 1, 2, 2, requires_grad=True)
    norm(x).sum().backward()
    assert norm.tau.grad == 4
    assert norm.bias.grad == 0


@pytest.mark.parametrize(
    ("kind", "options"),
    [(v.kind, v.options) for v in VARIANTS if v.kind in ("frn", "evonorm_s0", "evonorm_b0")],
    ids=str,
)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_input_alone_is_kept_for_the_backward_pass(kind, options, layout):
    """Written out for autograd, frn keeps 4 tensors of the input's size, and evonorm_s0 8."""
    kept: dict[int, int] = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = laid_out(torch.randn(8, 16, 16, 16), layout).requires_grad_()
    norm = build_norm(kind, 16, **options)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = norm(x)
    size = x.numel() * x.element_size()
    assert size <= sum(kept.values()) <= 1.1 * size  # and statistics and parameters
    if layout == "contiguous":
        assert x.untyped_storage().data_ptr() in kept  # no copy of it
    y.sum().backward()


@pytest.mark.parametrize("kind", sorted(set(NORMS) - {"vbn", "none"}))
def test_no_kind_keeps_more_than_its_input(kind):
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.randn(8, 16, 16, 16, requires_grad=True)
    norm = build_norm(kind, 16, **next(v.options for v in KINDS if v.kind == kind))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        norm(x)
    # LayerNorm2d keeps a permuted copy, and two numbers for each pixel's 16 channels.
    assert sum(kept.values()) <= 1.15 * x.numel() * x.element_size()


def test_relu_behind_bn_keeps_what_an_activation_inside_saves():
    """BN and ReLU: two tensors of the input's size, against frn's one."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.randn(8, 16, 16, 16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        F.relu(build_norm("bn", 16)(x))
    assert sum(kept.values()) >= 2 * x.numel() * x.element_size()
