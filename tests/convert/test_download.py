"""Downloads against a server on this machine that can lie, break off, and be gone."""

import dataclasses
import hashlib
import http.server
import threading
from pathlib import Path

import pytest

from sam_jax.convert.download import PUBLISHED, Published, Source, fetch, locate
from sam_jax.errors import CheckpointError

CONTENT = bytes(range(256)) * 5000  # more than one chunk of the downloader


class Server(http.server.ThreadingHTTPServer):
    """Sends `body` for every path, and promises `promised` bytes."""

    body = CONTENT
    promised = len(CONTENT)
    requests = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        self.server.requests += 1
        if self.path.endswith("missing.pth"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(self.server.promised))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def published(server) -> Published:
    return Published(f"{server.url}/sam.pth", f"sha256:{hashlib.sha256(CONTENT).hexdigest()}")


def assert_works_again(published: Published, folder: Path) -> None:
    assert fetch(published, folder).read_bytes() == CONTENT
    assert [file.name for file in folder.iterdir()] == ["sam.pth"]


def test_a_file_is_downloaded_once(server, published, tmp_path):
    assert_works_again(published, tmp_path)
    assert_works_again(published, tmp_path)
    assert server.requests == 1


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
@pytest.mark.parametrize("size", [None, len(CONTENT)])
def test_a_digest_is_checked_by_its_algorithm(algorithm, size, published, tmp_path):
    digest = f"{algorithm}:{hashlib.new(algorithm, CONTENT).hexdigest()}"
    assert_works_again(dataclasses.replace(published, digest=digest, size=size), tmp_path)
    wrong = dataclasses.replace(published, digest=f"{algorithm}:{hashlib.new(algorithm, b'').hexdigest()}", size=size)
    with pytest.raises(CheckpointError, match="Could not download"):
        fetch(wrong, tmp_path)


def test_a_damaged_copy_in_the_cache_is_replaced(server, published, tmp_path):
    (tmp_path / "sam.pth").write_bytes(CONTENT[:-1])
    assert_works_again(published, tmp_path)
    assert server.requests == 1


def test_a_file_with_another_hash_is_refused_and_removed(server, published, tmp_path):
    server.body = CONTENT[:-1] + b"?"
    with pytest.raises(CheckpointError) as error:
        fetch(published, tmp_path)
    for part in (published.url, published.digest.removeprefix("sha256:"), hashlib.sha256(server.body).hexdigest()):
        assert part in str(error.value)
    assert list(tmp_path.iterdir()) == []
    server.body = CONTENT
    assert_works_again(published, tmp_path)


def test_a_transfer_that_breaks_off_leaves_nothing(server, published, tmp_path):
    server.body = CONTENT[: len(CONTENT) // 2]
    with pytest.raises(CheckpointError, match=r"Could not download sam\.pth from http"):
        fetch(published, tmp_path)
    assert list(tmp_path.iterdir()) == []
    server.body = CONTENT
    assert_works_again(published, tmp_path)


def test_a_failed_download_keeps_no_file_from_an_interrupt(server, published, tmp_path, monkeypatch):
    monkeypatch.setattr("sam_jax.convert.download._Bar.update", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        fetch(published, tmp_path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert_works_again(published, tmp_path)


def test_no_server_and_no_file_are_one_clear_error(server, published, tmp_path):
    missing = dataclasses.replace(published, url=f"{server.url}/missing.pth")
    with pytest.raises(CheckpointError, match="404"):
        fetch(missing, tmp_path)
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as closed:
        nobody = f"http://127.0.0.1:{closed.server_port}/sam.pth"
    with pytest.raises(CheckpointError, match="refused"):
        fetch(dataclasses.replace(published, url=nobody), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_name_is_downloaded_unless_something_of_that_name_is_there(published, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(PUBLISHED, "sam_vit_b", published)
    monkeypatch.chdir(tmp_path)
    downloaded = locate("sam_vit_b")
    assert downloaded == Source(tmp_path / "cache" / "sam-jax" / "sam.pth", "sam.pth")
    assert downloaded.path.read_bytes() == CONTENT
    Path("sam_vit_b").mkdir()
    assert locate("sam_vit_b").path == Path("sam_vit_b")
    with pytest.raises(CheckpointError, match=r"no sam_vit_x, and no published checkpoint .*sam_vit_b, sam_vit_l"):
        locate("sam_vit_x")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_entries_are_well_formed(name):
    entry = PUBLISHED[name]
    assert entry.url.startswith("https://")
    assert entry.file.startswith(name)
    algorithm, _, digits = entry.digest.partition(":")
    assert len(bytes.fromhex(digits)) == {"sha256": 32, "md5": 16}[algorithm]
    assert entry.size is None or entry.size > 2**24  # the decoder alone has 16 MB
