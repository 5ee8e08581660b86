"""Virtual BN: each image with one reference batch; the wrapper that brings it and takes it off again."""

from __future__ import annotations

import copy
from collections import namedtuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from bnbench.norms import VirtualBatchNet, VirtualBatchNorm2d, build_norm, swap_norms
from tests.norms.variants import LAYOUTS, assert_close, laid_out, randomized

pytestmark = pytest.mark.norms
few = settings(max_examples=15, deadline=None, derandomize=True)
Two = namedtuple("Two", "logits aux")


@few
@given(
    references=st.integers(1, 5),
    images=st.integers(0, 4),
    channels=st.integers(1, 4),
    side=st.sampled_from([(2, 2), (3, 1), (4, 3)]),
    layout=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 1000),
)
def test_each_image_is_normalized_as_by_bn_of_the_reference_and_itself(
    references, images, channels, side, layout, seed
):
    generator = torch.Generator().manual_seed(seed)
    shape = (references + images, channels, *side)
    x = torch.randn(shape, dtype=torch.double, generator=generator) * 3 + 2
    dy = torch.randn(shape, dtype=torch.double, generator=generator)
    norm = randomized(build_norm("vbn", channels), seed).double()
    norm.num_reference = references
    leaf, plain = laid_out(x, layout).detach().requires_grad_(), x.clone().requires_grad_()
    y = norm(leaf)

    def bn(batch):
        return F.batch_norm(batch, None, None, norm.weight, norm.bias, training=True)

    reference = plain[:references]
    each = [bn(torch.cat([reference, image[None]]))[-1:] for image in plain[references:]]
    want = torch.cat([bn(reference), *each])
    assert_close(y, want, 1e-12)
    inputs = [norm.weight, norm.bias]
    for got, right in zip(
        torch.autograd.grad(y, [leaf, *inputs], dy),
        torch.autograd.grad(want, [plain, *inputs], dy),
        strict=True,
    ):
        assert_close(got, right, 1e-11)


def network(channels=4):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, channels, 3), build_norm("vbn", channels), nn.ReLU(),
        nn.Conv2d(channels, 5, 3), build_norm("vbn", 5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(5, 2),
    ).double()  # fmt: skip


def wrapped(references=3):
    generator = torch.Generator().manual_seed(1)
    return VirtualBatchNet(
        network(), torch.randn(references, 3, 7, 7, dtype=torch.double, generator=generator)
    )


def test_the_wrapper_gives_the_batchs_outputs_in_both_modes():
    net = wrapped()
    x = torch.randn(4, 3, 7, 7, dtype=torch.double)
    y = net(x)
    assert y.shape == (4, 2)
    assert torch.equal(net.eval()(x), y)
    for i in range(4):  # in either mode an image's output is its own
        assert_close(net(x[i : i + 1]), y[i : i + 1], 1e-13)
        assert_close(net.train()(x[i : i + 1]), y[i : i + 1], 1e-13)
    assert net(x[:0]).shape == (0, 2)


def test_gradients_flow_through_the_reference_batch():
    net = wrapped()
    net.reference = net.reference.clone().requires_grad_()
    net(torch.randn(2, 3, 7, 7, dtype=torch.double)).square().sum().backward()
    assert net.reference.grad.abs().sum() > 0
    assert all(p.grad is not None for p in net.parameters())


def test_the_reference_changes_the_outputs_and_travels_in_the_state():
    net, other = wrapped(), wrapped()
    x = torch.randn(2, 3, 7, 7, dtype=torch.double)
    with torch.no_grad():
        other.reference.mul_(2)
        for p in other.parameters():
            p.mul_(1.5)
    assert not torch.allclose(net(x), other(x))
    net.load_state_dict(other.state_dict())
    assert torch.equal(net(x), other(x))
    twin = copy.deepcopy(net)
    assert torch.equal(twin(x), net(x))
    assert twin.reference is not net.reference
    assert wrapped().float()(x.float()).dtype == torch.float
    assert "reference" in net.state_dict()


@pytest.mark.parametrize(
    ("build", "kind"),
    [
        (lambda y: Two(y, 2 * y), Two),
        (lambda y: (y, 2 * y), tuple),
        (lambda y: [y, 2 * y], list),
        (lambda y: Two(y, None), Two),
        (lambda y: (y, (2 * y, [3 * y])), tuple),
    ],
)
def test_tuples_named_tuples_and_lists_are_stripped_inside(build, kind):
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = build_norm("vbn", 3)

        def forward(self, x):
            return build(self.norm(x))

    x = torch.randn(4, 3, 2, 2)
    net = VirtualBatchNet(Auxiliary(), torch.randn(5, 3, 2, 2))
    output = net(x)
    assert type(output) is kind

    def leaves(part):
        return [part] if not isinstance(part, (tuple, list)) else [leaf for p in part for leaf in leaves(p)]

    tensors = [leaf for leaf in leaves(output) if leaf is not None]
    assert all(len(leaf) == 4 for leaf in tensors)
    assert torch.equal(tensors[-1], len(leaves(output)) * tensors[0]) or None in leaves(output)


def test_dictionaries_of_outputs_are_stripped_too():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = build_norm("vbn", 3)

        def forward(self, x):
            y = self.norm(x)
            return {"out": y, "aux": 2 * y}

    output = VirtualBatchNet(Named(), torch.randn(5, 3, 2, 2))(torch.randn(4, 3, 2, 2))
    assert {key: len(value) for key, value in output.items()} == {"out": 4, "aux": 4}


def test_without_a_reference_it_says_what_to_do_and_where():
    norm = build_norm("vbn", 3)
    norm.path = "layer1.0.bn1"
    with pytest.raises(ValueError, match=r"layer1\.0\.bn1.*VirtualBatchNet\(model, reference_images\)"):
        norm(torch.randn(4, 3, 2, 2))
    norm.num_reference = 5
    with pytest.raises(ValueError, match="no reference batch"):  # fewer images than references
        norm(torch.randn(4, 3, 2, 2))


@pytest.mark.parametrize("reference", [torch.randn(3, 4, 4), torch.randn(0, 3, 4, 4)], ids=["3-d", "empty"])
def test_references_that_are_no_batch(reference):
    with pytest.raises(ValueError, match="is not"):
        VirtualBatchNet(network(), reference)


def test_one_value_in_the_reference_batch_is_an_error():
    norm = build_norm("vbn", 3)
    norm.num_reference = 1
    with pytest.raises(ValueError, match="in the reference batch"):
        norm(torch.randn(4, 3, 1, 1))
    norm.num_reference = 2
    assert norm(torch.randn(4, 3, 1, 1)).isfinite().all()


@pytest.mark.parametrize("mean", [8, 1000])
def test_the_mixed_variance_does_not_cancel(mean):
    """The paper's E[x^2] - mean^2 in fp32 would be off by 1e-2 at mean 8, by all of it at 1000."""
    x = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.05 + mean
    norm = build_norm("vbn", 3)
    norm.num_reference = 2
    y = norm(x)
    want = norm.double()(x.double())
    # What is left is the rounding of scale * x + shift, as in torch's BN on CPU.
    assert (y - want).abs().max() < 1e-6 * mean / 0.05 + 1e-5


def test_a_wrapper_without_virtual_norms_inside_is_refused():
    with pytest.raises(
        ValueError, match=r'Sequential holds no VirtualBatchNorm2d .* swap_norms\(model, "vbn"\) first'
    ):
        VirtualBatchNet(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), torch.randn(2, 3, 4, 4))
    net = wrapped(references=2)
    with pytest.raises(ValueError, match="would take the reference images for a part of the batch"):
        swap_norms(net, "bn")
    swap_norms(net, "vbn", eps=1e-3)
    assert net(torch.randn(4, 3, 7, 7, dtype=torch.double)).isfinite().all()


def test_layers_inside_remember_how_many_images_are_the_reference():
    net = wrapped(references=2)
    numbers = [m.num_reference for m in net.modules() if isinstance(m, VirtualBatchNorm2d)]
    assert numbers == [2, 2]
