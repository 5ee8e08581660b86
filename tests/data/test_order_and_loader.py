"""One order for every world: the same images, augmented alike, at the same places of each global step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as tv

from bnbench.data import ImageSet, Normalizer, TestLoader, TrainLoader
from bnbench.data.augment import PADDING, Augment
from bnbench.data.order import epoch_steps, generator
from bnbench.span import DEVICE, Span, span_of

IMAGES, GLOBAL_BATCH, SIDE = 42, 8, 8


def _set(images: int = IMAGES) -> ImageSet:
    """Random images whose label is their number."""
    pixels = torch.randint(256, (images, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    return ImageSet(pixels.to(torch.uint8), torch.arange(images), num_classes=images)


DATA = _set()
PLAIN = Normalizer((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), torch.device("cpu"), torch.float64)


def _loader(rank=0, world=1, span=DEVICE, seed=5, augment="crop_flip", data=DATA) -> TrainLoader:
    place = {"span": span, "rank": rank, "world_size": world}
    return TrainLoader(data, PLAIN, augment, global_batch=GLOBAL_BATCH, seed=seed, **place)


def _epoch(loader: TrainLoader, epoch: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    loader.set_epoch(epoch)
    return list(loader)


def _labels(loader: TrainLoader, epoch: int = 0) -> list[int]:
    return torch.cat([labels for _, labels in _epoch(loader, epoch)]).tolist()


SPANS = [
    (world, nbs, span_of(nbs, GLOBAL_BATCH // world, world))
    for world in (1, 2, 4)
    for nbs in (1, 2, 4, 8)
    if (world, nbs) != (1, 8)
]


@pytest.mark.parametrize(("world", "nbs", "span"), SPANS, ids=lambda value: getattr(value, "kind", value))
def test_every_world_sees_the_step_that_one_rank_sees(world, nbs, span):
    """Each rank's k-th image is image residue + W k of the step, to the last pixel, whatever the span."""
    one = [_epoch(_loader(), epoch) for epoch in (0, 1)]
    for rank in range(world):
        loader = _loader(rank, world, span)
        assert len(loader) == IMAGES // GLOBAL_BATCH
        mine = slice(span.residue(rank, world), None, world)
        for epoch in (1, 0):
            batches = _epoch(loader, epoch)
            assert len(batches) == len(loader)
            for (images, labels), (all_images, all_labels) in zip(batches, one[epoch], strict=True):
                assert torch.equal(labels, all_labels[mine])
                assert torch.equal(images, all_images[mine])


@pytest.mark.parametrize(("world", "nbs", "span"), SPANS, ids=lambda value: getattr(value, "kind", value))
def test_who_shares_statistics_depends_on_the_nbs_alone(world, nbs, span):
    """Groups as the layers form them: a block of ranks, or every ghosts-th image of a rank."""
    groups = GLOBAL_BATCH // nbs
    steps = [_epoch(_loader(rank, world, span)) for rank in range(world)]
    for step, (_, order) in enumerate(_epoch(_loader())):
        shares = [steps[rank][step][1].tolist() for rank in range(world)]
        if span.ranks > 1:
            blocks = [shares[first : first + span.ranks] for first in range(0, world, span.ranks)]
            found = [[image for share in block for image in share] for block in blocks]
        else:
            found = [share[g :: span.ghosts] for share in shares for g in range(span.ghosts)]
        assert {frozenset(group) for group in found} == {
            frozenset(order[g::groups].tolist()) for g in range(groups)
        }


def test_an_epoch_can_be_gone_on_with_anywhere():
    images = torch.randint(256, (29, 3, 8, 8), dtype=torch.uint8)
    data = ImageSet(images, torch.arange(29), 29)
    plain = Normalizer((0.5,) * 3, (0.5,) * 3, torch.device("cpu"), torch.float64)
    place = {"span": span_of(4, 2, 2), "rank": 1, "world_size": 2, "accumulate": 2}
    loader = TrainLoader(data, plain, "crop_flip", global_batch=8, seed=3, **place)
    loader.set_epoch(2)
    whole = list(loader)
    assert len(whole) == len(loader) == 6
    for first in range(7):
        rest = list(loader.batches(first))
        assert len(rest) == 6 - first
        for one, other in zip(rest, whole[first:], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_an_epoch_takes_no_image_twice_and_drops_the_partial_batch():
    taken = _labels(_loader())
    assert len(taken) == len(set(taken)) == IMAGES // GLOBAL_BATCH * GLOBAL_BATCH < IMAGES
    assert sorted(epoch_steps(16, 8, 0, 0).flatten().tolist()) == list(range(16)), "a whole set is all used"


def test_no_image_is_always_the_one_dropped():
    loader = _loader()
    assert set().union(*(_labels(loader, epoch) for epoch in range(6))) == set(range(IMAGES))


def test_epochs_and_seeds_differ_and_come_back():
    loader = _loader()
    orders = [tuple(_labels(_loader(seed=seed), epoch)) for seed in range(4) for epoch in range(4)]
    assert len(set(orders)) == 16
    first, second, again = _epoch(loader, 0), _epoch(loader, 3), _epoch(loader, 0)
    for (x, y), (x_again, y_again) in zip(first, again, strict=True):
        assert torch.equal(x, x_again) and torch.equal(y, y_again)
    assert not torch.equal(first[0][0], second[0][0])


def test_every_step_of_every_epoch_draws_its_own_augmentation():
    """With one picture throughout, a batch shows its draws alone."""
    same = ImageSet(DATA.images[:1].expand(IMAGES, -1, -1, -1), DATA.labels, num_classes=IMAGES)
    loader = _loader(data=same)
    batches = [images.numpy().tobytes() for epoch in range(6) for images, _ in _epoch(loader, epoch)]
    assert len(set(batches)) == len(batches) == 6 * len(loader)


def test_streams_are_apart():
    """Neighbouring seeds, streams and counts draw different numbers; the same ones draw the same."""
    draws = {
        torch.rand(2, generator=generator(seed, stream, count)).numpy().tobytes()
        for seed in range(12) for stream in range(2) for count in range(12)
    }  # fmt: skip
    assert len(draws) == 12 * 2 * 12
    assert generator(3, 1, 4).initial_seed() == generator(3, 1, 4).initial_seed()


def test_a_set_below_one_step_is_refused():
    with pytest.raises(ValueError, match=r"global_batch=8 is more than the 7 training images"):
        _loader(data=_set(7))
    assert len(_loader(data=_set(8))) == 1


@settings(max_examples=60, deadline=None)
@given(images=st.integers(1, 40), world=st.integers(1, 9), batch=st.integers(1, 45))
def test_validation_takes_every_image_exactly_once(images, world, batch):
    data = _set(images)
    if images < world:
        with pytest.raises(ValueError, match=f"{images} test images do not reach for {world} ranks"):
            TestLoader(data, PLAIN, batch=batch, rank=0, world_size=world)
        return
    loaders = [TestLoader(data, PLAIN, batch=batch, rank=rank, world_size=world) for rank in range(world)]
    taken: list[int] = []
    for loader in loaders:
        batches = list(loader)
        assert len(batches) == len(loader) > 0
        for pixels, labels in batches:
            assert 0 < len(labels) <= batch
            torch.testing.assert_close(pixels * 255, data.images[labels].double(), rtol=0, atol=1e-12)
            taken += labels.tolist()
    assert sorted(taken) == list(range(images))
    sizes = [len(loader.labels) for loader in loaders]
    assert max(sizes) - min(sizes) <= 1


def _augmented(kind: str, images: int) -> tuple[torch.Tensor, torch.Tensor]:
    data = _set(images)
    out = Augment(data.images, kind)(torch.arange(images), slice(None), torch.Generator().manual_seed(1))
    return data.images, out


def test_without_augmentation_images_are_themselves():
    images, out = _augmented("none", 20)
    assert torch.equal(out, images)


def test_half_of_the_images_are_flipped():
    images, out = _augmented("flip", 3000)
    flipped = (out == images.flip(-1)).flatten(1).all(1)
    assert (flipped | (out == images).flatten(1).all(1)).all()
    assert 0.45 < flipped.double().mean().item() < 0.55


@pytest.mark.parametrize("kind", ["crop", "crop_flip"])
def test_every_crop_is_a_window_of_the_padded_image_and_every_window_comes(kind):
    images, out = _augmented(kind, 3000)
    padded = F.pad(images, [PADDING] * 4)

    def windows_of(batch: torch.Tensor) -> torch.Tensor:
        """(9, 9, N): whether image n is the window at that shift."""
        at = range(2 * PADDING + 1)
        rows = [
            [(batch == padded[..., i : i + SIDE, j : j + SIDE]).flatten(1).all(1) for j in at] for i in at
        ]
        return torch.stack([torch.stack(row) for row in rows])

    plain, flipped = windows_of(out), windows_of(out.flip(-1))
    assert torch.equal((plain | flipped).sum((0, 1)), torch.ones(3000, dtype=torch.long))
    counts = (plain | flipped).sum(2)
    assert counts.min() > 10 and counts.max() < 80, "81 windows share 3,000 draws, 37 each"
    share = flipped.any(0).any(0).double().mean().item()
    assert share == 0 if kind == "crop" else 0.45 < share < 0.55


@pytest.mark.parametrize("kind", ["none", "flip", "crop", "crop_flip"])
@pytest.mark.parametrize("size", [(8, 8), (5, 7), (3, 1), (1, 9)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_fast_way_takes_the_very_pixels_of_the_plain_one(kind, size, layout):
    """Draw by draw: which window, which flip; for sizes whose bytes are no words, and images in any layout."""
    images = torch.randint(256, (50, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    images, place = images.contiguous(memory_format=layout), slice(1, None, 2)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(3))
    got = Augment(images, kind)(order, place, torch.Generator().manual_seed(4))

    draws, mine = torch.Generator().manual_seed(4), order[place]
    want = images[mine]
    if "crop" in kind:
        down, right = torch.randint(9, (2, 50), generator=draws)[:, place]
        height, width = size
        padded = F.pad(images, [PADDING] * 4)
        want = torch.stack(
            [
                padded[n, :, i : i + height, j : j + width]
                for n, i, j in zip(mine.tolist(), down.tolist(), right.tolist(), strict=True)
            ]
        )
    if "flip" in kind:
        flip = (torch.rand(50, generator=draws) < 0.5)[place]
        want = torch.stack([x.flip(-1) if turned else x for x, turned in zip(want, flip, strict=True)])
    assert torch.equal(got, want)


def test_a_batch_of_which_nothing_or_all_is_flipped():
    images = DATA.images[:1]
    seen = set()
    for seed in range(8):
        out = Augment(images, "flip")(torch.zeros(1).long(), slice(None), torch.Generator().manual_seed(seed))
        seen.add((torch.equal(out, images), torch.equal(out, images.flip(-1))))
    assert seen == {(True, False), (False, True)}


def test_augmenting_leaves_the_set_alone():
    before = DATA.images.clone()
    for kind in ("none", "flip", "crop", "crop_flip"):
        batch = Augment(DATA.images, kind)(
            torch.arange(IMAGES), slice(None), torch.Generator().manual_seed(1)
        )
        batch.zero_()
    assert torch.equal(DATA.images, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_normalizer_is_one_fused_multiply_add_for_images_of_any_size(dtype, layout):
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    normalize = Normalizer(mean, std, torch.device("cpu"), dtype, layout)
    means, stds = (torch.tensor(values, dtype=dtype).view(1, 3, 1, 1) for values in (mean, std))
    scale, shift = 1 / (255 * stds), -means / stds
    every = torch.arange(256, dtype=torch.uint8)
    for size in ((16, 16), (256, 1), (1, 256), (16, 16)):  # and back again
        images = every.view(1, 1, *size).expand(2, 3, *size)
        before, got = images.clone(), normalize(images)
        assert got.dtype == dtype and got.is_contiguous(memory_format=layout)
        assert torch.equal(got, torch.addcmul(shift, images.to(dtype), scale))
        assert torch.equal(images, before)


def test_a_normalizer_that_began_in_an_evaluation_serves_training():
    """Lightning evaluates in inference mode, whose tensors may not take part in everything outside of it."""
    normalize = Normalizer((0.5,) * 3, (0.25,) * 3, torch.device("cpu"), torch.float32)
    with torch.inference_mode():
        within = normalize(DATA.images)
    images = normalize(DATA.images)
    assert torch.equal(images, within) and not images.is_inference()
    weight = torch.ones(1, 3, 1, 1, requires_grad=True)
    (images * weight).sum().backward()
    assert torch.equal(weight.grad, images.sum((0, 2, 3), keepdim=True))
    assert torch.equal(normalize(DATA.images[..., :4]), images[..., :4]), "another size, now outside"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_normalizer_is_torchvisions(dtype):
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    got = Normalizer(mean, std, torch.device("cpu"), dtype)(DATA.images)
    want = tv.normalize(tv.to_dtype(DATA.images, torch.float64, scale=True), list(mean), list(std))
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-12 if dtype is torch.float64 else 1e-6)


def test_spans_with_ranks_of_their_own_are_tried():
    assert {span.kind for _, _, span in SPANS} == {"ghost", "device", "group", "world"}
    assert any(isinstance(span, Span) and span.ranks == 2 and world == 4 for world, _, span in SPANS)
