"""Lightning's training loop and strategies without what no run of ours asks of them: its steps, and their time.

A step of ResNet-8 is some 900 Python calls in a bare loop. Lightning's loop and our callbacks added 1,360, now 250:
what is left out are hooks of modules, strategies and loggers that are empty here, each within a profiler's context, a
look at `training_step`'s signature, and, on several ranks, DDP's forward and a broadcast of whether rank 0 got SIGTERM,
which `Checkpoint` asks of all ranks at its own interval.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from .callbacks.look import is_compiled


class StepLoop(_TrainingEpochLoop):
    """An epoch whose module optimizes by itself, logs nothing by `self.log` and takes batches that are on its device.

    Of a batch's hooks, those of callbacks are called. Put it in place of a Trainer's: `trainer.fit_loop.epoch_loop`.
    """

    def on_run_start(self, data_fetcher: Any) -> None:
        super().on_run_start(data_fetcher)
        self.manual_optimization.on_run_start()  # from here on it counts what the optimizers step

    def advance(self, data_fetcher: Any) -> None:
        if self.restarting or self.val_loop.restarting:  # from a checkpoint, maybe beside an evaluation
            super().advance(data_fetcher)
            self.manual_optimization.on_run_start()  # Lightning's has stopped counting at its end
            return
        trainer, progress = self.trainer, self.batch_progress
        module, callbacks = trainer.lightning_module, _callbacks(trainer)
        batch, _, _ = next(data_fetcher)
        number = self.batch_idx + 1
        progress.is_last_batch = data_fetcher.done
        progress.increment_ready()
        for callback in callbacks:
            callback.on_train_batch_start(trainer, module, batch, number)
        progress.increment_started()
        trainer.strategy.training_step(batch, number)
        progress.increment_processed()
        for callback in callbacks:
            callback.on_train_batch_end(trainer, module, {}, batch, number)
        progress.increment_completed()


def _callbacks(trainer: Trainer) -> list[Callback]:
    return trainer.callbacks  # type: ignore[attr-defined]


class _Straight(Strategy):
    """Differentiates and steps as torch does; of the hooks between, callbacks have `on_after_backward`."""

    def backward(
        self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any
    ) -> Tensor:
        self.pre_backward(closure_loss)
        closure_loss.backward()
        self.post_backward(closure_loss)
        module = self.lightning_module
        assert module is not None
        for callback in _callbacks(module.trainer):
            callback.on_after_backward(module.trainer, module)
        return closure_loss

    def optimizer_step(
        self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any
    ) -> Any:
        return optimizer.step()  # type: ignore[call-overload]


class OneDevice(_Straight, SingleDeviceStrategy):
    pass


class Ranks(_Straight, DDPStrategy):
    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        # Lightning does it on a side stream, which only a capture needs: each gradient would have to wait for another
        # stream, and torch warns of it on every rank.
        return DistributedDataParallel(
            module=model, device_ids=self.determine_ddp_device_ids(), **self._ddp_kwargs
        )

    def training_step(self, *arguments: Any, **named: Any) -> Any:
        """Not through DDP's forward, which Lightning leads back to the module's own training step by replacing that
        one's forward for a moment: what readies DDP's buckets is `pre_backward`. A compiled network is split by what
        DDP's forward tells its compiler."""
        module: Any = self.lightning_module
        if is_compiled(module.model):
            return super().training_step(*arguments, **named)
        with self.precision_plugin.train_step_context():
            return module.training_step(*arguments, **named)
