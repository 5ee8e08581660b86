"""The moving average of a network's weights, and what its norms have to know to be evaluated with it."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class WeightAverage:
    """After each step, average = decay * average + (1 - decay) * network: its weights and running statistics alike.

    The averaged weights' own statistics lag behind as far as the weights do. Averaging them likewise is what
    timm does; `norm.statistics=precise` measures them anew with the averaged weights, on training images.
    Each rank averages its own; a policy merges the ranks' before evaluation, and gives the same as merging at
    every step would, since both are linear.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
        self._averaged.update_parameters(
            model
        )  # the first call copies: the start counts as an average of one
        self.model: nn.Module = self._averaged.module.eval()

    def update(self, model: nn.Module) -> None:
        self._averaged.update_parameters(model)

    def state_dict(self) -> dict[str, Any]:
        return self._averaged.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._averaged.load_state_dict(state)
