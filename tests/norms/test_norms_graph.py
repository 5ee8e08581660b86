"""A traced graph does what the module does, in both modes, and a rewritten model is still its model."""

from __future__ import annotations

import builtins
import copy
import io
import pickle
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bnbench.models import build_model, logits_of
from bnbench.norms import UntraceableError, place_norms, swap_norms
from bnbench.norms.graph import trace
from bnbench.norms.rewrite import Rewriting, install
from tests.norms.small_nets import (
    ByMode,
    Moved,
    Residual,
    Untraceable,
    apply,
    assert_near,
    assert_same,
    images,
    outcome,
    same_state,
    shaken,
    state_of,
)

pytestmark = pytest.mark.norms


def by_graph(model: nn.Module) -> nn.Module:
    """`model` running its unedited graphs."""
    install(trace(model), Rewriting(type(model), "before", ()))
    return model


def rewritten() -> Residual:
    torch.manual_seed(0)
    model = shaken(Residual())
    place_norms(model, "after")
    return model


def constants(self, x):
    self.steps.add_(1)
    mean = torch.tensor([0.1, 0.2, 0.3])
    return F.relu(self.norm((x - mean[:, None, None]) * self.mask))


def constants_net() -> nn.Module:
    model = apply(constants, norm=nn.BatchNorm2d(3))
    model.register_buffer("mask", torch.tensor([1.0, 2.0, 3.0])[:, None, None])
    model.register_buffer("steps", torch.tensor(4))
    return model


NETS = {
    "residual": Residual,
    "dropout and an auxiliary output": ByMode,
    "constants and buffers": constants_net,
    "resnet8": lambda: build_model("resnet8", 5, preact=True),
    "cifar_densenet": lambda: build_model("cifar_densenet", 5, depth=10),
    "googlenet": lambda: build_model("googlenet", 5),
    "densenet121": lambda: build_model("densenet121", 5),
}


@pytest.mark.parametrize("net", NETS)
def test_the_graphs_are_the_forward_in_both_modes(net):
    torch.manual_seed(0)
    model = NETS[net]()
    twin = by_graph(copy.deepcopy(model))
    assert type(twin) is not type(model) and isinstance(twin, type(model))
    assert twin.state_dict().keys() == model.state_dict().keys()
    x = images(2, 32)
    for training in (True, False, True):
        each = model.train(training), twin.train(training)
        kinds, outputs = [], []
        for one in each:
            torch.manual_seed(1)  # for the dropout
            output = one(x)
            kinds.append(type(output))
            outputs.append(logits_of(output))
        assert kinds[0] is kinds[1]  # GoogLeNetOutputs too
        assert len(outputs[0]) == len(outputs[1])
        assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))
    assert same_state(state_of(model), state_of(twin))


def test_default_and_keyword_arguments_stay():
    def forward(self, x, scale=2.0, *, shift=None, flip=False, power=1):
        x = F.relu(self.norm(x)) * scale
        if shift is not None:
            x = x + shift
        return (-x if flip else x) ** power

    model = apply(forward, norm=nn.BatchNorm2d(3))
    twin = by_graph(copy.deepcopy(model))
    x = images()
    for args, options in (
        ((x,), {}),
        ((x, 3.0), {}),
        ((), {"x": x, "scale": 0.5}),
        ((x,), {"power": 2, "flip": False}),
    ):
        assert torch.equal(model(*args, **options), twin(*args, **options))
    with pytest.raises(ValueError, match="forward's default shift=None"):
        twin(x, shift=x)
    with pytest.raises(ValueError, match="forward's default flip=False"):
        twin(x, flip=True)


def test_a_buffer_is_read_when_the_graph_runs():
    model = by_graph(constants_net())
    eager = constants_net()
    for each in (model, eager):
        each.mask.fill_(0.0)
    assert_same(outcome(model, images()), outcome(eager, images()))
    assert model.steps == eager.steps == 5


def test_copies_and_pickles_are_independent():
    model = rewritten()
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    copies = [
        copy.deepcopy(model),
        copy.copy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(saved, weights_only=False),
    ]
    want = outcome(copy.deepcopy(model), images())
    for twin in copies:
        assert isinstance(twin, Residual) and type(twin) is not Residual
        if twin is not copies[1]:
            assert_same(outcome(twin, images()), want)
    twin = copies[0]
    with torch.no_grad():
        twin.stem.weight.zero_()
    assert twin(images()).std(0).max() < 1e-6 < model(images()).std(0).max()
    place_norms(twin, "before")
    assert type(twin) is Residual and type(model) is not Residual
    swap_norms(copies[2], "gn", num_groups=2)
    assert type(model.norm) is nn.BatchNorm2d


def test_a_pickle_keeps_what_was_erased_and_nothing_else():
    model = Residual()
    swap_norms(model, "frn")
    twin = pickle.loads(pickle.dumps(model.eval()))
    assert type(twin).bnbench_rewriting == type(model).bnbench_rewriting
    assert torch.equal(twin(images()), model(images()))
    # FRN put there by hand, with a ReLU meant to stay: nothing of ours to undo or to repeat.
    byhand = apply(lambda self, x: F.relu(self.norm(x)), norm=copy.deepcopy(model.shortcut[1]))
    place_norms(byhand, "before")
    assert "bnbench_rewriting" not in vars(type(byhand))


def test_hooks_on_the_model_and_its_leaves_run():
    model, seen = rewritten(), []
    model.register_forward_hook(lambda *_: seen.append("model"))
    model.conv1.register_forward_pre_hook(lambda *_: seen.append("conv1"))
    model.norm1.register_full_backward_hook(lambda *_: seen.append("norm1"))
    model(images()).sum().backward()
    assert seen == ["conv1", "model", "norm1"]


@pytest.mark.parametrize("mode", [True, False])
def test_dynamo_compiles_the_whole(mode):
    torch._dynamo.reset()
    for model in (rewritten().train(mode), by_graph(ByMode()).train(mode)):
        twin = copy.deepcopy(model)
        compiled = torch.compile(twin, backend="eager", fullgraph=True)
        torch.manual_seed(0)
        want = model(images())
        torch.manual_seed(0)
        torch.testing.assert_close(compiled(images()), want, rtol=1e-5, atol=1e-5)
    torch._dynamo.reset()


class Distributed(nn.parallel.DistributedDataParallel):
    """DDP without a world to build one in."""

    def __init__(self) -> None:
        nn.Module.__init__(self)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*is deprecated")
def test_a_compiled_or_wrapped_model_is_refused():
    in_place = Residual()
    in_place.compile(backend="eager")
    refused = {
        "before torch.compile": [torch.compile(Residual(), backend="eager"), in_place],
        "before wrapping": [nn.DataParallel(Residual()), Distributed()],
        "before scripting": [torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))],
    }
    for words, models in refused.items():
        for model in models:
            with pytest.raises(ValueError, match=words):
                swap_norms(model, "bn")
            with pytest.raises(ValueError, match=words):
                place_norms(model, "after")


def test_a_rewritten_part_is_changed_through_itself():
    whole = nn.Sequential(rewritten(), nn.ReLU())
    with pytest.raises(ValueError, match=r"call this on model\.0 instead"):
        swap_norms(whole, "bn")


def numbered(self, x):
    return F.relu(self.norm(x)) * torch.rand(3)[:, None, None].sum().item()


def pythons(self, x):
    return F.relu(self.norm(x)) * random.random()


def remembers(self, x):
    self.last = x = F.relu(self.norm(x))
    return x


def remembers_inside(self, x):
    self.inner.seen = self.inner.weight + 1
    return self.inner(F.relu(self.norm(x)))


def numpys(self, x):
    return F.relu(self.norm(x)) * float(np.random.rand())


def from_its_own_generator(self, x):
    return F.relu(self.norm(x)) * torch.rand(1, generator=self.generator)


def asks(self, x):
    if isinstance(x, torch.Tensor):
        x = 2 * x
    return F.relu(self.norm(x))


def asks_torch(self, x):
    return F.relu(self.norm(x if torch.is_tensor(x) else x[0]))


def appends(self, x):
    self.seen.append(x)
    return F.relu(self.norm(x))


def with_gradient(self, x):
    with torch.enable_grad():
        return F.relu(self.norm(x))


def never_half(self, x):
    with torch.autocast("cpu", enabled=False):
        return F.relu(self.norm(x.float()))


def counts(self, x):
    self.steps += 1
    return F.relu(self.norm(x))


def without_gradient(self, x):
    with torch.no_grad():
        return F.relu(self.norm(x))


def half(self, x):
    with torch.autocast("cpu", torch.bfloat16):
        return F.relu(self.norm(x))


def variadic(self, *args, flag):
    return F.relu(self.norm(args[0]))


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (Untraceable.forward, "control flow"),
        (numbered, "draws random numbers"),
        (pythons, "draws random numbers"),
        (numpys, "draws random numbers"),
        (from_its_own_generator, "draws random numbers"),
        (asks, "asks whether a value is a Tensor"),
        (asks_torch, "asks whether a value is a Tensor"),
        (appends, r"changes Applied\.seen"),
        (remembers, r"sets Applied\.last"),
        (remembers_inside, r"sets Conv2d\.seen"),
        (counts, r"sets Applied\.steps"),
        (without_gradient, "grad or autocast mode"),
        (half, "grad or autocast mode"),
        (with_gradient, "grad or autocast mode"),
        (never_half, "grad or autocast mode"),
        (variadic, "keyword-only"),
    ],
)
def test_what_no_graph_can_follow_is_said_in_one_line_and_changes_nothing(forward, words):
    model = apply(forward, norm=nn.BatchNorm2d(3), inner=nn.Conv2d(3, 3, 1))
    model.register_buffer("steps", torch.tensor(4))
    model.inner.eval()
    model.seen, model.generator = [3], torch.Generator()
    before = state_of(model)
    attributes = {module: dict(vars(module)) for module in model.modules()}
    numbers, own = torch.get_rng_state(), random.getstate()
    others = str(np.random.get_state()), model.generator.get_state()
    with pytest.raises(UntraceableError, match=words) as error:
        place_norms(model, "after")
    assert str(error.value).startswith("Applied cannot be traced by torch.fx: ")
    assert "\n" not in str(error.value)
    assert torch.equal(torch.get_rng_state(), numbers) and random.getstate() == own
    assert str(np.random.get_state()) == others[0] and torch.equal(model.generator.get_state(), others[1])
    assert model.seen == [3] and isinstance is builtins.isinstance and torch.is_grad_enabled()
    assert {module: dict(vars(module)) for module in model.modules()} == attributes
    assert same_state(state_of(model), before) and not model.inner.training and model.training


def test_a_hook_on_a_container_or_a_forward_on_the_instance_is_not_lost():
    model = Residual()
    handle = model.shortcut.register_forward_hook(lambda *_: None)
    with pytest.raises(UntraceableError, match="shortcut has a hook"):
        place_norms(model, "after")
    handle.remove()
    model.forward = lambda x: x
    with pytest.raises(UntraceableError, match="replaced on the instance"):
        place_norms(model, "after")
    del model.forward
    assert place_norms(model, "after").moved == ["norm", "norm1"]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*is deprecated")
def test_what_a_rewritten_model_cannot_do_is_refused_rather_than_done_wrong():
    def block() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())

    model = block()
    swap_norms(model, "frn")
    with pytest.raises(ValueError, match=r"torch\.jit\.trace"):
        torch.jit.script(nn.Sequential(model))
    # Another of its class is built as the class was: with its ReLU, and without a layer that is not there.
    part, other = model[:2], type(model)(*block())
    assert type(part) is type(other) is nn.Sequential
    assert part(images()).min() > -9 and other(images()).min() >= 0
    model.append(nn.Flatten())
    with pytest.raises(ValueError, match="add layers before swap_norms"):
        model(images())
    swap_norms(model, "bn")
    assert model(images()).dim() == 2


def test_after_a_rewriting_the_state_is_the_models_own():
    model, byhand = rewritten(), shaken(Moved())
    byhand.load_state_dict(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert_near(outcome(model, images()), outcome(byhand, images()), 1e-5)
    optimizer.step()
    with torch.no_grad():
        for parameter in byhand.parameters():
            parameter -= 0.1 * parameter.grad
    torch.testing.assert_close(model(images()), byhand(images()), rtol=1e-4, atol=1e-4)
