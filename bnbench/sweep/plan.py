"""What a sweep will run: equal identities collapsed, finished runs left alone. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from bnbench import catalog
from bnbench.config import RunConfig
from bnbench.records import cell_of, digest
from bnbench.sweep.standing import begun_elsewhere, standing


@dataclass
class Plan:
    """The runs of a sweep, in the order asked, and what is to be said about them before they start."""

    todo: list[RunConfig] = field(default_factory=list)
    finished: list[RunConfig] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    others: dict[str, list[RunConfig]] = field(default_factory=dict)  # finished by other code, by its name

    @property
    def runs(self) -> list[RunConfig]:
        return self.finished + self.todo + [run for runs in self.others.values() for run in runs]

    def joined(self, later: Plan) -> Plan:
        """Both, with each run once."""
        known = {run.folder for run in self.runs}
        return Plan(
            todo=self.todo + [run for run in later.todo if run.folder not in known],
            finished=self.finished + [run for run in later.finished if run.folder not in known],
            remarks=self.remarks + later.remarks,
            others=self.others | later.others,
        )

    def cells(self) -> int:
        return len({digest(cell_of(run.identity())) for run in self.runs})

    def ranks(self) -> list[int]:
        return sorted({run.trainer.world_size for run in self.runs})

    def headline(self) -> str:
        ranks = " or ".join(map(str, self.ranks()))
        return f"{self.cells()} cell(s), {len(self.runs)} run(s), on {ranks} rank(s), into {self.runs[0].dir}"

    def refusal(self) -> str | None:
        """Why it cannot be run as it is: what other code has left is neither this sweep's nor to be overwritten."""
        if not self.others:
            return None
        count, names = sum(map(len, self.others.values())), " and ".join(self.others)
        return (
            f"{count} of {len(self.runs)} run(s) in {self.runs[0].dir} were finished by other code ({names}): "
            "reuse_records=true counts them as done, name=... trains all of them anew"
        )


def plan_single(config: RunConfig) -> Plan:
    """One run. ValueError if a setting would be ignored: what is asked must be what is done."""
    for key, value in config.ignored().items():
        reader, way_out = _reader(key, config), "leave it out"
        if key == "optim.base_batch":
            way_out = "leave it out, or choose linear or sqrt"
        elif key.startswith("optim."):
            way_out = f"{config.optim.name} reads {', '.join(catalog.OPTIMIZERS[config.optim.name].uses)}; leave it out"
        elif key == "norm.batch_size" and config.norm.name == "syncbn":
            way_out = "syncbn spans the global batch; use norm=bn to choose its NBS"
        elif key == "norm.batch_size":
            way_out = f"{config.norm.name} shares no statistics between images and has no NBS; leave it out"
        elif key.startswith("model."):
            way_out = f"{config.model.name} reads {', '.join(config.model.info.uses)}; leave it out"
        elif key.startswith("norm."):
            way_out = f"{config.norm.name} reads {', '.join(config.norm.info.uses)}; leave it out"
        raise ValueError(f"{key}={value} would be ignored by {reader}: {way_out}")
    return _split([config], [])


def _reader(key: str, config: RunConfig) -> str:
    """The setting whose choice makes `key` meaningless."""
    if key.startswith("model."):
        return f"model={config.model.name}"
    if key == "optim.base_batch":
        return f"optim.lr_rule={config.optim.lr_rule}"
    if key.startswith("optim."):
        return f"optim={config.optim.name}"
    if key.startswith("schedule."):
        return f"schedule={config.schedule.name}"
    return f"norm={config.norm.name}" + (" with norm.after=0" if config.norm.frozen_from_start else "")


def plan_sweep(asked: Sequence[RunConfig]) -> Plan:
    """The distinct runs of a sweep: settings that a norm ignores collapse, and the remarks say so."""
    distinct: dict[str, RunConfig] = {}
    for config in asked:
        bare = config.without_ignored()
        distinct.setdefault(digest(bare.identity(), 64), bare)
    ignored = sorted({(key, _reader(key, c)) for c in asked for key in c.ignored()})
    said = (
        [f"{len(asked)} combinations are {len(distinct)} distinct runs"] if len(distinct) < len(asked) else []
    )
    if ignored:
        said.append("; ".join(f"{reader} does not read {key}" for key, reader in ignored))
    remarks = [": ".join(said)] if said else []
    return _split(list(distinct.values()), remarks)


def _split(runs: list[RunConfig], remarks: list[str]) -> Plan:
    plan = Plan(remarks=remarks)
    reused: dict[str, int] = {}
    for run in runs:
        state, other = standing(run.folder)
        if state == "broken":
            plan.remarks.append(f"{other}: its run is trained again")
        if state == "finished" and other and not run.reuse_records:
            plan.others.setdefault(other, []).append(run)
            continue
        if state == "finished" and other:
            reused[other] = reused.get(other, 0) + 1
        (plan.finished if state == "finished" else plan.todo).append(run)
    if plan.finished:
        plan.remarks.append(
            f"{len(plan.finished)} of {len(runs)} run(s) are finished already and kept; to train them again "
            f"choose another name=..., or remove their folders in {runs[0].dir}"
        )
    for other, count in reused.items():
        plan.remarks.append(f"{count} of them by other code ({other}), as reuse_records=true asks")
    plan.remarks += begun_elsewhere(plan.todo)
    return plan
