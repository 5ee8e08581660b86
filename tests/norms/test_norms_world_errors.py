"""What cannot be across ranks: a clear error with the layer's path, not a hang and not half of the statistics."""

from __future__ import annotations

import datetime

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bnbench.norms import NORMS, build_norm, freeze_statistics, swap_norms
from tests.ranks import on_ranks

pytestmark = pytest.mark.norms
SPANNING = ("bn", "syncbn", "brn", "evonorm_b0", "ws_bn", "frozen")


def _model(kind: str, group: object) -> nn.Module:
    """A convolution and a norm that knows, as after `swap_norms`, that it is at features.1."""
    norm = build_norm(kind, 4, process_group=group, **({"after": 0.5} if kind == "frozen" else {}))
    norm.path = "features.1"
    model = nn.Sequential()
    model.add_module("features", nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), norm))
    return model


def _message(model: nn.Module, images: int = 2, side: int = 4) -> str:
    """What a training step says, "" if nothing; that eval needs no group in either case."""
    model.eval()(torch.randn(1, 3, side, side))
    try:
        model.train()(torch.randn(images, 3, side, side)).sum().backward()
    except ValueError as error:
        # Nothing was learned from what could not be normalized.
        assert not any("running_mean" in n and t.count_nonzero() for n, t in model.state_dict().items())
        assert repr(model)
        return str(error)
    return ""


def test_every_kind_that_spans_ranks_is_here():
    import inspect

    taking = {name for name, b in NORMS.items() if "process_group" in inspect.signature(b).parameters}
    assert taking == set(SPANNING)


@pytest.mark.parametrize("kind", SPANNING)
@pytest.mark.parametrize("group", [2, [0, 1], "world", object()], ids=["number", "ranks", "word", "object"])
def test_what_is_no_process_group(kind, group):
    message = _message(_model(kind, group))
    assert message.startswith(
        f"{type(_model(kind, group).features[1]).__name__} at features.1: process_group="
    )
    assert "is no process group of an initialized torch.distributed" in message


def _outsiders(world):
    """Groups that some ranks are not in: by torch's mark for them, and by a group handed over all the same."""
    rank = world.place.rank
    first, last = dist.new_group([0, 1]), dist.new_group([2])
    return {(kind, name): _message(_model(kind, group)) for kind in SPANNING for name, group in
            {"first": first, "last": last, "own": first if rank < 2 else last}.items()}  # fmt: skip


def test_a_rank_outside_the_group_is_told_so():
    """Its size is -1 for torch: taken for a group of one, the rank would train on statistics of its own.

    Rules out the silent half of pytorch #48804, where not every rank makes every group.
    """
    for rank, messages in enumerate(on_ranks(3, _outsiders)):
        for (kind, name), message in messages.items():
            inside = name == "own" or (name == "first") == (rank < 2)
            if inside:
                assert message == "", (kind, name, rank)
            else:
                assert f"at features.1: rank {rank} is not in the layer's process group" in message


def _destroyed(world):
    """A group that is gone, then the world that is gone, then another world."""
    group = dist.new_group([0, 1])
    models = [_model(kind, group) for kind in SPANNING]
    models += [_model(kind, dist.group.WORLD) for kind in SPANNING]
    whole = build_norm("syncbn", 3)
    assert [_message(model) for model in models] == [""] * len(models)
    models = [_model(kind, group) for kind in SPANNING]
    worldly = [_model(kind, dist.group.WORLD) for kind in SPANNING]
    dist.barrier()
    dist.destroy_process_group(group)
    messages = [_message(model) for model in models]
    dist.destroy_process_group()
    messages += [_message(model) for model in models + worldly]
    whole(torch.randn(2, 3, 4, 4))  # no group was asked for: plain BN
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return messages + [_message(model) for model in models + worldly]


def test_a_group_that_is_gone():
    """A warm world's groups outlive a run; a layer that does must not talk to a world that ended."""
    for messages in on_ranks(2, _destroyed):
        assert len(messages) == 5 * len(SPANNING)
        for message in messages:
            assert "at features.1: process_group=" in message
            assert "build the layer anew" in message


def _few_values(world):
    """One value over all ranks, and none at all."""
    results = {}
    for kind in SPANNING:
        images = 1 if world.leads else 0
        model = _model(kind, dist.group.WORLD)
        norm = model.features[1]
        norm.train()
        with pytest.raises(ValueError, match=r"at features\.1: one value per channel"):
            norm(torch.randn(images, 4, 1, 1))
        x = torch.randn(0, 4, 4, 4, requires_grad=True)
        y = norm(x)
        y.sum().backward()
        assert x.grad.shape == y.shape
        results[kind] = [norm.running_var, *(p.grad for p in norm.parameters())]
    return results


def test_one_value_over_all_ranks_is_an_error_and_none_teaches_nothing():
    """As in torch's BatchNorm2d, an empty batch leaves the running statistics alone: no NaN from 0 / 0."""
    for results in on_ranks(2, _few_values):
        for kind, (running_var, *gradients) in results.items():
            assert torch.equal(running_var, torch.ones(4)), kind
            assert all(torch.equal(g, torch.zeros(4)) for g in gradients), kind


def _evaluate_on_one(world):
    """Rank 0 evaluates, frozen layers train, while the others do neither (pytorch #48988)."""
    dist.barrier()
    if world.leads:
        for kind in SPANNING:
            model = _model(kind, dist.group.WORLD)
            model.eval()(torch.randn(2, 3, 4, 4)).sum().backward()
            freeze_statistics(model)
            if kind != "evonorm_b0":  # never frozen
                model.train()(torch.randn(2, 3, 4, 4)).sum().backward()
    return datetime.datetime.now().timestamp()


def test_eval_waits_for_nobody():
    ended = on_ranks(2, _evaluate_on_one)
    assert abs(ended[0] - ended[1]) < 30


def test_what_torchs_converter_does_to_our_kinds():
    """`convert_sync_batchnorm`, which Lightning's sync_batchnorm=True calls, takes every BatchNorm subclass (#187298).

    Ghosts, renormalization and a freeze are lost without a word, and torch's SyncBatchNorm does not run on
    CPU. So bnbench never calls it: ask for a span with `swap_norms(model, "bn", process_group=...)`, which
    also repairs a converted model. Kinds that are no subclass stay what they are.
    """
    rewritten = set()
    options: dict[str, dict] = {
        "ghost": {"ghosts": 2}, "gn": {"num_groups": 2}, "ws_gn": {"num_groups": 2}, "evonorm_s0": {"num_groups": 2}
    }  # fmt: skip
    for kind in NORMS:
        model = nn.Sequential(nn.Conv2d(3, 4, 1), build_norm(kind, 4, **options.get(kind, {})))
        before, state = model[1], {k: v.clone() for k, v in model.state_dict().items()}
        converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        if converted[1] is not before:
            rewritten.add(kind)
            assert type(converted[1]) is nn.SyncBatchNorm
            back = "bn" if kind == "ws_bn" else kind
            swap_norms(converted, back, **options.get(kind, {}))
            assert type(converted[1]) is type(before)
        for key, tensor in converted.state_dict().items():
            assert torch.equal(tensor, state[key]), (kind, key)
    assert rewritten == {"bn", "syncbn", "ghost", "brn", "ws_bn"}
    later = nn.Sequential(build_norm("frozen", 4, after=0.5))
    freeze_statistics(later)
    assert not hasattr(nn.SyncBatchNorm.convert_sync_batchnorm(later)[0], "frozen")


def test_nothing_in_bnbench_asks_lightning_to_convert():
    from pathlib import Path

    import bnbench

    root = Path(bnbench.__file__).parent
    for folder in (root, root.parent / "conf"):
        for path in [*folder.rglob("*.py"), *folder.rglob("*.yaml")]:
            text = path.read_text(encoding="utf-8")
            assert "sync_batchnorm=True" not in text and "sync_batchnorm: true" not in text, path


def _refused_by_ddp(world):
    """Whether DDP takes torch's SyncBatchNorm on CPU, and ours."""
    torchs = nn.Sequential(nn.Conv2d(3, 4, 1), nn.SyncBatchNorm(4))
    try:
        DistributedDataParallel(torchs)(torch.randn(2, 3, 4, 4))
    except ValueError as error:
        refused = str(error)
    ours = nn.Sequential(nn.Conv2d(3, 4, 1), build_norm("syncbn", 4))
    return refused, DistributedDataParallel(ours)(torch.randn(2, 3, 4, 4)).shape


def test_ours_runs_where_torchs_does_not():
    for refused, shape in on_ranks(2, _refused_by_ddp):
        assert "SyncBatchNorm" in refused
        assert shape == (2, 4, 4, 4)
