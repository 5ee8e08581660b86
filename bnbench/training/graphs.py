"""A step's forward and backward pass as CUDA graphs: one launch each, where launching every kernel costs more than it.

The kernels are those of the step as it stands, on the same values: weights come out as they would. But norms that have
Triton kernels for channels_last take them for small tensors too: launching them costs nothing here. What looks into a
network (hooks, a counting mode) sees nothing of a replay, so a step that is looked into is launched kernel by kernel.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bnbench.norms import fused
from bnbench.norms.statistics import KeptBuffers

Judge = Callable[
    [object, Tensor], tuple[Tensor, Tensor]
]  # a network's output and labels (N,) to loss () and logits


class CapturedStep:
    """`judge(model(images), labels)`, captured at the first call; batches must all have its shape.

    On one GPU only, one batch a step: a captured backward pass writes each gradient to one place, so that a second one
    would overwrite what it is to be added to.
    """

    def __init__(self, model: nn.Module, judge: Judge) -> None:
        self.model, self.judge = model, judge
        self._graphed: _Step | None = None

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Loss () and logits (N, classes)."""
        with fused.at_any_size():
            if self.is_watched:
                return self.judge(self.model(images), labels)
            if self._graphed is None:
                self._graphed = self._capture(images, labels)
        loss, logits = self._graphed(images, labels)
        return loss.clone(), logits.detach().clone()  # the next replay writes to the same places

    @property
    def is_watched(self) -> bool:
        return bool(self.model._forward_hooks) or torch._C._len_torch_dispatch_stack() > 0

    def _capture(self, images: Tensor, labels: Tensor) -> _Step:
        """A few passes before the capture move running statistics and draw random numbers: both come back."""
        step, kept, device = _Step(self.model, self.judge), KeptBuffers(self.model), images.device.type
        autocast = torch.autocast(
            device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device), cache_enabled=False
        )
        with torch.random.fork_rng([images.device]), autocast:
            torch.cuda.make_graphed_callables(step, (images.clone(), labels.clone()))
        kept.restore()
        return step


class _Step(nn.Module):
    """What is captured, apart from the network: its own forward stays as it is, for evaluation and for looks."""

    def __init__(self, model: nn.Module, judge: Judge) -> None:
        super().__init__()
        self.model, self.judge = model, judge

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return self.judge(self.model(images), labels)
