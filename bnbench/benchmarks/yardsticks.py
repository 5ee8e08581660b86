"""What a step under bnbench is compared with: a loop of torch alone, and Lightning without anything of ours."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from bnbench.config import RunConfig
from bnbench.training.optim import build_optimizer
from bnbench.training.setup import DataCache, set_up
from bnbench.training.world import JoinedEnvironment, World

from .block import Stopwatch

DDP_FLAGS: dict[str, Any] = {"broadcast_buffers": False, "gradient_as_bucket_view": True}  # as a run has them


def bare(config: RunConfig, world: World, cache: DataCache, watch: Stopwatch | None = None) -> Stopwatch:
    """What a user would write without any framework: one epoch of the run's network, images, optimizer and schedule,
    averaged over ranks by torch's DDP, and nothing read or logged. Call it on every rank."""
    # torch's advice against the flag, which its successor does not replace yet.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
    setup, watch = set_up(config, world, cache), watch or Stopwatch()
    model, loader = setup.module.model, setup.train_loader
    optimizer, schedule = build_optimizer(model, config, loader.steps)
    if world.place.size > 1:
        model = DistributedDataParallel(model, **DDP_FLAGS)
    model.train()
    for step, (images, labels) in enumerate(loader):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        schedule.step()
        watch.step_ended(step)
    return watch


class _Plain(LightningModule):
    def __init__(self, model: torch.nn.Module, recipe: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.recipe = model, recipe

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer, schedule = self.recipe(self.model)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def plain(config: RunConfig, world: World, cache: DataCache, watch: Stopwatch | None = None) -> Stopwatch:
    """The same in Lightning as it comes, with automatic optimization and nothing logged. Call it on every rank."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    setup, watch = set_up(config, world, cache), watch or Stopwatch()
    strategy: str | DDPStrategy = "auto"
    if world.place.size > 1:
        environment = JoinedEnvironment(world.place)
        strategy = DDPStrategy(
            cluster_environment=environment, process_group_backend=world.backend, **DDP_FLAGS
        )
    trainer = Trainer(
        accelerator="cpu",
        devices=world.place.size,
        strategy=strategy,
        max_epochs=config.epochs,
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=config.folder,
    )
    trainer.fit(_Plain(setup.module.model, setup.module.build_optimizer), setup.train_loader)
    return watch
