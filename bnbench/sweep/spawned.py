"""A world of ranks on this host that bnbench starts, and one run after another on it. No torch."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from bnbench.config import RunConfig
from bnbench.launch import Place
from bnbench.sweep.options import Share
from bnbench.sweep.outcome import Outcome, write_failure
from bnbench.sweep.rank import GO, STOP, serve
from bnbench.sweep.stopping import StopRequest, deadline

Report = Callable[[RunConfig, Mapping[str, Any]], None]  # takes what a run has come to
PRELOAD = ["bnbench.sweep.quiet", "bnbench.sweep.noted", "bnbench.training.run"]
# What ends a world, the likelier cause first: one rank's end makes the others' collectives fail.
FATAL = ("gone", "oom", "failed", "timeout")
GRACE_SECONDS = 5.0  # for the other ranks, once one has failed


@dataclass
class _Attempt:
    """A run that the ranks are at."""

    config: RunConfig
    pending: dict[Any, int]  # the rank behind each pipe that has not answered
    since: float
    until: float
    answers: dict[int, tuple[str, str | None]] = field(default_factory=dict)
    told: str = ""  # to stop, and what its end will be called
    patience: float = math.inf
    begun: bool = False


class SpawnedWorld:
    """Ranks on this host, forked from a server that has torch imported and has touched no GPU.

    Serves runs that want the same devices. After a failure it is not `alive`: the ranks may hang in
    different collectives, so they are ended and the next run gets a new world, which costs little.
    """

    def __init__(self, first: RunConfig, share: Share = Share()) -> None:  # noqa: B008
        self.trainer = first.trainer
        self.alive = True
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        self._attempt: _Attempt | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="bnbench-"))
        self._pipes: list[Connection] = []
        self._ranks: list[BaseProcess] = []
        try:
            self._start(context, share)
        except BaseException:  # asked to stop, most likely: starting takes seconds
            self.alive = False
            self.close()
            raise

    def _start(self, context: Any, share: Share) -> None:
        size = self.trainer.devices
        for rank in range(size):
            ours, theirs = context.Pipe()
            place = Place(rank, size, rank, size)
            arguments = (place, self.trainer, str(self._folder / "store"), theirs, share)
            process = context.Process(target=serve, args=arguments, name=f"bnbench rank {rank}", daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._ranks.append(process)
        for pipe in self._pipes:
            with contextlib.suppress(OSError):  # a rank that is gone: the first run finds out
                pipe.send(GO)

    def fits(self, config: RunConfig) -> bool:
        mine, theirs = self.trainer, config.trainer
        return all(
            getattr(mine, key) == getattr(theirs, key)
            for key in ("devices", "accelerator", "collective_timeout_minutes")
        )

    @property
    def busy(self) -> bool:
        return self._attempt is not None

    @property
    def pipes(self) -> list[Connection]:
        """Those that a rank will answer on."""
        return [] if self._attempt is None else list(self._attempt.pending)

    def begin(self, config: RunConfig) -> None:
        """Hand a run to every rank; `hear` tells what comes of it."""
        assert self._attempt is None
        for pipe in self._pipes:
            try:
                pipe.send(config)
            except OSError:  # that rank is gone; `hear` finds out
                break
        pending = {pipe: rank for rank, pipe in enumerate(self._pipes)}
        self._attempt = _Attempt(config, pending, time.monotonic(), deadline(config))

    def hear(self, ready: Container[Any], stop: StopRequest, report: Report) -> Outcome | None:
        """Read the `ready` pipes, and pass on a wish to stop. The outcome, once all ranks have answered or hang."""
        attempt = self._attempt
        assert attempt is not None
        now = time.monotonic()
        if not attempt.told and (stop.asked or now > attempt.until):
            attempt.told = "preempted" if stop.asked else "timeout"
            if stop.asked and not attempt.begun:
                return self._end()  # its ranks import, or set up: there is nothing to save
            self._tell_to_stop()
            if attempt.told == "timeout":
                attempt.patience = now + self._saving_seconds
        for pipe in [pipe for pipe in attempt.pending if pipe in ready]:
            self._read(attempt, pipe, report)
        if attempt.pending and now <= attempt.patience:
            return None
        return self._end()  # if some are pending: they hang, with a rank that failed or by themselves

    def _read(self, attempt: _Attempt, pipe: Any, report: Report) -> None:
        rank = attempt.pending[pipe]
        try:
            kind, value = pipe.recv()
        except (EOFError, OSError):
            kind, value = self._end_of(rank, time.monotonic() - attempt.since)
        if kind == "progress":
            attempt.begun = True
            report(attempt.config, value)
            return
        del attempt.pending[pipe]
        attempt.answers[rank] = (kind, value)
        if kind in FATAL:
            attempt.patience = time.monotonic() + GRACE_SECONDS

    def _end_of(self, rank: int, seconds: float) -> tuple[str, str]:
        """What to call a rank's end, so long after its run began."""
        self._ranks[rank].join(GRACE_SECONDS)
        code = self._ranks[rank].exitcode
        ended = f"ended with exit code {code}"
        if code == -signal.SIGKILL:
            return "gone", f"{ended} (killed: by the kernel, if memory ran out)"
        if code == -signal.SIGABRT and self.trainer.accelerator != "cpu" and seconds >= self._saving_seconds:
            limit = f"trainer.collective_timeout_minutes={self.trainer.collective_timeout_minutes:g}"
            return "timeout", f"{ended} (aborted: by NCCL, once a collective has taken {limit})"
        return "gone", ended

    def _end(self) -> Outcome:
        attempt, self._attempt = self._attempt, None
        assert attempt is not None
        config, answers = attempt.config, attempt.answers
        broken = {rank: answer for rank, answer in answers.items() if answer[0] in FATAL}
        self.alive = not attempt.pending and not broken
        if not self.alive:
            self.close()  # what hangs has the run's lock, and may yet write
        if broken:
            rank = min(broken, key=lambda r: (FATAL.index(broken[r][0]), r))
            kind, error = broken[rank]
            status = kind if kind in ("oom", "timeout") else "failed"
            error = f"rank {rank}: {error}"
        else:
            silent = f"its ranks did not answer for {self._saving_seconds:g} s"
            if not attempt.begun:
                silent = "before its first steps"
            status, answer = answers.get(0, ("preempted", f"asked to stop: {silent}"))
            error = answer or ""
            if status == "preempted" and attempt.told == "timeout":
                limit = config.trainer.time_limit_minutes
                status, error = "timeout", f"trainer.time_limit_minutes={limit:g} are over: {error}"
        if broken or status in ("preempted", "timeout"):
            return write_failure(config, status, error)
        return Outcome(config, status, error or None)

    @property
    def _saving_seconds(self) -> float:
        """For a window and a checkpoint, once a run has had its time: after that it hangs."""
        return self.trainer.collective_timeout.total_seconds()

    def _tell_to_stop(self) -> None:
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send(STOP)

    def close(self) -> None:
        """End the ranks: idle ones by asking them, others at once. Once is enough, and twice does no harm."""
        asked = self.alive and not self.busy
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                if asked:
                    pipe.send(None)
        for process in self._ranks:
            if asked:
                process.join(30)
            if process.is_alive():
                process.kill()
                process.join()
        shutil.rmtree(self._folder, ignore_errors=True)
