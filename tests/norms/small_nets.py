"""Networks of a few layers that hold what a rewriting of a graph must get right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    """Four norms: a stem's and a branch's first with a ReLU behind them, a branch's last and a shortcut's without."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.fc = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.stem(x)))
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        out += self.shortcut(x)
        return self.fc(F.relu(out).mean((2, 3)))


NORMS_OF_RESIDUAL = ["norm", "norm1", "norm2", "shortcut.1"]
FOLLOWED = ["norm", "norm1"]  # by a ReLU alone


class Moved(Residual):
    """The same with those two norms behind their activation, by hand."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(F.relu(self.stem(x)))
        out = self.norm1(F.relu(self.conv1(x)))
        out = self.norm2(self.conv2(out)) + self.shortcut(x)
        return self.fc(F.relu(out).mean((2, 3)))


class WithoutRelu(Residual):
    """The same with nothing behind those two norms, by hand."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        out = self.norm1(self.conv1(x))
        out = self.norm2(self.conv2(out)) + self.shortcut(x)
        return self.fc(F.relu(out).mean((2, 3)))


class Untraceable(Residual):
    """What it does depends on the data."""

    def forward(self, x: Tensor) -> Tensor:
        return Residual.forward(self, x if x.sum() > 0 else -x)


class ByMode(nn.Module):
    """Dropout, and in training a second output: two graphs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.aux = nn.Sequential(nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2), nn.ReLU())

    def forward(self, x: Tensor) -> Any:
        x = F.dropout(F.relu(self.norm(self.conv(x))), 0.5, self.training)
        return (x, self.aux(x)) if self.training else x


def apply(forward: Callable[..., Any], **parts: nn.Module) -> nn.Module:
    """A module with these parts, whose forward is `forward(self, x)`."""

    class Applied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, part in parts.items():
                self.add_module(name, part)

    Applied.forward = forward
    return Applied()


def images(n: int = 3, side: int = 6, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(7)).to(dtype)


def shaken(model: nn.Module) -> nn.Module:
    """`model` with affine parts and running statistics of their own, as after a while of training."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.dim() == 1 and tensor.is_floating_point():
                low = 0.5 if name.endswith(("weight", "running_var")) else -0.5
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + low)
            elif not tensor.is_floating_point():
                tensor.fill_(11)
    return model


def outcome(model: nn.Module, x: Tensor, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """The output, first if there are several, and the gradient of each parameter that has one."""
    torch.manual_seed(seed)
    model.zero_grad()
    outputs = model(x)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    sum((output * output.detach().cos()).sum() for output in outputs).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return outputs[0].detach(), gradients


def assert_same(one: tuple[Tensor, dict[str, Tensor]], other: tuple[Tensor, dict[str, Tensor]]) -> None:
    """Equal to the bit."""
    assert torch.equal(one[0], other[0])
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        assert torch.equal(gradient, other[1][name]), name


def assert_near(
    one: tuple[Tensor, dict[str, Tensor]], other: tuple[Tensor, dict[str, Tensor]], tolerance: float
) -> None:
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_state(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Doubling(nn.Module):
    """A user's own norm by dotted path: no subclass of ours, and with another norm inside."""

    def __init__(self, num_features: int, *, factor: float = 2.0) -> None:
        super().__init__()
        self.inner = nn.BatchNorm2d(num_features)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.inner(x)


class OwnActivation(nn.Module):
    """A user's own norm that includes the activation, and cannot do without it."""

    includes_activation = True

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(x * self.weight[:, None, None])


def failing(num_features: int) -> nn.Module:
    """A builder that fails in the middle of a model."""
    if num_features == 7:
        raise RuntimeError("no seven")
    return nn.Identity()
