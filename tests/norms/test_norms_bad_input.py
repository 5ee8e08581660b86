"""A user's mistakes: each a ValueError that says what, which rule, the way out, and where in the model."""

from __future__ import annotations

import pytest
import torch

from bnbench.norms import NORMS, build_norm
from tests.norms.variants import KINDS, REFERENCES, VARIANTS

pytestmark = pytest.mark.norms
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
every_kind = pytest.mark.parametrize("variant", KINDS, ids=str)
PATH = "features.denseblock1.denselayer2.norm1"


@every_variant
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_the_input_must_be_images_of_its_channels(variant, training):
    norm = variant.build().train(training)
    norm.path = PATH
    message = rf"{type(norm).__name__} at {PATH}: input .* is not \(N, 4, H, W\)"
    for shape in ((4, 3, 2, 2), (4, 8, 2, 2), (2, 2, 2, 1), (4, 4, 2), (4, 4), (4, 4, 2, 2, 2), (4,), ()):
        with pytest.raises(ValueError, match=message):
            norm(torch.ones(shape))


def test_without_a_path_it_names_the_layer():
    with pytest.raises(ValueError, match=r"^BatchNorm2d: input \(1, 3, 2, 2\) is not \(N, 4, H, W\)"):
        build_norm("bn", 4)(torch.ones(1, 3, 2, 2))


ONE_VALUE = {
    "bn": ({}, (1, 4, 1, 1)), "syncbn": ({}, (1, 4, 1, 1)), "ghost": ({"ghosts": 3}, (3, 4, 1, 1)),
    "brn": ({}, (1, 4, 1, 1)), "ws_bn": ({}, (1, 4, 1, 1)), "evonorm_b0": ({}, (1, 4, 1, 1)),
    "frozen": ({"after": 0.5}, (1, 4, 1, 1)), "vbn": ({}, (3, 4, 1, 1)),
    "in": ({}, (5, 4, 1, 1)), "gn": ({"num_groups": 4}, (5, 4, 1, 1)), "ws_gn": ({"num_groups": 4}, (5, 4, 1, 1)),
    "evonorm_s0": ({"num_groups": 4}, (5, 4, 1, 1)), "ln": ({}, (5, 1, 1, 1)), "ln2d": ({}, (5, 1, 3, 3)),
}  # fmt: skip


@pytest.mark.parametrize("kind", ONE_VALUE)
def test_one_value_has_no_variance(kind):
    """Where torch would normalize to zero in silence, too."""
    options, shape = ONE_VALUE[kind]
    norm = build_norm(kind, shape[1], **options)
    if kind == "vbn":
        norm.num_reference = 1
    norm.path = PATH
    with pytest.raises(
        ValueError, match=rf"at {PATH}: one value per channel .* has no variance: use more images"
    ):
        norm(torch.ones(shape))
    if "running_mean" in norm.state_dict() or kind == "evonorm_b0":
        assert norm.num_batches_tracked == 0 and (norm.running_var == 1).all()  # nothing was tracked
        assert norm.eval()(torch.ones(shape)).isfinite().all()  # and in eval mode it is no mistake


def test_every_kind_with_statistics_is_among_them():
    assert set(NORMS) - set(ONE_VALUE) == {"frn", "none"}


@pytest.mark.parametrize(
    ("kind", "options"),
    [("bn", {"ghosts": 4}), ("ghost", {"ghosts": 4}), ("brn", {"ghosts": 4}), ("evonorm_b0", {"ghosts": 4}),
     ("ws_bn", {"ghosts": 4}), ("frozen", {"after": 0.5, "ghosts": 4})],
    ids=str,
)  # fmt: skip
def test_batches_split_evenly_into_ghosts(kind, options):
    norm = build_norm(kind, 2, **options)
    norm.path = PATH
    for images in (6, 3, 1):
        with pytest.raises(
            ValueError, match=rf"at {PATH}: a batch of {images} does not split into 4 even groups"
        ):
            norm(torch.randn(images, 2, 2, 2))
        assert norm.eval()(torch.randn(images, 2, 2, 2)).shape[0] == images
        norm.train()


@pytest.mark.parametrize("kind", ["gn", "ws_gn", "evonorm_s0"])
@pytest.mark.parametrize("num_groups", [5, 24, 0, -1])
def test_groups_divide_the_channels(kind, num_groups):
    with pytest.raises(
        ValueError, match=rf"num_groups={num_groups} does not divide num_features=12; choose one of 1, 2"
    ):
        build_norm(kind, 12, num_groups=num_groups)


@every_kind
def test_options_that_a_kind_does_not_have(variant):
    with pytest.raises(ValueError, match=rf"unknown option 'epsilon' of norm '{variant.kind}'; known: "):
        build_norm(variant.kind, 4, epsilon=1e-3)


@pytest.mark.parametrize("kind", ["bnn", "", "BN", "batch norm"])
def test_kinds_that_are_none(kind):
    with pytest.raises(ValueError, match=rf"unknown norm {kind!r}; known: bn, syncbn, ghost"):
        build_norm(kind, 4)


@pytest.mark.parametrize(
    "kind", ["no_such_package.Norm", "torch.nn.NoSuchNorm", "torch.nn.", ".Norm", "..Norm"]
)
def test_dotted_paths_that_lead_nowhere(kind):
    with pytest.raises(ValueError, match="cannot be imported"):
        build_norm(kind, 4)
    with pytest.raises(ValueError, match="not callable"):
        build_norm("torch.pi", 4)


def test_a_dotted_path_to_a_users_own():
    assert isinstance(build_norm("torch.nn.BatchNorm2d", 4, eps=0.1), torch.nn.BatchNorm2d)


@pytest.mark.parametrize("kind", ["ghost", "bn", "frozen", "ws_bn", "evonorm_b0"])
def test_policies_that_are_none(kind):
    options = {"frozen": {"after": 0.5}}.get(kind, {})
    with pytest.raises(ValueError, match="statistics='median' is unknown; known: mean, rank0, sequential"):
        build_norm(kind, 4, ghosts=2, statistics="median", **options)


@pytest.mark.parametrize("kind", ["bn", "ghost", "brn", "evonorm_b0", "ws_bn", "frozen"])
@pytest.mark.parametrize("ghosts", [0, -2])
def test_ghosts_are_at_least_one(kind, ghosts):
    options = {"frozen": {"after": 0.5}}.get(kind, {})
    with pytest.raises(ValueError, match=f"ghosts={ghosts} must be at least 1"):
        build_norm(kind, 4, ghosts=ghosts, **options)


@pytest.mark.parametrize("kind", ["bn", "brn", "evonorm_b0", "ws_bn", "frozen"])
def test_ghosts_and_a_group_of_ranks_exclude_each_other(kind):
    options = {"frozen": {"after": 0.5}}.get(kind, {})
    with pytest.raises(ValueError, match="exclude each other"):
        build_norm(kind, 4, ghosts=2, process_group=object(), **options)


def test_an_initialization_that_is_none():
    with pytest.raises(ValueError, match="init='he' is unknown; known: none, zero_gamma, fixup"):
        build_norm("none", 4, init="he")


@every_kind
def test_options_go_by_name_only(variant):
    """A position would mean eps in one kind and groups in another."""
    with pytest.raises(TypeError):
        NORMS[variant.kind](4, 2)


@every_kind
def test_options_of_a_variant_do_not_leak_into_the_next(variant):
    assert variant.build() is not variant.build()
    assert variant.build(2).num_features == 2


def test_fewer_images_than_the_reference():
    norm = next(v for v in VARIANTS if v.kind == "vbn").build()
    with pytest.raises(ValueError, match="no reference batch"):
        norm(torch.randn(REFERENCES - 1, 4, 2, 2))
