"""Laws of the cost model, whatever the links."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnbench.models import build_model
from bnbench.scale.cost_model import (
    ALGORITHMS,
    BUCKET,
    KINDS,
    Compute,
    Link,
    Network,
    Workload,
    exposed,
    network,
    sizes_up_to,
    step,
    traffic,
)
from bnbench.scale.measure import workload

ranks_of = st.integers(2, 5000)
payloads = st.integers(1, 2**26)
nodes = st.integers(1, 64)


@st.composite
def links(draw):
    alpha, call = draw(st.floats(0, 1e-3)), draw(st.floats(0, 1e-3))
    return Link(alpha, draw(st.floats(1e6, 1e12)), call)


@st.composite
def networks(draw):
    """Of nodes that are joined by a slower link than their ranks are."""
    near = draw(links())
    far = Link(near.alpha + draw(st.floats(0, 1e-3)), near.beta / draw(st.floats(1, 100)), near.call)
    algorithm = draw(st.sampled_from(ALGORITHMS))
    return network(algorithm, dict.fromkeys(KINDS, near), dict.fromkeys(KINDS, far), draw(nodes))


@st.composite
def workloads(draw):
    channels = draw(st.lists(st.integers(1, 2048), max_size=200))
    return Workload(tuple(channels), draw(st.integers(4, 2**30)))


def of_one_link(algorithm, link, node=10**9):
    return network(algorithm, dict.fromkeys(KINDS, link), dict.fromkeys(KINDS, link), node)


def collectives(net):
    return net.all_gather, net.all_reduce


@given(networks(), payloads)
def test_a_rank_by_itself_pays_nothing(net: Network, payload: int) -> None:
    assert [each.seconds(1, payload) for each in collectives(net)] == [0, 0]


@given(networks(), payloads, ranks_of, ranks_of)
def test_more_ranks_never_cost_less(net: Network, payload: int, a: int, b: int) -> None:
    few, many = sorted((a, b))
    for each in collectives(net):
        assert each.seconds(few, payload) <= each.seconds(many, payload) * (1 + 1e-9)


@given(links(), payloads, ranks_of)
def test_an_all_reduce_moves_less_than_twice_its_payload(link: Link, payload: int, ranks: int) -> None:
    free = Link(0.0, link.beta)
    for algorithm in ALGORITHMS:
        seconds = of_one_link(algorithm, free).all_reduce.seconds(ranks, payload)
        assert payload / link.beta * 0.999 <= seconds < 2 * payload / link.beta
    assert traffic("all_gather", ranks) == ranks - 1


@given(links(), payloads, ranks_of)
def test_the_tree_is_never_slower_and_as_fast_up_to_three_ranks(link: Link, payload: int, ranks: int) -> None:
    ring, tree = (of_one_link(algorithm, link) for algorithm in ALGORITHMS)
    for slow, fast in zip(collectives(ring), collectives(tree), strict=True):
        assert fast.seconds(ranks, payload) <= slow.seconds(ranks, payload) * (1 + 1e-9)
        assert fast.seconds(min(ranks, 3), payload) == slow.seconds(min(ranks, 3), payload)


@given(links(), payloads, ranks_of, nodes)
def test_nodes_do_not_matter_where_one_link_joins_all(
    link: Link, payload: int, ranks: int, node: int
) -> None:
    flat, nested = of_one_link("ring", link), of_one_link("ring", link, node)
    for one, other in zip(collectives(flat), collectives(nested), strict=True):
        assert one.seconds(ranks, payload) == pytest.approx(
            other.seconds(ranks, payload), rel=1e-9, abs=1e-15
        )


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_nodes_of_powers_of_two_split_a_tree_too(algorithm) -> None:
    link = Link(1e-6, 1e9, 1e-5)
    for node in (2, 4, 8):
        for ranks in (8, 64, 4096):
            flat, nested = of_one_link(algorithm, link), of_one_link(algorithm, link, node)
            assert flat.all_gather.seconds(ranks, 1000) == pytest.approx(
                nested.all_gather.seconds(ranks, 1000)
            )


@given(workloads(), ranks_of, st.floats(1e-7, 1e-3), st.floats(1e6, 1e12))
def test_a_step_is_the_textbooks_sums(work: Workload, ranks: int, alpha: float, beta: float) -> None:
    """T_fwd = L s alpha + (k - 1) sum(m_f) / beta; T_bwd = 2 L s alpha + 2 (k - 1) / k sum(m_b) / beta."""
    layers, k = len(work.channels), ranks
    for algorithm, s in (("ring", k - 1), ("tree", math.ceil(math.log2(k)))):
        forward = layers * s * alpha + (k - 1) * sum(4 * (2 * c + 1) for c in work.channels) / beta
        backward = 2 * layers * s * alpha + 2 * (k - 1) / k * sum(8 * c for c in work.channels) / beta
        taken = step(work, Compute(1.0), of_one_link(algorithm, Link(alpha, beta)), ranks, ranks)
        assert taken.statistics == pytest.approx(forward + backward, rel=1e-9)


@given(workloads(), networks(), st.floats(1e-3, 10), st.floats(0, 1), st.booleans(), ranks_of)
def test_a_wider_span_never_costs_less_but_per_device_costs_no_statistics(
    work: Workload, net: Network, seconds: float, extra: float, overlaps: bool, world: int
) -> None:
    compute = Compute(seconds, extra, overlaps)
    alone = step(work, compute, net, world)
    assert alone.statistics == alone.arithmetic == 0
    before = alone
    for span in (2, world // 2, world):
        if 1 < span <= world:
            taken = step(work, compute, net, world, span)
            # Communication of statistics makes the backward pass longer, which may hide gradients.
            assert taken.seconds + alone.gradients >= before.seconds * (1 - 1e-9)
            assert taken.statistics >= before.statistics * (1 - 1e-9)
            before = taken


@given(workloads())
def test_buckets_hold_the_gradients(work: Workload) -> None:
    assert sum(work.buckets) == work.gradient_bytes
    assert all(0 < size <= BUCKET for size in work.buckets)


@given(workloads(), networks(), ranks_of, st.floats(0, 10))
def test_what_is_left_of_gradients_is_the_last_bucket_at_least_and_all_at_most(
    work: Workload, net: Network, world: int, passing: float
) -> None:
    each = [net.all_reduce.seconds(world, size) for size in work.buckets]
    left = exposed(work.buckets, net.all_reduce, world, passing)
    room = 1e-9 * (1 + passing)
    assert each[-1] - room <= left <= sum(each) + room
    assert exposed(work.buckets, net.all_reduce, world, 0.0) == pytest.approx(sum(each))


def test_worlds_double() -> None:
    assert sizes_up_to(4096) == [2**n for n in range(13)]
    assert sizes_up_to(1) == [1] and sizes_up_to(100)[-1] == 64


# Layers, channels in all, bytes forward and backward of a rank, gradients: counted with torchvision 0.29 by hand.
COUNTED = {
    "resnet50": (53, 26_560, 212.7, 212.5, 102),
    "resnet101": (104, 52_672, 421.8, 421.4, 178),
    "densenet121": (121, 41_824, 335.1, 334.6, 32),
    "inception_v3": (96, 18_112, 145.3, 144.9, 109),
    "vgg16": (13, 4_224, 33.8, 33.8, 554),
}


@pytest.fixture(scope="module")
def loads() -> dict[str, Workload]:
    found = {}
    for name in COUNTED:
        about = workload(build_model(name, 1000))
        found[name] = Workload(tuple(about["channels"]), about["gradient_bytes"])
    return found


@pytest.mark.parametrize("name", COUNTED)
def test_what_the_networks_send(name: str, loads: dict[str, Workload]) -> None:
    layers, channels, forward, backward, gradients = COUNTED[name]
    work = loads[name]
    assert (len(work.channels), sum(work.channels)) == (layers, channels)
    assert sum(work.forward_bytes) / 1000 == pytest.approx(forward, abs=0.05)
    assert sum(work.backward_bytes) / 1000 == pytest.approx(backward, abs=0.05)
    assert work.gradient_bytes / 1e6 == pytest.approx(gradients, abs=0.6)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    "link", [Link(1e-6, 3e11), Link(2.7e-6, 5e10, 6.6e-6), Link(2e-5, 1.25e9), Link(1e-4, 1e9)]
)
def test_densenet_is_the_worst_beside_its_gradients_and_vgg_the_best(loads, link: Link, algorithm) -> None:
    """Statistics cost by the layer, gradients by the byte: the order holds on any link and in any world."""
    net = of_one_link(algorithm, link)
    for world in (2, 8, 64, 4096):
        shares = {}
        for name, work in loads.items():
            gradients = sum(net.all_reduce.seconds(world, size) for size in work.buckets)
            shares[name] = step(work, Compute(1.0), net, world, world).statistics / gradients
        ordered = sorted(shares, key=lambda name: shares[name])
        assert (ordered[0], ordered[-1]) == ("vgg16", "densenet121"), (world, shares)
