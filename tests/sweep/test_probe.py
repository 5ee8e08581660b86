"""Which cells are probed, and what stands for those whose probe tells nothing."""

from __future__ import annotations

import dataclasses
import functools

import pytest

from bnbench.compose import compose_jobs
from bnbench.config import RunConfig
from bnbench.records import Record
from bnbench.sweep.estimate import Device
from bnbench.sweep.probe import Prober, estimate_by_probes
from bnbench.sweep.short import ProbeError
from tests.records_factory import record_of

HERE, THERE = ("cpu", None), ("cuda", "a made-up GPU")


@functools.cache
def run(*words: str) -> RunConfig:
    (job,) = compose_jobs(words)
    return job


class Pretender(Prober):
    """Trains nothing: a probe takes 7 s on this device, or fails."""

    def __init__(self, device=HERE, failing: tuple[str, ...] = ()) -> None:
        self.said: list[str] = []
        super().__init__(self.said.append)
        self.device, self.failing, self.probed = device, failing, list[str]()

    def probe(self, config: RunConfig) -> Record:
        self.probed.append(config.run_name)
        if config.kind in self.failing:
            raise ProbeError("oom: made up")
        made = record_of(config, fit=7.0, day=9, device=self.device)
        return dataclasses.replace(
            made, provenance=made.provenance | {"probe": {"steps": 3}}, memory={"peak_bytes": 5}
        )


def sources(cells, records, prober) -> list[str | None]:
    found, _ = estimate_by_probes(cells, records, prober)
    return [None if known is None else known.source for known in found.cells]


def test_only_what_no_record_of_its_own_tells_of_is_probed():
    cells = [run(), run("norm.batch_size=16"), run("norm=syncbn")]
    prober = Pretender()
    assert sources(cells, [record_of(run("seed=4"))], prober) == ["1 run of this cell", "probe", "probe"]
    assert prober.probed == [cells[1].run_name, cells[2].run_name]
    nothing_to_do = Pretender()
    assert sources(cells[:1], [record_of(run("seed=4"))], nothing_to_do) == ["1 run of this cell"]
    assert nothing_to_do.probed == []


def test_a_probe_tells_time_and_memory_of_a_run():
    found, problems = estimate_by_probes([run()], [], Pretender())
    (known,) = found.cells
    assert known is not None and (known.seconds, known.peak_bytes, known.of_cell) == (7.0, 5, True)
    assert (found.device, problems) == (Device("cpu", "a made-up CPU"), {})


def test_records_of_another_device_give_way_to_a_probe_on_this_one():
    cells = [run(), run("norm=gn")]
    prober = Pretender()
    assert sources(cells, [record_of(run(), device=THERE)], prober) == ["probe", "probe"]
    assert sorted(prober.probed) == sorted(cell.run_name for cell in cells)


def test_where_a_probe_fails_nothing_like_it_stands_in():
    cells = [run(), run("norm=gn"), run("norm=ln")]
    prober = Pretender(failing=("gn",))
    found, problems = estimate_by_probes(cells, [], prober)
    assert [known is None for known in found.cells] == [False, True, False]
    assert problems == {1: "oom: made up"}
    assert prober.said == [f"{cells[1].run_name}: oom: made up"]
    assert len(prober.probed) == 3  # once each


def test_under_another_starter_it_is_refused(monkeypatch):
    for key, value in {
        "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "localhost", "MASTER_PORT": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(key, value)
    with pytest.raises(ValueError, match="without torchrun or srun"), Pretender():
        pass
