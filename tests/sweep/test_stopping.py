"""What asks a sweep to stop is heard."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bnbench.signals import SIGNALS
from bnbench.sweep.stopping import INTERRUPTED, STOPPED, StopRequest


@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_asks_once_and_leaves_the_handlers_as_they_were(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # these tests may be under nohup
    try:
        with StopRequest() as stop:
            signal.raise_signal(number)
            assert stop.asked
            assert stop.exit_code == (INTERRUPTED if number == signal.SIGINT else STOPPED)
            assert signal.getsignal(number) == signal.SIG_DFL
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_under_nohup_a_lost_connection_stops_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.asked
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


WAITS = """
import signal, sys, time
from pathlib import Path
from bnbench.sweep.stopping import StopRequest
signal.signal(signal.SIGHUP, signal.SIG_DFL)
with StopRequest() as stop:
    print("ready", flush=True)
    while not stop.asked:
        time.sleep(0.01)
    print(stop.remark, flush=True)
    Path(sys.argv[1]).write_text("checkpoint")
"""


def test_a_terminal_that_is_gone_does_not_cost_the_checkpoint(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS, str(tmp_path / "left")], stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    said = b""
    while not said.endswith(b"\n"):  # it may come in pieces, and what is still being written would fail
        said += os.read(ours, 100)
    assert said.strip() == b"ready"
    os.close(ours)
    time.sleep(0.1)
    process.send_signal(signal.SIGHUP)
    try:
        assert process.wait(30) == 0
    finally:
        process.kill()
    assert (tmp_path / "left").read_text() == "checkpoint"
