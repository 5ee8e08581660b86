"""Probes: runs cut short, trained in ranks that stay warm and in a folder that vanishes. No torch."""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import wait
from typing import Any

from bnbench.config import RunConfig
from bnbench.launch import place_given
from bnbench.records import Record, digest
from bnbench.sweep.estimate import PROBED, Estimates, estimate
from bnbench.sweep.options import Share
from bnbench.sweep.short import SHORT_EPOCHS, Probe, ProbeError, Sizes, Timed, read_timed, shortened
from bnbench.sweep.spawned import SpawnedWorld
from bnbench.sweep.stopping import StopRequest

FIRST_STEPS, MOST_STEPS = 2, 20  # of an epoch, in the two probes of a run
EVALUATED = 500  # images a rank in an evaluation: a batch of it
BUDGET_SECONDS = 10.0  # for the second probe of a run, without its setup
LIMIT_SECONDS = 120.0  # for any, once it has begun to train
LISTENING_SECONDS = 0.5


class Prober:
    """Probes runs in ranks that stay warm, in a folder that vanishes. `say` takes a line for each; `share` is what a
    world of the sweep may use of the machine.

    Each run is probed twice: a few steps that warm the ranks up and tell what more would cost, then as many as
    fit into `BUDGET_SECONDS`, if there are any. Use it as a context: what it started ends with it.
    """

    def __init__(self, say: Callable[[str], None], share: Share = Share()) -> None:  # noqa: B008
        self.say, self.share = say, share
        self._world: SpawnedWorld | None = None
        self._listener = _Listener()
        self._stop = StopRequest()  # never asked: there is nothing to save

    def __enter__(self) -> Prober:
        if place_given() is not None:
            raise ValueError(
                "--probe starts its ranks itself: call bnbench plan without torchrun or srun, or leave it out"
            )
        self._folder = tempfile.TemporaryDirectory(prefix="bnbench-plan-", ignore_cleanup_errors=True)
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()
        self._folder.cleanup()

    def probe(self, run: RunConfig) -> Record:
        """The record that a whole run could leave, as far as time and memory go. Raises ProbeError."""
        started = time.monotonic()
        timed = self._timed(run, FIRST_STEPS, run.global_batch)
        per_rank = max(EVALUATED, -(-run.global_batch // run.trainer.world_size))
        images = min(per_rank * run.trainer.world_size, timed.whole.validation)
        longer = shortened(run, self._folder.name, 0, images)
        cut = Sizes(timed.cut.train, images, min(images, timed.whole.test))
        rest = timed.as_long(longer, 0, cut)
        left = BUDGET_SECONDS - rest["fit_seconds"] - rest["measure_seconds"]
        steps = min(MOST_STEPS, int(left / (SHORT_EPOCHS * timed.step)))
        if steps >= FIRST_STEPS:
            timed = self._timed(run, steps, images)
        whole = timed.whole
        timings = timed.as_long(run, whole.train // run.global_batch, whole)
        self.say(
            f"{run.run_name}: {1000 * timed.step:.3g} ms a step, {timings['setup_seconds']:.2g} s setup, "
            f"probed in {time.monotonic() - started:.1f} s"
        )
        return dataclasses.replace(
            timed.record,
            id=digest(run.identity()),
            name=run.run_name,
            identity=run.identity(),
            config=dataclasses.asdict(run),
            timings=timings,
            provenance=timed.record.provenance
            | {
                PROBED: {"steps": timed.probe.steps},
                "data": timed.record.provenance["data"] | {"train_images": whole.train},
            },
        )

    def _timed(self, run: RunConfig, steps: int, images: int) -> Timed:
        # A run's probes have one identity: what the first left is no finished run for the second.
        with tempfile.TemporaryDirectory(dir=self._folder.name) as folder:
            probe = shortened(run, folder, steps, images)
            status, error = self._train(probe)
            if status not in ("completed", "diverged"):
                last = (error or "").strip().splitlines()[-1:]
                raise ProbeError(": ".join([status, *last]))
            return read_timed(probe, Sizes(**self._listener.whole))

    def _train(self, probe: Probe) -> tuple[str, str | None]:
        if self._world is not None and not (self._world.alive and self._world.fits(probe)):
            self._close()
        share = dataclasses.replace(self.share, each=probe.trainer.devices)
        world = self._world = self._world or SpawnedWorld(probe, share)
        listener = self._listener = _Listener()
        world.begin(probe)
        while True:
            outcome = world.hear(set(wait(world.pipes, LISTENING_SECONDS)), self._stop, listener.hear)
            if outcome is not None:
                return outcome.status, outcome.error
            if time.monotonic() > listener.until:
                self._close()
                raise ProbeError(f"slow: not done with {probe.steps} steps in {LIMIT_SECONDS:g} s")

    def _close(self) -> None:
        if self._world is not None:
            self._world.close()
        self._world = None


class _Listener:
    """What a probe has said: how large its sets are, and since it trains, when it has had its time."""

    def __init__(self) -> None:
        self.whole: dict[str, int] = {}
        self.until = math.inf

    def hear(self, config: RunConfig, event: Mapping[str, Any]) -> None:
        if "stage" in event:
            self.until = time.monotonic() + LIMIT_SECONDS
        self.whole = event.get("whole", self.whole)


def estimate_by_probes(
    cells: Sequence[RunConfig], records: Sequence[Record], prober: Prober
) -> tuple[Estimates, dict[int, str]]:
    """As `estimate`, with a probe of every cell that has no record of its own; and, by the places of their cells,
    why probes tell nothing.

    A cell's records stand for it only where they are of the device that the probes ran on.
    """
    probed: dict[int, Record] = {}
    problems: dict[int, str] = {}
    while True:
        found = estimate(cells, [*records, *probed.values()])
        missing = [
            place
            for place, known in enumerate(found.cells)
            if (known is None or not known.of_cell) and place not in (probed.keys() | problems.keys())
        ]
        if not missing:
            kept = [None if place in problems else known for place, known in enumerate(found.cells)]
            return Estimates(found.device, kept), problems
        for place in missing:
            try:
                probed[place] = prober.probe(cells[place])
            except ProbeError as error:
                problems[place] = str(error)
                prober.say(f"{cells[place].run_name}: {error}")
