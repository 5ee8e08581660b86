"""One look at a network between two steps: what reaches its norms, and its loss in either mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnbench.models import logits_of
from bnbench.norms import VirtualBatchNet, tracking_norms
from bnbench.norms.statistics import KeptBuffers
from bnbench.norms.sync import batch_statistics


@dataclass
class NormInput:
    """What reached a norm: mean and biased variance (ghosts, C) of this rank's statistics groups of `count` values a
    channel, and the running statistics (C,) as they were then."""

    mean: Tensor
    var: Tensor
    count: float
    running_mean: Tensor | None
    running_var: Tensor
    eps: float


class Look:
    """Watches one forward pass of a network: `inputs` by the norm's path, and the `loss` of its main logits ().

    Norms whose input is not (N, C, ...) with their own channels are left out.
    """

    def __init__(self, network: nn.Module, labels: Tensor) -> None:
        self.inputs: dict[str, NormInput] = {}
        self.loss: Tensor | None = None
        norms = tracking_norms(network, frozen=True)
        self._handles: list[Any] = [
            norm.register_forward_pre_hook(partial(self._note, path), with_kwargs=True)
            for path, norm in norms.items()
        ]
        self._handles.append(network.register_forward_hook(partial(self._judge, labels)))

    def end(self) -> None:
        for handle in self._handles:
            handle.remove()

    @torch.no_grad()
    def _note(self, path: str, norm: Any, args: Any, kwargs: Any) -> None:
        x, running_var = next(iter((*args, *kwargs.values()))), norm.running_var
        k, c = getattr(norm, "ghosts", 1), running_var.numel()
        if path in self.inputs or x.dim() < 2 or x.shape[1] != c or len(x) % k:
            return
        mean, var, count = batch_statistics(x.reshape(len(x) // k, k * c, -1, 1))
        running_mean = getattr(norm, "running_mean", None)
        self.inputs[path] = NormInput(
            mean.view(k, c),
            var.view(k, c),
            count,
            None if running_mean is None else running_mean.clone(),
            running_var.clone(),
            norm.eps if isinstance(getattr(norm, "eps", None), float) else 1e-5,
        )

    @torch.no_grad()
    def _judge(self, labels: Tensor, network: nn.Module, args: Any, output: Any) -> None:
        self.loss = F.cross_entropy(logits_of(output)[0].double(), labels)


def bare(network: nn.Module) -> nn.Module:
    """The network without Virtual BN's wrapping, so that its places have the same names under every norm."""
    return network.model if isinstance(network, VirtualBatchNet) else network


@contextmanager
def unseen(network: nn.Module, training: bool) -> Iterator[nn.Module]:
    """`network` in training or evaluation mode, without gradients; buffers, modes and random numbers come back."""
    kept, modes = KeptBuffers(network), [(module, module.training) for module in network.modules()]
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield network.train(training)
    finally:
        for module, mode in modes:
            module.training = mode
        kept.restore()


def eagerly(network: nn.Module, images: Tensor) -> Any:
    """A forward pass with hooks, and without a compilation for it: a compiled network knows no later hooks."""
    return network._call_impl(images)


def is_compiled(network: nn.Module) -> bool:
    return network._compiled_call_impl is not None
