"""The optimization landscape of training: drift of layer inputs, predictiveness of gradients. Santurkar et al. 2018."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from bnbench.curves import WHOLE
from bnbench.models import logits_of
from bnbench.norms.statistics import KeptBuffers
from bnbench.norms.sync import batch_statistics

from .look import bare, eagerly, unseen
from .series import Series

LENGTHS = (0.5, 1.0, 2.0, 4.0)  # steps along the gradient, in learning rates
LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
Moments = dict[str, tuple[Tensor, Tensor]]  # mean and standard deviation (C,) of a layer's input, by its path


class Landscape(Callback):
    """Every `every` optimizer steps, before the step and on its last batch, in training mode:

    - `input_drift` of each convolution and linear layer but the first: how far its input has moved since the
      last measurement, for `probe`, the same images each time. With mean m and standard deviation s of each
      channel, before (0) and now (1), sqrt(sum((m1 - m0)^2 + (s1 - s0)^2) / sum(s0^2)): the Wasserstein distance
      of channelwise normal distributions, relative to their spread. Only with a `probe`.
    - `gradient_change`: the largest of |g(w - h g) - g(w)| / |g(w)| over h = `LENGTHS` times the learning rate of
      the first parameter group; lower is more predictive.
    - `loss_range`: the largest loss at h = 0 and those h, less the smallest.

    g is the gradient of the training loss over all ranks' images. Six forward and five backward passes and six
    collectives a measurement, on a copy: training stays bit-identical. Dropout drops the same each time.
    """

    def __init__(self, every: int, series: Series, probe: Tensor | None, *, parts: int = 1) -> None:
        self.every, self.series, self.probe, self.parts = every, series, probe, parts
        self._before: Moments = {}

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if (trainer.global_step + 1) % self.every or (batch_idx + 1) % self.parts:
            return
        module: Any = pl_module
        context = trainer.precision_plugin.forward_context
        signals: dict[str, dict[str, float]] = {}
        if self.probe is not None:
            with unseen(module.model, training=True), context():
                now = input_moments(module.model, self.probe)
            if self._before:
                signals["input_drift"] = input_drift(self._before, now)
            self._before = now
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        change, loss_range = self._along_gradient(module, batch, rate, context)
        signals |= {"gradient_change": {WHOLE: change}, "loss_range": {WHOLE: loss_range}}
        if self.series.folder is not None:
            self.series.add(trainer, trainer.global_step + 1, signals)

    def state_dict(self) -> dict[str, Any]:
        # Of a GPU's tensors, rank 0 would make copies on every rank's GPU.
        return {"before": {path: (m.cpu(), s.cpu()) for path, (m, s) in self._before.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.probe is not None:
            device = self.probe.device
            self._before = {path: (m.to(device), s.to(device)) for path, (m, s) in state["before"].items()}

    def _along_gradient(self, module: Any, batch: Any, rate: float, context: Any) -> tuple[float, float]:
        images, labels = batch
        network = copy.deepcopy(module.model).train()
        parameters = [p for p in network.parameters() if p.requires_grad]
        start, kept = [p.detach().clone() for p in parameters], KeptBuffers(network)
        cuda = [images.device] if images.device.type == "cuda" else []

        def at(length: float, direction: Tensor | None) -> tuple[float, Tensor]:
            with torch.no_grad():
                parts = [None] * len(parameters)
                if direction is not None:
                    parts = direction.split([p.numel() for p in parameters])  # type: ignore[assignment]
                for p, origin, part in zip(parameters, start, parts, strict=True):
                    p.copy_(
                        origin if part is None else origin - length * part.view_as(origin).to(origin.dtype)
                    )
            with torch.random.fork_rng(cuda), torch.enable_grad():
                with context():
                    loss = training_loss(module, eagerly(network, images), labels)
                found = torch.autograd.grad(loss, parameters, allow_unused=True)
            kept.restore()
            grads = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
            flat = torch.cat([loss.detach().view(1), *(g.reshape(-1).to(loss.dtype) for g in grads)])
            flat = over_ranks(flat)
            return flat[0].item(), flat[1:]

        loss, gradient = at(0.0, None)
        losses, changes = [loss], list[Tensor]()
        for length in LENGTHS:
            loss, other = at(length * rate, gradient)
            losses.append(loss)
            changes.append((other - gradient).norm() / gradient.norm())
        of_losses = torch.tensor(
            losses, dtype=torch.float64
        )  # unlike Python's, its extremes see what is no number
        return torch.stack(changes).max().item(), (of_losses.max() - of_losses.min()).item()


def training_loss(module: Any, output: Any, labels: Tensor) -> Tensor:
    """What `Classifier` trains by."""
    smoothing = module.recipe.label_smoothing
    main, *others = (F.cross_entropy(each, labels, label_smoothing=smoothing) for each in logits_of(output))
    return main + module.aux_weight * sum(others) if others else main


def over_ranks(values: Tensor) -> Tensor:
    """The ranks' arithmetic mean: each has as many images."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values


@torch.no_grad()
def input_moments(network: nn.Module, images: Tensor) -> Moments:
    """Mean and standard deviation of every layer's input over all ranks' `images`, where it is not the images."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def note(path: str, args: Any) -> None:
        x = args[0]
        if path in found or x is images:
            return
        x = x.reshape(len(x), x.shape[1], -1, 1) if x.dim() > 2 else x.reshape(-1, x.shape[-1], 1, 1)
        mean, var, _ = batch_statistics(x)
        found[path] = mean.double(), var.double()

    handles = [
        layer.register_forward_pre_hook(lambda _, args, path=path: note(path, args))
        for path, layer in bare(network).named_modules()
        if isinstance(layer, LAYERS)
    ]
    try:
        eagerly(network, images)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        return {}
    squares = [part for mean, var in found.values() for part in (mean, var + mean.square())]
    parts = iter(over_ranks(torch.cat(squares)).split([part.numel() for part in squares]))
    moments: Moments = {}
    for path in found:
        mean, square = next(parts), next(parts)
        moments[path] = mean, (square - mean.square()).clamp(min=0).sqrt()
    return moments


def input_drift(before: Moments, now: Moments) -> dict[str, float]:
    """`Landscape`'s input_drift by layer; without those whose input had no spread."""
    found = {}
    for path, (mean, std) in now.items():
        old_mean, old_std = before[path]
        spread = old_std.square().sum()
        if spread > 0:
            moved = (mean - old_mean).square().sum() + (std - old_std).square().sum()
            found[path] = (moved / spread).sqrt().item()
    return found
