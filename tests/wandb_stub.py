"""A W&B server on loopback: what it was sent, by run, and faults on request. Standard library and PyYAML.

Enough of its GraphQL and file stream for wandb-core (online, resume, `wandb sync`), `wandb.Api` (runs, filters, scans,
reports), wandb-workspaces' `Report.save`, alerts, and a grid sweep's agent.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import itertools
import json
import re
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = "stub"
HISTORY, EVENTS, SUMMARY = "wandb-history.jsonl", "wandb-events.jsonl", "wandb-summary.json"
NOW = "2026-01-01T00:00:00"
KEPT = {  # of upsertBucket's variables, and what the API calls them
    "displayName": "displayName", "config": "config", "groupName": "group", "jobType": "jobType", "tags": "tags",
    "notes": "notes", "state": "state", "host": "host", "commit": "commit", "summaryMetrics": "summaryMetrics",
    "program": "program", "sweep": "sweepName",
}  # fmt: skip


@dataclass
class StubRun:
    """A run as the server has it; a file's lines by their offsets, as the file stream sends them."""

    project: str
    id: str
    attributes: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[int, str]] = field(default_factory=dict)

    def lines(self, name: str) -> list[str]:
        lines = self.files.get(name, {})
        return [lines[offset] for offset in sorted(lines)]

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines(HISTORY)]

    @property
    def steps(self) -> list[int]:
        """`trainer/global_step` of each row, in the order of the rows."""
        return [row["trainer/global_step"] for row in self.rows]

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads(self.attributes.get("summaryMetrics") or "{}")

    @property
    def config(self) -> dict[str, Any]:
        return {
            key: entry["value"] for key, entry in json.loads(self.attributes.get("config") or "{}").items()
        }

    @property
    def state(self) -> str:
        return self.attributes["state"]


@dataclass
class StubReport:
    project: str
    id: str
    attributes: dict[str, Any]

    @property
    def spec(self) -> dict[str, Any]:
        return json.loads(self.attributes["spec"])


@dataclass
class StubSweep:
    project: str
    config: str
    todo: list[dict[str, Any]]
    program: str
    runs: list[str] = field(default_factory=list)


class WandbStub:
    """`with WandbStub() as server:` serves at `server.url` until `stop`; `start` goes on at the same port.

    Faults: `fail_next(n, status)`, `delay` (seconds before each answer), `wrong_key` (every request is a 401),
    `lost_after` (history rows after which no connection is answered any more), `lost_at` (a mutation that is taken in
    and not answered, nor is anything after it), `slow_after` (rows after which every answer takes a minute), `hanging`
    (a query by its name, never answered). An id in `deleted` is refused for ever, as W&B does; so is an entity that is
    not `ENTITY`.
    """

    def __init__(self) -> None:
        self.runs: dict[str, StubRun] = {}
        self.sweeps: dict[str, StubSweep] = {}
        self.reports: dict[str, StubReport] = {}
        self.deleted: set[str] = set()
        self.alerts: list[dict[str, Any]] = []
        self.requests: Counter[str] = Counter()
        self.delay, self.wrong_key = 0.0, False
        self.lost_after: int | None = None
        self.lost_at: str | None = None
        self.slow_after: int | None = None
        self.hanging: str | None = None
        self._projects: dict[str, str] = {}
        self._failing: list[int] = []
        self._lock, self._port = threading.RLock(), 0
        self._numbers = itertools.count(1)
        self._server: ThreadingHTTPServer | None = None

    def __enter__(self) -> WandbStub:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self._server = _Server(("127.0.0.1", self._port), _handler(self))
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """From here on connections are refused, and those that are open are cut."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    @property
    def up(self) -> bool:
        return self._server is not None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def environment(self, **more: str) -> dict[str, str]:
        """What sends wandb here, and nowhere else."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": "0" * 40, "WANDB_MODE": "online", **more}

    def fail_next(self, n: int, status: int = 500) -> None:
        self._failing = [status] * n

    # What comes in

    def fault(self) -> int | None:
        """The status that a request is refused with, if it is."""
        delay = self.delay
        if self.slow_after is not None and any(
            len(run.rows) >= self.slow_after for run in self.runs.values()
        ):
            delay = 60.0
        time.sleep(delay)
        if self.wrong_key:
            return 401
        with self._lock:
            return self._failing.pop() if self._failing else None

    def graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any] | None:
        """What it answers; None once the server is to be lost. Raises RefusedError."""
        named = re.search(r"(?:query|mutation)\s+(\w+)", query)
        name = named[1] if named else "?"
        if name == self.hanging:
            self.requests[f"{name} (hanging)"] += 1
            time.sleep(3600)
        with self._lock:
            self.requests[name] += 1
            for what, answer in ANSWERS:
                if re.search(what, query):
                    found = answer(self, variables)
                    break
            else:
                self.requests["unknown"] += 1
                found = {}
            if name == self.lost_at:
                self.lost_at = None
                self._lose()
                return None
            return found

    def _lose(self) -> None:
        threading.Thread(target=self.stop, daemon=True).start()

    def file_stream(self, project: str, run_id: str, sent: dict[str, Any]) -> bool:
        """Take lines in; False once the server is to be lost."""
        with self._lock:
            self.requests["file_stream"] += 1
            run = self._run(project, run_id)
            for name, chunk in (sent.get("files") or {}).items():
                lines = run.files.setdefault(name, {})
                for place, line in enumerate(chunk["content"]):
                    lines[chunk["offset"] + place] = line
                    if name == SUMMARY:
                        run.attributes["summaryMetrics"] = line
            if sent.get("complete"):
                run.attributes["state"] = "failed" if sent.get("exitcode") else "finished"
            if self.lost_after is not None and len(run.rows) >= self.lost_after:
                self.lost_after = None
                self._lose()
                return False
            return True

    # What goes out

    def _run(self, project: str, run_id: str) -> StubRun:
        if run_id not in self.runs:
            given = {
                "state": "running",
                "config": "{}",
                "summaryMetrics": "{}",
                "tags": [],
                "displayName": run_id,
            }
            self.runs[run_id] = StubRun(project, run_id, given)
        return self.runs[run_id]

    def _upsert_bucket(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        if variables.get("entity") not in (None, "", ENTITY):
            raise RefusedError(404, f"entity {variables['entity']} not found during upsertBucket")
        if variables["name"] in self.deleted:
            raise RefusedError(
                409, f"run {variables['name']} was previously created and deleted; try a new run name"
            )
        new = variables["name"] not in self.runs
        run = self._run(variables.get("project") or "uncategorized", variables["name"])
        for key, name in KEPT.items():
            if variables.get(key) is not None:
                run.attributes[name] = variables[key]
        return {"upsertBucket": {"bucket": self._bucket(run, {}), "inserted": new}}

    def _project(self, name: str) -> dict[str, Any]:
        number = self._projects.setdefault(name, str(len(self._projects) + 1))
        return {
            "id": f"UHJvamVjdDo{number}", "internalId": number, "name": name, "entityName": ENTITY, "createdAt": NOW,
            "isBenchmark": False, "readOnly": False, "tags": [], "entity": {"id": "e1", "name": ENTITY},
            "access": "ENTITY_READ", "user": None, "isPublished": False,
        }  # fmt: skip

    def _bucket(self, run: StubRun, variables: Mapping[str, Any]) -> dict[str, Any]:
        history, events = run.lines(HISTORY), run.lines(EVENTS)
        low, high = variables.get("minStep") or 0, variables.get("maxStep") or 2**62
        keys = {
            key: {
                "typeCounts": [{"type": "number", "count": 1}],
                "monotonic": key == "_step",
                "previousValue": value,
            }
            for row in run.rows
            for key, value in row.items()
        }
        telemetry = (json.loads(run.attributes["config"]).get("_wandb") or {}).get("value", {}).get("t")
        specs = variables.get("specs") or ([variables["spec"]] if variables.get("spec") else [])
        asked = [json.loads(spec)["keys"] for spec in specs]
        number = f"Run:v1:{run.id}:{run.project}:{ENTITY}".encode()
        return {
            **dict.fromkeys(("group", "jobType", "commit", "notes", "description", "host", "sweepName")),
            **run.attributes,
            "id": base64.b64encode(number).decode(), "name": run.id, "project": self._project(run.project),
            "projectId": self._project(run.project)["internalId"], "readOnly": False, "stopped": False, "sweep": None,
            "user": {"name": ENTITY, "username": ENTITY}, "createdAt": NOW, "heartbeatAt": NOW,
            "historyLineCount": len(history), "eventsLineCount": len(events),
            "logLineCount": len(run.files.get("output.log", {})),
            "historyTail": json.dumps(history[-1:]), "eventsTail": json.dumps(events[-1:]), "systemMetrics": "{}",
            "wandbConfig": json.dumps({"t": telemetry}),
            "history": [line for line in history if low <= json.loads(line).get("_step", 0) < high],
            "events": events,
            "historyKeys": {"sets": [], "keys": keys, "lastStep": run.rows[-1]["_step"] if history else -1},
            "parquetHistory": {"parquetUrls": [], "liveData": run.rows},
            "sampledHistory": [
                [{key: row[key] for key in wanted} for row in run.rows if set(wanted) <= row.keys()] for wanted in asked
            ],
            "fileCount": 0, "files": _connection([]),
        }  # fmt: skip

    def _create_run_files(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        base = f"{self.url}/storage/{variables['run']}/"
        files = [{"name": name, "uploadUrl": base + urllib.parse.quote(name)} for name in variables["files"]]
        return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}

    def _alert(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        self.alerts.append(dict(variables))
        return {"notifyScriptableRunAlert": {"success": True}}

    def _upsert_model(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        project = self._project(variables.get("name") or variables.get("model") or "")
        return {"upsertModel": {"project": project, "model": project, "inserted": True}}

    def _viewer(self, _: Mapping[str, Any]) -> dict[str, Any]:
        team = {"id": "t1", "name": ENTITY}
        viewer = {
            "id": "VXNlcjox", "name": ENTITY, "username": ENTITY, "entity": ENTITY, "email": "s@t.ub", "admin": False,
            "flags": "{}", "deletedAt": None, "accountType": "", "photoUrl": None, "apiKeys": {"edges": []},
            "teams": _connection([team]), "defaultEntity": {"id": "e1", "name": ENTITY}, "organizations": [],
        }  # fmt: skip
        return {"viewer": viewer}

    def _server_info(self, _: Mapping[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": [], "cliVersionInfo": {}, "latestLocalVersionInfo": None}}

    def _models(self, _: Mapping[str, Any]) -> dict[str, Any]:
        found = _connection([self._project(name) for name in list(self._projects)])
        return {"models": found, "projects": found, "entity": {"projects": found}}

    def _entity(self, _: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "entity": {
                "id": "e1",
                "name": ENTITY,
                "isTeam": False,
                "xxhashDigestsEnabled": False,
                "organization": None,
            }
        }

    def _model_query(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        name = variables.get("project") or variables.get("projectName") or ""
        return {"model": self._with_runs(name, variables.get("name"), variables)}

    def _project_query(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        name = variables.get("project") or variables.get("projectName") or variables.get("name") or ""
        if name not in self._projects:
            return {"project": None}
        run_id = variables.get("name") or variables.get("run") or variables.get("runName")
        return {"project": self._with_runs(name, run_id, variables)}

    def _with_runs(self, name: str, run_id: str | None, variables: Mapping[str, Any]) -> dict[str, Any]:
        run = self.runs.get(run_id or "")
        bucket = None if run is None or run.project != name else self._bucket(run, variables)
        wanted = json.loads(variables.get("filters") or "{}")
        runs = [
            self._bucket(other, variables)
            for other in self.runs.values()
            if other.project == name and _matches(other.attributes, wanted)
        ]
        reports = [
            {"id": report.id, "user": None, **report.attributes}
            for report in self.reports.values()
            if report.project == name
        ]
        asked = variables.get("sweep") or variables.get("sweepName") or ""
        sweep = None
        if asked in self.sweeps:
            sweep = {
                "id": asked, "name": asked, "method": "grid", "state": "RUNNING", "description": "",
                "config": self.sweeps[asked].config, "createdAt": NOW, "heartbeatAt": NOW, "updatedAt": NOW,
                "earlyStopJobRunning": False, "controller": None, "scheduler": None, "runs": _connection([]),
                "bestLoss": None,
            }  # fmt: skip
        return self._project(name) | {
            "bucket": bucket, "run": bucket, "runs": _connection(runs), "runCount": len(runs), "sweep": sweep,
            "allViews": _connection(reports), "sweeps": _connection([]),
            "artifactType": None, "artifact": None, "artifactCollection": None,
        }  # fmt: skip

    def _upsert_view(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """A report; an id that it does not know is refused."""
        number = variables.get("id")
        if number is not None and number not in self.reports:
            raise RefusedError(404, f"view {number} not found during upsertView")
        if number is None:
            number = base64.b64encode(f"View:{next(self._numbers)}".encode()).decode()
            self.reports[number] = StubReport(variables["projectName"], number, {"createdAt": NOW})
        report = self.reports[number]
        kept = ("name", "displayName", "description", "type", "spec")
        report.attributes |= {key: variables[key] for key in kept} | {"updatedAt": NOW}
        view = {"id": number, "project": self._project(report.project), **report.attributes}
        return {"upsertView": {"view": view, "inserted": variables.get("id") is None}}

    # Sweeps

    def _upsert_sweep(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        import yaml

        sweep_id = variables.get("id") or f"sweep{next(self._numbers)}"
        if variables.get("config"):
            config = yaml.safe_load(variables["config"])
            grid = {
                key: given.get("values", [given.get("value")]) for key, given in config["parameters"].items()
            }
            todo = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
            project = variables.get("projectName") or "uncategorized"
            self.sweeps[sweep_id] = StubSweep(project, variables["config"], todo, config.get("program") or "")
        project = self._project(self.sweeps[sweep_id].project)
        return {
            "upsertSweep": {"sweep": {"name": sweep_id, "project": project}, "configValidationWarnings": []}
        }

    def _create_agent(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        return {"createAgent": {"agent": {"id": variables["sweep"]}}}

    def _agent_heartbeat(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        sweep = self.sweeps[variables["id"]]
        busy = any(json.loads(variables.get("runState") or "{}").values())
        commands: list[dict[str, Any]] = [] if busy else [{"type": "exit"}]
        if sweep.todo and not busy:
            run_id = f"{variables['id']}run{next(self._numbers)}"
            sweep.runs.append(run_id)
            given = {key: {"value": value} for key, value in sweep.todo.pop(0).items()}
            commands = [
                {
                    "type": "run",
                    "run_id": run_id,
                    "sweep_id": variables["id"],
                    "args": given,
                    "program": sweep.program,
                }
            ]
        return {"agentHeartbeat": {"agent": {"id": variables["id"]}, "commands": json.dumps(commands)}}


class RefusedError(Exception):
    """An HTTP status, and what the server says."""


def _matches(attributes: Mapping[str, Any], filters: Mapping[str, Any]) -> bool:
    """Whether a run is among those that `wandb.Api.runs(filters=...)` asks for: values, and `$in`."""
    return all(
        attributes.get(key) in wanted["$in"] if isinstance(wanted, dict) else attributes.get(key) == wanted
        for key, wanted in filters.items()
    )


ANSWERS: list[tuple[str, Callable[[WandbStub, dict[str, Any]], dict[str, Any]]]] = [
    (r"upsertView\(", WandbStub._upsert_view),
    (r"upsertBucket\(", WandbStub._upsert_bucket),
    (r"createRunFiles\(", WandbStub._create_run_files),
    (r"notifyScriptableRunAlert\(", WandbStub._alert),
    (r"upsertModel\(", WandbStub._upsert_model),
    (r"upsertSweep\(", WandbStub._upsert_sweep),
    (r"createAgent\(", WandbStub._create_agent),
    (r"agentHeartbeat\(", WandbStub._agent_heartbeat),
    (r"serverInfo", WandbStub._server_info),
    (r"\bviewer\b", WandbStub._viewer),
    (r"\b(models|projects)\(", WandbStub._models),
    (r"\bproject\(", WandbStub._project_query),
    (r"\bmodel\(", WandbStub._model_query),
    (r"entity\(", WandbStub._entity),
]


def _connection(nodes: list[Any]) -> dict[str, Any]:
    edges = [{"node": node, "cursor": str(place)} for place, node in enumerate(nodes)]
    return {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._open: set[Any] = set()

    def get_request(self) -> tuple[Any, Any]:
        request = super().get_request()
        self._open.add(request[0])
        return request

    def server_close(self) -> None:
        """A server that is lost answers nobody, also over connections that are kept open."""
        super().server_close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(2)
            connection.close()

    def handle_error(self, *_: object) -> None:
        """wandb-core drops its connections when it ends."""


def _handler(stub: WandbStub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, values: Mapping[str, Any], status: int = 200) -> None:
            data = json.dumps(values).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _handle(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            if (status := stub.fault()) is not None:
                self._answer({"errors": [{"message": f"injected {status}"}]}, status)
                return
            path = urllib.parse.unquote(self.path.partition("?")[0])
            if path == "/graphql":
                sent = json.loads(body)
                try:
                    found = stub.graphql(sent["query"], sent.get("variables") or {})
                except RefusedError as error:
                    code, message = error.args
                    self._answer({"errors": [{"message": message}]}, code)
                    return
                if found is not None:
                    self._answer({"data": found})
            elif path.endswith("/file_stream"):
                _, _, _, project, run_id, _ = path.split("/")
                if stub.file_stream(project, run_id, json.loads(body)):
                    self._answer({"exitcode": None, "limits": {}})
            elif path.startswith("/storage/"):
                self._answer({})
            else:
                stub.requests[f"404 {path}"] += 1
                self._answer({}, 404)

        do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = _handle

    return Handler
