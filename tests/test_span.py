"""Every route to one normalization batch size puts the same images into the same groups."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bnbench.span import Span, span_of

small = st.integers(1, 8)


def _groups(span: Span, per_device: int, world: int) -> set[frozenset[int]]:
    """Who shares statistics, as images of the global step: what the ranks and the ghost layer do."""
    by_rank = [list(range(span.residue(rank, world), per_device * world, world)) for rank in range(world)]
    if span.ranks > 1:
        blocks = [by_rank[first : first + span.ranks] for first in range(0, world, span.ranks)]
        return {frozenset(image for rank in block for image in rank) for block in blocks}
    return {frozenset(images[g :: span.ghosts]) for images in by_rank for g in range(span.ghosts)}


def _reachable(nbs: int, per_device: int, world: int) -> bool:
    try:
        return bool(span_of(nbs, per_device, world))
    except ValueError:
        return False


@settings(deadline=None)
@given(world=st.integers(1, 24), data=st.data())
def test_the_ranks_share_out_every_global_step(world, data):
    ranks = data.draw(st.sampled_from([s for s in range(1, world + 1) if world % s == 0]))
    span = Span("group", ranks=ranks)
    assert sorted(span.residue(rank, world) for rank in range(world)) == list(range(world))


@settings(max_examples=200, deadline=None)
@given(groups=small, nbs=small)
def test_groups_are_the_images_modulo_their_number_on_every_world(groups, nbs):
    """Ghosts on few ranks, one group a device, groups of ranks, the whole world: the same sets."""
    images = groups * nbs
    want = {frozenset(range(g, images, groups)) for g in range(groups)}
    worlds = [w for w in range(1, images + 1) if images % w == 0 and _reachable(nbs, images // w, w)]
    spans = {world: span_of(nbs, images // world, world) for world in worlds}
    for world, span in spans.items():
        assert _groups(span, images // world, world) == want, (world, span)
    # One rank, a group a rank, and an image a rank are always routes.
    assert {1, groups, images} <= set(worlds)
    assert spans[groups].kind == "device"
    if groups > 1 and nbs > 1:
        assert (spans[1].kind, spans[images].kind) == ("ghost", "group")
    if groups == 1 and nbs > 1:
        assert spans[images].kind == "world"


@settings(deadline=None)
@given(per_device=small, world=small, data=st.data())
def test_a_span_holds_as_many_images_as_asked(per_device, world, data):
    nbs = data.draw(st.sampled_from([n for n in range(1, 65) if _reachable(n, per_device, world)]))
    span = span_of(nbs, per_device, world)
    assert nbs * span.ghosts == per_device * span.ranks
    assert 1 in (span.ghosts, span.ranks)
    assert {len(group) for group in _groups(span, per_device, world)} == {nbs}


@settings(deadline=None)
@given(per_device=small, world=small, nbs=st.integers(1, 70))
def test_what_cannot_be_reached_is_refused_with_all_that_can(per_device, world, nbs):
    assume(not _reachable(nbs, per_device, world))
    with pytest.raises(ValueError, match=rf"norm\.batch_size={nbs} ") as caught:
        span_of(nbs, per_device, world)
    listed = re.search(r"possible here: ([\d, ]+)$", str(caught.value))
    assert listed is not None
    offered = [int(word) for word in listed[1].split(", ")]
    assert offered == [n for n in range(1, per_device * world + 1) if _reachable(n, per_device, world)]


@pytest.mark.parametrize("nbs", [0, -4])
def test_no_group_is_empty(nbs):
    with pytest.raises(ValueError, match=rf"norm\.batch_size={nbs} is below 1"):
        span_of(nbs, 8, 2)
