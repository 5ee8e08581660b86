"""What every test runs under, and a W&B server for those that need one."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from bnbench import wandb_run
from tests.end_to_end.commands import clean_environment
from tests.wandb_stub import WandbStub

# A busy machine is slow at drawing examples too, which says nothing of the law under test.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-golden", action="store_true", help="write the golden files instead of comparing"
    )


def pytest_collection_finish() -> None:
    """What was imported stays: the collector, which every run calls, need not walk through it."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # else libraries tell at the end what they take for leaks


@pytest.fixture
def wandb_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbStub]:
    """A server that this process, and wandb in it, takes for W&B; the test runs in `tmp_path`."""
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    with WandbStub() as stub:
        environment = clean_environment(HOME=str(tmp_path / "home"), **stub.environment())
        for key in (*wandb_run.PLACES, *wandb_run.SETTINGS):
            environment.setdefault(key, "")  # known to monkeypatch, which puts back what the verb sets
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        for key in (*wandb_run.PLACES, *wandb_run.SETTINGS):
            monkeypatch.delenv(key)
        yield stub
