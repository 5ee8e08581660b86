"""Each kind is its formula: output, every gradient and every buffer, over shapes, layouts, dtypes and momenta."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from bnbench.norms import NORMS, build_norm
from tests.norms.variants import (
    INPUTS,
    REFERENCES,
    VARIANTS,
    assert_close,
    expected,
    randomized,
)

pytestmark = pytest.mark.norms
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
few = settings(max_examples=20, deadline=None, derandomize=True)


def test_every_kind_has_its_formula_here():
    assert {variant.kind for variant in VARIANTS} == set(NORMS)


def check_law(variant, given_input, training, dtype, tolerance, **options):
    norm = randomized(variant.build(given_input.channels, **options), given_input.seed).to(dtype)
    norm.train(training)
    x, dy = given_input.tensors(dtype)
    plain = x.detach().double().contiguous().requires_grad_()
    want, buffers, leaves = expected(variant, norm, plain, **options)
    x.requires_grad_()
    y = norm(x)
    assert y.dtype == dtype
    assert_close(y, want, tolerance, "output")
    parameters = dict(norm.named_parameters())
    got = torch.autograd.grad(y, [x, *parameters.values()], dy)
    wanted = torch.autograd.grad(want, [plain, *leaves.values()], dy.double(), materialize_grads=True)
    for name, one, other in zip(["input", *parameters], got, wanted, strict=True):
        assert_close(one, other, tolerance, f"gradient of {name}")
    for name, buffer in norm.named_buffers():
        assert_close(buffer, buffers[name], tolerance, name)


def with_options(data, variant, epsilons=(1e-5, 1e-3, 0.1)):
    """eps and momentum, where the kind has them."""
    if variant.kind == "none":
        return {}
    options = {"eps": data.draw(st.sampled_from(epsilons))}
    norm = variant.build()
    if hasattr(norm, "momentum") and "running_var" in norm.state_dict():
        options["momentum"] = data.draw(st.floats(0, 1))
    return options


@every_variant
@few
@given(data=st.data(), given_input=INPUTS)
def test_training(variant, data, given_input):
    check_law(variant, given_input, True, torch.double, 1e-11, **with_options(data, variant))


@every_variant
@settings(few, max_examples=8)
@given(data=st.data(), given_input=INPUTS)
def test_eval(variant, data, given_input):
    check_law(variant, given_input, False, torch.double, 1e-11, **with_options(data, variant))


@every_variant
@settings(few, max_examples=8)
@given(data=st.data(), given_input=INPUTS, training=st.booleans())
def test_single_precision(variant, data, given_input, training):
    # Not the smallest eps: two channels that happen to be equal would ask for more digits than there are.
    options = with_options(data, variant, (0.01, 0.1))
    check_law(variant, given_input, training, torch.float, 1e-4, **options)


# What an image's output depends on


def output_alone(norm, x, i):
    """Image i without the others; with the reference, where there is one."""
    if hasattr(norm, "num_reference"):
        return norm(torch.cat([x[:REFERENCES], x[i : i + 1]]))[-1:]
    return norm(x[i : i + 1])


@every_variant
@settings(few, max_examples=4)
@given(given_input=INPUTS)
def test_in_eval_an_image_ignores_its_batch_mates(variant, given_input):
    norm = randomized(variant.build(given_input.channels)).double().eval()
    x, _ = given_input.tensors()
    y = norm(x)
    for i in range(REFERENCES if variant.kind == "vbn" else 0, len(x)):
        assert_close(output_alone(norm, x, i), y[i : i + 1], 1e-13)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.alone], ids=str)
@settings(few, max_examples=4)
@given(given_input=INPUTS)
def test_in_training_too_where_statistics_are_the_images_own(variant, given_input):
    norm = randomized(variant.build(given_input.channels)).double()
    x, _ = given_input.tensors()
    y = norm(x)
    for i in range(REFERENCES if variant.kind == "vbn" else 0, len(x)):
        assert_close(output_alone(norm, x, i), y[i : i + 1], 1e-13)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if not v.alone], ids=str)
def test_in_training_statistics_of_the_batch_bind_its_images(variant):
    """So that the two tests above test something."""
    norm = randomized(variant.build(), 20).double()
    x = torch.randn(4, 4, 3, 3, dtype=torch.double)
    other = torch.cat([x[:3], 5 * x[3:]])
    ghosts = getattr(norm, "ghosts", 1)
    y, y_other = norm(x), norm(other)
    assert not torch.allclose(y[3 - ghosts], y_other[3 - ghosts])  # the last of image 3's group, before it


def test_modes_agree_where_there_are_no_running_statistics():
    x = torch.randn(4, 4, 3, 3, dtype=torch.double)
    for variant in VARIANTS:
        norm = randomized(variant.build()).double()
        if variant.alone:
            y = norm(x)
            assert torch.equal(y, norm.eval()(x)), variant


# One kind as another


@few
@given(given_input=INPUTS)
def test_group_norm_of_one_group_is_layer_norm_and_of_c_groups_instance_norm(given_input):
    x, dy = given_input.tensors()
    c = x.shape[1]
    pairs = [
        (build_norm("gn", c, num_groups=1), build_norm("ln", c)),
        (build_norm("gn", c, num_groups=c), build_norm("in", c)),
        (build_norm("ws_gn", c, num_groups=1), build_norm("ln", c)),
    ]
    for one, other in pairs:
        check_same(randomized(one).double(), randomized(other).double(), x, dy)
    whole = F.layer_norm(x, x.shape[1:])
    assert_close(build_norm("ln", c).double()(x), whole, 1e-12)


@few
@given(given_input=INPUTS)
def test_batch_norm_of_one_image_is_instance_norm(given_input):
    x, dy = given_input.tensors()
    c = x.shape[1]
    check_same(
        randomized(build_norm("bn", c)).double(), randomized(build_norm("in", c)).double(), x[:1], dy[:1]
    )
    as_many_ghosts = randomized(build_norm("ghost", c, ghosts=len(x))).double()
    check_same(as_many_ghosts, randomized(build_norm("in", c)).double(), x, dy)


@few
@given(given_input=INPUTS)
def test_layer_norm_2d_is_convnexts(given_input):
    x, _ = given_input.tensors()
    norm = randomized(build_norm("ln2d", x.shape[1], eps=1e-6)).double()
    u = x.mean(1, keepdim=True)  # as facebookresearch/ConvNeXt has it
    s = (x - u).pow(2).mean(1, keepdim=True)
    want = norm.weight[:, None, None] * ((x - u) / torch.sqrt(s + 1e-6)) + norm.bias[:, None, None]
    assert_close(norm(x), want, 1e-12)


@few
@given(given_input=INPUTS, ghosts=st.sampled_from([1, 2, 3, 4, 5]), momentum=st.floats(0, 1))
def test_ghosts_are_a_loop_over_strided_chunks(given_input, ghosts, momentum):
    images = replace(given_input, images=given_input.images // 2 * ghosts)
    x, dy = images.tensors()
    c = x.shape[1]
    for policy in ("mean", "rank0", "sequential"):
        norm = randomized(
            build_norm("ghost", c, ghosts=ghosts, momentum=momentum, statistics=policy)
        ).double()
        chunk = [randomized(nn.BatchNorm2d(c, momentum=momentum)).double() for _ in range(ghosts)]
        if policy == "sequential":
            chunk = chunk[:1] * ghosts  # Hoffer's: one layer, one group after the other
        leaf, leaves = x.detach().requires_grad_(), x.detach().requires_grad_()
        y = norm(leaf)
        want = torch.empty_like(y)
        for g in range(ghosts):
            want[g::ghosts] = chunk[g](leaves[g::ghosts])
        assert_close(y, want, 1e-11)
        (dx,) = torch.autograd.grad(y, leaf, dy)
        (dx_want,) = torch.autograd.grad(want, leaves, dy)
        assert_close(dx, dx_want, 1e-11)
        for name in ("running_mean", "running_var"):
            by_group = [getattr(bn, name) for bn in chunk]
            kept = torch.stack(by_group).mean(0) if policy == "mean" else by_group[0]
            assert_close(getattr(norm, name), kept, 1e-12, (policy, name))


def test_sequential_updates_have_the_momentum_stated():
    """1 - (1 - m)^ghosts, where all groups hold the same."""
    x = torch.randn(1, 3, 4, 4, dtype=torch.double).expand(4, -1, -1, -1)
    norm = build_norm("ghost", 3, ghosts=4, momentum=0.1, statistics="sequential").double()
    norm(x)
    m = 1 - 0.9**4
    assert_close(norm.running_var, (1 - m) + m * x[0].var((1, 2)), 1e-14)


@pytest.mark.parametrize("kind", ["bn", "ghost", "brn", "evonorm_b0"])
def test_means_of_groups_may_be_taken_at_once_or_at_the_end(kind):
    """Linear: k ghosts with one running statistic are k layers averaged after several steps."""
    options = {"brn": {"warmup": 10**6, "r_end": 10**6, "d_end": 10**6}}.get(kind, {})
    one = build_norm(kind, 3, ghosts=2, momentum=0.3, **options).double()
    two = [build_norm(kind, 3, momentum=0.3, **{**options, "ghosts": 1}).double() for _ in range(2)]
    for _ in range(4):
        x = torch.randn(6, 3, 2, 2, dtype=torch.double)
        one(x)
        for g, norm in enumerate(two):
            norm(x[g::2])
    for name, buffer in one.named_buffers():
        if "running" in name:
            assert_close(buffer, torch.stack([norm.get_buffer(name) for norm in two]).mean(0), 1e-13, name)


def test_brn_inside_its_warmup_evonorm_b0_without_activation_and_bn_share_their_statistics():
    x = torch.randn(4, 3, 4, 4, dtype=torch.double)
    bn, brn = build_norm("bn", 3).double(), build_norm("brn", 3, momentum=0.1).double()
    b0 = build_norm("evonorm_b0", 3).double()
    for norm in (bn, brn, b0):
        norm(x)
    assert_close(brn.running_mean, bn.running_mean, 1e-15)
    for norm in (brn, b0):
        assert_close(norm.running_var, bn.running_var, 1e-15)


def check_same(one, other, x, dy):
    """Two layers with the same parameters: outputs and gradients."""
    results = []
    for norm in (one, other):
        leaf = x.detach().requires_grad_()
        y = norm(leaf)
        results.append((y, *torch.autograd.grad(y, [leaf, norm.weight, norm.bias], dy)))
    for got, want in zip(*results, strict=True):
        assert_close(got, want, 1e-11)
