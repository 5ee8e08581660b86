"""Health of normalization in training: how far batch statistics are from the running ones, over layers and ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from bnbench.curves import WHOLE
from bnbench.models import logits_of
from bnbench.norms import tracking_norms

from .look import Look, NormInput, bare, eagerly, is_compiled, unseen
from .series import Series


class Health(Callback):
    """Every `every` optimizer steps, on the last batch of the step, one row of `series` for each signal and place.

    At each norm with running statistics (of this step's start), over channels and statistics groups:

    - `drift_mean`: root mean square of (batch mean - running mean) / sqrt(running var + eps);
    - `drift_var`: mean of |ln((batch var + eps) / (running var + eps))|, both unbiased;
    - `rank_spread`: standard deviation over ranks of a rank's batch mean, root mean square over channels, in the
      running deviation of the ranks together; with several ranks only.

    At each stage (`stages`) `grad_norm`, the norm of its gradient before clipping; for the whole `eval_gap`, the
    cross-entropy of the batch in evaluation mode minus that in training mode, over all ranks.

    `ranks` share statistics, consecutive ones. One collective for a measurement, hooks only while it lasts; weights,
    running statistics and random numbers are what they would be without it. A compiled network is looked at in a
    forward pass of its own.
    """

    def __init__(self, every: int, series: Series, *, ranks: int = 1, parts: int = 1) -> None:
        self.every, self.series, self.ranks, self.parts = every, series, ranks, parts
        self._look: Look | None = None
        self._eval_loss: Tensor | None = None
        self._signals: dict[str, dict[str, float]] = {}

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if (trainer.global_step + 1) % self.every or (batch_idx + 1) % self.parts:
            return
        images, labels = batch
        network: Any = pl_module.model
        self._signals, self._eval_loss = {}, None
        context = trainer.precision_plugin.forward_context
        if tracking_norms(network, frozen=True):
            with unseen(network, training=False), context():
                logits = logits_of(eagerly(network, images))[0]
                self._eval_loss = F.cross_entropy(logits.double(), labels)
        self._look = Look(network, labels)
        if is_compiled(network):
            with unseen(network, training=True), context():
                eagerly(network, images)
            self._look.end()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._look is not None and self.series.folder is not None:
            network: Any = pl_module.model
            self._signals["grad_norm"] = gradient_norms(bare(network))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._look is None:
            return
        look, self._look = self._look, None
        look.end()
        losses = [loss for loss in (look.loss, self._eval_loss) if loss is not None]
        inputs, gathered = gather(look.inputs, losses)
        if self.series.folder is None:
            return
        if self._eval_loss is not None:
            train_loss, eval_loss = gathered.mean(0).tolist()
            self._signals["eval_gap"] = {WHOLE: eval_loss - train_loss}
        for path, found in inputs.items():
            for signal, value in drift(found, self.ranks).items():
                self._signals.setdefault(signal, {})[path] = value
        self.series.add(trainer, trainer.global_step, self._signals)


def gather(inputs: dict[str, NormInput], losses: list[Tensor]) -> tuple[dict[str, list[NormInput]], Tensor]:
    """What each rank's norms saw, by path and rank, and the ranks' losses (ranks, n): by one collective, in fp64 on
    the CPU."""
    parts = [tensor for each in inputs.values() for tensor in _tensors(each)] + losses
    if not parts:
        return {}, torch.zeros(1, 0)
    dtype = (
        torch.float64 if any(each.mean.dtype == torch.float64 for each in inputs.values()) else torch.float32
    )
    mine = torch.cat([part.detach().reshape(-1).to(dtype) for part in parts])
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    if ranks > 1:
        everyone = mine.new_empty(ranks * mine.numel())
        dist.all_gather_into_tensor(everyone, mine)
    else:
        everyone = mine
    sizes = [part.numel() for part in parts]
    by_rank = [iter(row.split(sizes)) for row in everyone.double().cpu().view(ranks, -1)]
    found = {path: [_from_tensors(each, rank) for rank in by_rank] for path, each in inputs.items()}
    return found, torch.stack([torch.cat([*rank, torch.zeros(0, dtype=torch.float64)]) for rank in by_rank])


def _tensors(found: NormInput) -> list[Tensor]:
    means = [] if found.running_mean is None else [found.running_mean]
    return [found.mean, found.var, found.running_var, *means]


def _from_tensors(like: NormInput, parts: Any) -> NormInput:
    mean, var, running_var = next(parts).view_as(like.mean), next(parts).view_as(like.var), next(parts)
    running_mean = None if like.running_mean is None else next(parts)
    return NormInput(mean, var, like.count, running_mean, running_var, like.eps)


def drift(ranks: list[NormInput], span: int = 1) -> dict[str, float]:
    """The signals of one norm, from every rank's view of it; `span` consecutive ranks share statistics."""
    first = ranks[0]
    mean, var = (
        torch.stack([getattr(rank, name) for rank in ranks]) for name in ("mean", "var")
    )  # (W, k, C)
    running_var = torch.stack([rank.running_var for rank in ranks])[:, None]  # (W, 1, C)
    found = {}
    if len(ranks) > 1:
        spread = mean.mean(1).std(0) / (running_var.mean((0, 1)) + first.eps).sqrt()
        found["rank_spread"] = spread.square().mean().sqrt().item()
    count = first.count * span
    if span > 1:  # their batches are one: every rank has as many images
        mean, var = (each.view(-1, span, each.shape[-1]) for each in (mean, var))
        var = var.mean(1, keepdim=True) + mean.var(1, correction=0, keepdim=True)
        mean, running_var = mean.mean(1, keepdim=True), running_var[::span]
    var = var * (count / max(count - 1, 1))  # unbiased, as the running one is
    found["drift_var"] = ((var + first.eps) / (running_var + first.eps)).log().abs().mean().item()
    if first.running_mean is not None:
        running_mean = torch.stack([rank.running_mean for rank in ranks if rank.running_mean is not None])
        away = (mean - running_mean[::span, None]) / (running_var + first.eps).sqrt()
        found["drift_mean"] = away.square().mean().sqrt().item()
    return found


def stages(network: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters of a network's parts, by path: its children, and in place of one that holds more than half of
    all parameters (counted as tensors), that one's children."""
    half = len(list(network.parameters())) / 2
    parts: dict[str, nn.Module] = {"": network}
    while large := [path for path, part in parts.items() if _can_part(part, half)]:
        for path in large:
            children = parts.pop(path).named_children()
            parts |= {f"{path}.{name}".lstrip("."): child for name, child in children}
    return {path or WHOLE: found for path, part in parts.items() if (found := list(part.parameters()))}


def _can_part(part: nn.Module, half: float) -> bool:
    """Whether it is large, and all its parameters are its children's."""
    children = any(True for _ in part.children())
    return children and not part._parameters and len(list(part.parameters())) > half


def gradient_norms(network: nn.Module) -> dict[str, float]:
    """The 2-norm of the gradient of each stage; one wait for the device."""
    grads = {
        name: [p.grad for p in parameters if p.grad is not None]
        for name, parameters in stages(network).items()
    }
    norms = [torch.stack(torch._foreach_norm(each)).norm() for each in grads.values() if each]
    names = [name for name, each in grads.items() if each]
    return dict(zip(names, torch.stack(norms).tolist(), strict=True)) if norms else {}
