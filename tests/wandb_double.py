"""A W&B server for tests, on 127.0.0.1: it keeps what the client sends, and knows only what these tests need.

It proves what the client sends, not what the real server makes of it. An operation it does not know is answered with an
error and kept in `unknown`, which `wandb_server` asserts to be empty: a new W&B version must not pass by accident.
"""

import base64
import gzip
import itertools
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

GOOD_KEY = "a" * 40
ENTITY = {"id": "RW50aXR5OjE=", "name": "tester"}


@dataclass
class ServerRun:
    """One run as the server knows it; `stream` holds the lines of each streamed file by line number."""

    id: str
    name: str
    fields: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    stream: dict[str, dict[int, str]] = field(default_factory=dict)
    exit_code: int | None = None

    @property
    def history(self) -> list[dict[str, Any]]:
        lines = self.stream.get("wandb-history.jsonl", {})
        return [json.loads(lines[number]) for number in sorted(lines)]

    @property
    def summary(self) -> dict[str, Any]:
        lines = self.stream.get("wandb-summary.json", {})
        found: dict[str, Any] = json.loads(lines[max(lines)]) if lines else {}
        return found

    @property
    def config_values(self) -> dict[str, Any]:
        return {key: item["value"] for key, item in self.config.items() if key != "_wandb"}


@dataclass
class ServerArtifact:
    """One artifact version; `files` maps names to the addresses they were uploaded to."""

    id: str
    fields: dict[str, Any]
    files: dict[str, str] = field(default_factory=dict)
    manifest_address: str = ""
    committed: bool = False


@dataclass
class ServerSweep:
    """A grid sweep: `waiting` holds the values of the runs that no agent has been given yet."""

    id: str
    project: str
    config: dict[str, Any]
    waiting: list[dict[str, Any]] = field(default_factory=list)
    given: int = 0

    def __post_init__(self) -> None:
        parameters = self.config["parameters"]
        values = [one["values"] if "values" in one else [one["value"]] for one in parameters.values()]
        self.waiting = [dict(zip(parameters, combination, strict=True)) for combination in itertools.product(*values)]

    def next_command(self) -> dict[str, Any]:
        if not self.waiting:
            return {"type": "exit"}
        self.given += 1
        args = {key: {"value": value} for key, value in self.waiting.pop(0).items()}
        program = self.config["program"]
        return {"type": "run", "run_id": f"{self.id}run{self.given}", "program": program, "args": args, "logs": []}


class Server(ThreadingHTTPServer):
    """The state of the double, and its GraphQL operations as methods named after them."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.runs: dict[str, ServerRun] = {}
        self.artifacts: dict[str, ServerArtifact] = {}
        self.uploads: dict[str, bytes] = {}
        self.sweeps: dict[str, ServerSweep] = {}
        self.agents: dict[str, ServerSweep] = {}
        self.views: list[dict[str, Any]] = []
        self.unknown: list[str] = []
        self.dead = False
        #: seconds that every answer takes
        self.delay_s = 0.0
        #: the account's quota is used up: new runs and more rows are refused
        self.quota_spent = False
        #: an upload to an address that begins so is the last thing that it sees
        self.dies_at_upload: str | None = None
        self._count = 0
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def kill(self) -> None:
        """Stop as a crashed server does: refuse new connections, answer nothing on open ones."""
        if not self.dead:
            self.dead = True
            self.shutdown()
            self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that the client drops are no news."""

    def new_id(self, kind: str) -> str:
        self._count += 1
        return base64.b64encode(f"{kind}:{self._count}".encode()).decode()

    def file_stream(self, run_name: str, body: dict[str, Any]) -> None:
        run = self.runs[run_name]
        for name, chunk in body.get("files", {}).items():
            lines = run.stream.setdefault(name, {})
            lines.update({chunk["offset"] + index: line for index, line in enumerate(chunk["content"])})
        if body.get("complete"):
            run.exit_code = body.get("exitcode")

    # --- GraphQL: the client at start-up

    def Viewer(self, variables: dict[str, Any]) -> Any:
        return {"viewer": {"id": "VXNlcjox", "entity": "tester", "username": "tester", "flags": "{}", "teams": None}}

    GetDefaultEntity = Viewer

    def ServerFeaturesQuery(self, variables: dict[str, Any]) -> Any:
        return {"serverInfo": {"features": []}}

    def OrganizationCoreWeaveOrganizationID(self, variables: dict[str, Any]) -> Any:
        return {"entity": {"organization": None}}

    # --- GraphQL: runs and their files

    def UpsertBucket(self, variables: dict[str, Any]) -> Any:
        known = [run for run in self.runs.values() if run.id == variables.get("id")]
        inserted = not known and variables["name"] not in self.runs
        if inserted:
            self.runs[variables["name"]] = ServerRun(self.new_id("Run"), variables["name"])
        run = known[0] if known else self.runs[variables["name"]]
        run.fields.update({key: value for key, value in variables.items() if value is not None})
        if variables.get("config"):
            run.config = json.loads(variables["config"])
        project = {"id": "UHJvamVjdDox", "name": run.fields["project"], "entity": ENTITY}
        bucket = {"id": run.id, "name": run.name, "displayName": run.fields.get("displayName"), "project": project}
        bucket |= {"description": None, "config": json.dumps(run.config), "sweepName": None, "historyLineCount": 0}
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def RunResumeStatus(self, variables: dict[str, Any]) -> Any:
        return {"model": None}  # no run of that id yet; the tests never continue one

    def CreateRunFiles(self, variables: dict[str, Any]) -> Any:
        run = variables["run"]
        files = [{"name": name, "uploadUrl": f"{self.url}/store/{run}/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": self.runs[run].id, "uploadHeaders": [], "files": files}}

    def Runs(self, variables: dict[str, Any]) -> Any:
        """Only the filter {"name": {"$in": [ids]}} is understood; any other counts as an unknown operation."""
        filters, project = json.loads(variables["filters"]), variables["project"]
        if list(filters) != ["name"] or list(filters["name"]) != ["$in"]:
            self.unknown.append(f"Runs with the filter {filters}")
        if project not in self._projects():
            return {"project": None}
        wanted = set(filters["name"]["$in"])
        found = [run for run in self.runs.values() if run.name in wanted and run.fields["project"] == project]
        edges = [{"node": self._run(run), "cursor": run.id} for run in found]
        page = {"endCursor": None, "hasNextPage": False}
        runs = {"edges": edges, "pageInfo": page}
        return {"project": {"internalId": "1", "runCount": len(found), "readOnly": False, "runs": runs}}

    def _run(self, run: ServerRun) -> dict[str, Any]:
        return {"id": run.id, "name": run.name, "displayName": run.fields.get("displayName"), "state": "finished"}

    # --- GraphQL: sweeps and their agents

    def UpsertSweep(self, variables: dict[str, Any]) -> Any:
        config, project = yaml.safe_load(variables["config"]), variables["projectName"]
        sweep = ServerSweep(f"sweep{len(self.sweeps) + 1:03d}", project, config)
        self.sweeps[sweep.id] = sweep
        answer = {"name": sweep.id, "project": {"id": "UHJvamVjdDox", "name": project, "entity": ENTITY}}
        return {"upsertSweep": {"sweep": answer, "configValidationWarnings": []}}

    def SweepWithRuns(self, variables: dict[str, Any]) -> Any:
        sweep = self.sweeps[variables["sweep"]]
        answer = {"id": sweep.id, "name": sweep.id, "config": yaml.safe_dump(sweep.config), "runs": {"edges": []}}
        return {"project": {"sweep": answer}}

    def CreateAgent(self, variables: dict[str, Any]) -> Any:
        agent = self.new_id("Agent")
        self.agents[agent] = self.sweeps[variables["sweep"]]
        return {"createAgent": {"agent": {"id": agent}}}

    def Heartbeat(self, variables: dict[str, Any]) -> Any:
        busy = json.loads(variables["runState"])
        commands = [] if busy else [self.agents[variables["id"]].next_command()]
        return {"agentHeartbeat": {"agent": {"id": variables["id"]}, "commands": json.dumps(commands)}}

    # --- GraphQL: reports and dashboards

    def ProjectInternalId(self, variables: dict[str, Any]) -> Any:
        known = variables["projectName"] in self._projects()
        return {"project": {"id": "UHJvamVjdDox", "internalId": "1"} if known else None}

    def _projects(self) -> list[str]:
        return sorted({run.fields["project"] for run in self.runs.values()})

    def GetProjects(self, variables: dict[str, Any]) -> Any:
        node = {"id": "x", "entityName": variables["entity"], "isBenchmark": False, "user": None}
        node |= {"__typename": "Project", "createdAt": "2026-01-01T00:00:00Z"}
        page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
        edges = [{"node": node | {"name": name}} for name in self._projects()]
        return {"models": {"pageInfo": page, "edges": edges}}

    def UpsertView(self, variables: dict[str, Any]) -> Any:
        self.views.append(variables)
        view = {"id": f"view{len(self.views)}", "name": variables["name"], "displayName": variables["displayName"]}
        view |= {"description": variables["description"], "type": variables["type"], "spec": variables["spec"]}
        project = {"id": "x", "name": variables["projectName"], "entityName": variables["entityName"]}
        return {"upsertView": {"view": view | {"project": project, "updatedAt": None}, "inserted": True}}

    UpsertView2 = UpsertView

    # --- GraphQL: artifacts

    def ArtifactType(self, variables: dict[str, Any]) -> Any:
        return {"project": {"artifact": None}}  # there is no earlier version of another type

    def CreateArtifact(self, variables: dict[str, Any]) -> Any:
        artifact = ServerArtifact(self.new_id("Artifact"), variables["input"])
        self.artifacts[artifact.id] = artifact
        sequence = {"latestArtifact": None}
        return {"createArtifact": {"artifact": {"id": artifact.id, "state": "PENDING", "artifactSequence": sequence}}}

    def _manifest(self, artifact: ServerArtifact) -> Any:
        file = {"id": "f", "name": "wandb_manifest.json", "displayName": "wandb_manifest.json", "uploadHeaders": []}
        return {"id": artifact.id, "file": file | {"uploadUrl": artifact.manifest_address}}

    def CreateArtifactManifest(self, variables: dict[str, Any]) -> Any:
        artifact = self.artifacts[variables["artifactID"]]
        artifact.manifest_address = f"{self.url}/store/manifest/{artifact.id}"
        return {"createArtifactManifest": {"artifactManifest": self._manifest(artifact)}}

    def UpdateArtifactManifest(self, variables: dict[str, Any]) -> Any:
        artifact = self.artifacts[variables["artifactManifestID"]]
        return {"updateArtifactManifest": {"artifactManifest": self._manifest(artifact)}}

    def CreateArtifactFiles(self, variables: dict[str, Any]) -> Any:
        edges = []
        for wanted in variables["input"]["artifactFiles"]:
            artifact, name = self.artifacts[wanted["artifactID"]], wanted["name"]
            artifact.files[name] = f"/store/artifact/{artifact.id}/{name}"
            node = {"id": self.new_id("File"), "name": name, "displayName": name, "uploadHeaders": []}
            node |= {"uploadUrl": self.url + artifact.files[name], "storagePath": artifact.files[name]}
            edges.append({"node": node | {"uploadMultipartUrls": None, "artifact": {"id": artifact.id}}})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def CommitArtifact(self, variables: dict[str, Any]) -> Any:
        artifact = self.artifacts[variables["artifactID"]]
        artifact.committed = True
        return {"commitArtifact": {"artifact": {"id": artifact.id, "digest": artifact.fields["digest"]}}}


class Handler(BaseHTTPRequestHandler):
    """HTTP: bodies in and out, the key check, and the way to the server's methods."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") == "chunked":
            body = b""
            while length := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(length)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
        return gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body

    def _answer(self, value: Any, code: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refused(self) -> bool:
        if self.server.dead:
            self.close_connection = True
            return True
        login = base64.b64decode(self.headers.get("Authorization", "").removeprefix("Basic ")).decode()
        if login.partition(":")[2] == GOOD_KEY:
            return False
        self._answer({"errors": [{"message": "user is not logged in"}]}, 401)
        return True

    def do_PUT(self) -> None:
        if self.server.dies_at_upload and self.path.startswith(self.server.dies_at_upload):
            threading.Thread(target=self.server.kill).start()
            self.close_connection = True
            return
        self.server.uploads[self.path] = self._body()  # uploads carry no key
        self._answer({})

    def do_POST(self) -> None:
        body = self._body()
        if self.path.startswith("/sdk/otel"):
            return self._answer({})
        time.sleep(self.server.delay_s)
        if self._refused():
            return None
        # What wandb.ai answers is not written down anywhere; 402 is what the code is for.
        if self.server.quota_spent and (b"UpsertBucket" in body or "/file_stream" in self.path):
            return self._answer({"errors": [{"message": "the storage quota of this account is used up"}]}, 402)
        if match := re.match(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
            self.server.file_stream(match[1], json.loads(body))
            return self._answer({"limits": {}})
        if self.path == "/graphql":
            return self._answer(self._graphql(json.loads(body)))
        self.server.unknown.append(f"POST {self.path}")
        return self._answer({}, 404)

    def _graphql(self, request: dict[str, Any]) -> dict[str, Any]:
        match = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
        operation = request.get("operationName") or (match[1] if match else "?")
        operation = operation[:1].upper() + operation[1:]  # wandb-workspaces says upsertView
        method = getattr(self.server, operation, None)
        if method is None:
            self.server.unknown.append(operation)
            return {"errors": [{"message": f"the double does not know {operation}"}], "data": None}
        return {"data": method(request.get("variables") or {})}


@contextmanager
def wandb_server() -> Iterator[Server]:
    """A running double; at the end, that it was asked nothing it does not know is asserted."""
    server = Server()
    try:
        yield server
    finally:
        server.kill()
    assert server.unknown == []


@contextmanager
def isolated_wandb(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No key, no settings and no folder of the user is seen, no server is found; W&B's global state ends with it."""
    import wandb

    for name in ("API_KEY", "MODE", "RUN_ID", "SWEEP_ID", "SWEEP_PARAM_PATH", "PROJECT", "ENTITY"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    for name in ("DIR", "DATA_DIR", "CACHE_DIR", "CONFIG_DIR"):
        (folder / name.lower()).mkdir(parents=True)
        monkeypatch.setenv(f"WANDB_{name}", str(folder / name.lower()))
    monkeypatch.setenv("NETRC", str(folder / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing listens there
    wandb.teardown()  # an earlier test may have left a singleton that remembers another environment
    yield
    wandb.teardown()


@contextmanager
def logged_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A running double that W&B finds, with the key that it takes."""
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", GOOD_KEY)
        yield server
