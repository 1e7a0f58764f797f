"""A W&B server for tests, on 127.0.0.1: it keeps what the client sends, and knows only what these tests need.

It proves what the client sends, not what the real server makes of it. An operation it does not know is answered with an
error and kept in `unknown`, which `wandb_server` asserts to be empty: a new W&B version must not pass by accident.
"""

import base64
import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

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


class Server(ThreadingHTTPServer):
    """The state of the double, and its GraphQL operations as methods named after them."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.runs: dict[str, ServerRun] = {}
        self.artifacts: dict[str, ServerArtifact] = {}
        self.uploads: dict[str, bytes] = {}
        self.unknown: list[str] = []
        self.dead = False
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
        self.server.uploads[self.path] = self._body()  # uploads carry no key
        self._answer({})

    def do_POST(self) -> None:
        body = self._body()
        if self.path.startswith("/sdk/otel"):
            return self._answer({})
        if self._refused():
            return None
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
        method = getattr(self.server, operation, None) if operation[:1].isupper() else None
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
