"""A server on this machine that speaks the Hugging Face Hub's protocol, and that can refuse, cut short and be gone."""

import contextlib
import dataclasses
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from urllib.parse import unquote

Files = dict[str, bytes]


@dataclasses.dataclass
class FakeRepository:
    """Files by the commit that they are of, and commits by the revisions that name them."""

    commits: dict[str, Files]
    revisions: dict[str, str]
    gated: bool = False

    def commit(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.revisions.get(revision)


class HubServer(http.server.ThreadingHTTPServer):
    """Serves `repositories` by name."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, FakeRepository] = {}
        self.sent: list[str] = []  # files whose bytes were sent
        self.cut = 0  # bytes that are left out at the end of every file
        self.broken = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: HubServer

    def do_HEAD(self) -> None:
        self.answer(self.path, whole=False)

    def do_GET(self) -> None:
        self.answer(self.path, whole=True)

    def answer(self, path: str, whole: bool) -> None:
        parts = [unquote(part) for part in path.partition("?")[0].strip("/").split("/")]
        asks_for_file = parts[0] != "api"
        owner, name, _, revision, *rest = parts if asks_for_file else parts[2:]
        repository = self.server.repositories.get(f"{owner}/{name}")
        if self.server.broken:
            self.refuse(503, "")
        elif repository is None:
            self.refuse(401, "RepoNotFound")
        elif (commit := repository.commit(revision)) is None:
            self.refuse(404, "RevisionNotFound")
        elif not asks_for_file:
            files = [{"rfilename": name} for name in repository.commits[commit]]
            self.send(json.dumps({"id": f"{owner}/{name}", "sha": commit, "siblings": files}).encode())
        elif repository.gated:
            self.refuse(403, "GatedRepo")
        elif (file := "/".join(rest)) not in repository.commits[commit]:
            self.refuse(404, "EntryNotFound")
        else:
            self.send_file(file, repository.commits[commit][file], commit, whole)

    def send_file(self, name: str, content: bytes, commit: str, whole: bool) -> None:
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        if whole:
            self.server.sent.append(name)
            self.send(content[: len(content) - self.server.cut], **headers)
        else:
            self.send(b"", **headers | {"Content-Length": str(len(content))})

    def send(self, body: bytes, **headers: str) -> None:
        self.send_response(200)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def running() -> Iterator[HubServer]:
    with HubServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
