"""What is refused: other pages, other names, too much, and what means nothing. Then the server answers as before."""

import asyncio
import importlib
import json
import socket
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from sam_jax.page import gallery, guard
from sam_jax.page.gallery import Gallery
from sam_jax.page.guard import Guard


@pytest.fixture
def client(server: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{server.address}/api", timeout=60) as client:
        yield client
        assert client.get("/health").status_code == 200


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb(side: int) -> bytes:
    """A PNG file of side x side pixels in few bytes."""
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(side * (1 + side // 8)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil:80", "", "192.168.0.1"])
def test_other_names_are_not_answered(client: httpx.Client, host: str) -> None:
    assert client.get("/images", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", ["localhost", "localhost:9000", "127.0.0.1:1", "[::1]:80"])
def test_own_names_are_answered(client: httpx.Client, host: str) -> None:
    assert client.get("/images", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:1"},
        {"sec-fetch-site": "cross-site"},
    ],
)
def test_other_pages_may_not_ask(client: httpx.Client, server: Any, headers: dict[str, str]) -> None:
    for path in ("/images", f"/images/{server.ids[0]}/picture"):
        assert client.get(path, headers=headers).status_code == 403
    assert client.post("/images", content=b"x", headers=headers).status_code == 403
    assert client.put(f"/images/{server.ids[0]}/objects", json={"objects": []}, headers=headers).status_code == 403


@pytest.mark.parametrize("name", ["..", "../../etc/passwd", "%2e%2e%2fetc%2fpasswd", "..%5c..%5cx", "%00", "é"])
def test_names_are_never_paths(server: Any, name: str) -> None:
    for path in (f"/api/images/{name}", f"/api/images/{name}/objects", f"/api/jobs/{name}", f"/static/{name}"):
        with socket.create_connection(server.address.removeprefix("http://").split(":")) as raw:  # as it is written
            raw.sendall(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
            answer = raw.makefile("rb").read()
        assert answer.split()[1] in (b"404", b"400", b"405"), answer


@pytest.mark.parametrize(
    "asked",
    [
        {"points": [[1, 1]] * 10_000, "labels": [1] * 10_000},
        {"points": [[1, 1]] * 33, "labels": [1] * 33},
        {"points": [[1, 1]], "labels": [1, 0]},
        {"points": [[1, 1]], "labels": [7]},
        {"points": [[1]], "labels": [1]},
        {"points": [[float("nan"), 1]], "labels": [1]},
        {"points": [[float("inf"), 1]], "labels": [1]},
        {"points": [[1e300, 1]], "labels": [1]},
        {"points": [[-50, 1]], "labels": [1]},
        {"points": [["a" * 100_000, 1]], "labels": [1]},
        {"box": [10, 10, 5, 5]},
        {"box": [0, 0, 9999, 9999]},
        {"mask": {"size": [4, 4], "counts": "`1"}},
        {"mask": {"size": [512, 512], "counts": "o" * 100}},
        {"mask": {"size": [60000, 60000], "counts": "0"}},
        {},
        {"surprise": 1},
    ],
)
def test_prompts_that_mean_nothing(client: httpx.Client, server: Any, asked: dict[str, Any]) -> None:
    content = json.dumps({"objects": [asked]})
    answer = client.post(
        f"/images/{server.ids[0]}/masks", content=content, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 422
    assert 0 < len(answer.json()["detail"]) <= 500


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 422),
        (b"[" * 100_000, 400),
        (b'{"objects": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
        (b'{"objects": []}', 422),
        (b"\xff\xfe", 400),
        (b" " * (guard.MOST_BYTES + 1), 413),
    ],
)
def test_bodies_that_are_no_question(client: httpx.Client, server: Any, content: bytes, status: int) -> None:
    answer = client.post(
        f"/images/{server.ids[0]}/masks", content=content, headers={"content-type": "application/json"}
    )
    assert answer.status_code in (status, 422), answer.text
    if status == 413:
        assert answer.status_code == 413


def test_a_body_without_a_length_is_bounded_as_well(client: httpx.Client, server: Any) -> None:
    pieces = (bytes(1 << 20) for _ in range(20))
    headers = {"content-type": "application/json"}
    assert client.post(f"/images/{server.ids[0]}/masks", content=pieces, headers=headers).status_code == 413


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GIF89a",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"II*\0" + bytes(50),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        bomb(8000),
        bomb(20_000),
        bomb(60_000)[:5000],
    ],
    ids=["empty", "short", "zeros", "tiff", "postscript", "svg", "8000", "20000", "60000"],
)
def test_files_that_are_no_images_or_too_large(client: httpx.Client, content: bytes) -> None:
    answer = client.post("/images?name=x.png", content=content)
    assert answer.status_code == 422
    assert "/tmp" not in answer.json()["detail"]


def test_a_file_of_too_many_bytes(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("sam_jax.page.app"), "MOST_BYTES", 1000)
    assert client.post("/images", content=bytes(2000)).status_code == 413


def test_objects_of_another_size_are_not_kept(client: httpx.Client, server: Any) -> None:
    good = {"size": [512, 512], "counts": "PPP8", "score": 1}
    before = client.get(f"/images/{server.ids[0]}/objects").json()
    for mask in ({**good, "size": [5, 5]}, {**good, "counts": "P"}, {**good, "counts": "o" * 50}):
        one = {"id": 1, "name": "x", "colour": 0, "masks": [mask]}
        answer = client.put(f"/images/{server.ids[0]}/objects", json={"objects": [one]})
        assert answer.status_code == 422
    assert client.get(f"/images/{server.ids[0]}/objects").json() == before


def test_a_slow_client_holds_nobody_up(client: httpx.Client, server: Any) -> None:
    with socket.create_connection(server.address.removeprefix("http://").split(":")) as slow:
        slow.sendall(b"POST /api/images HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\nabc")
        asked = {"objects": [{"points": [[9, 9]], "labels": [1]}]}
        assert client.post(f"/images/{server.ids[0]}/masks", json=asked).status_code == 200


def test_there_is_room_for_so_many_uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "MOST_UPLOADS", 1)
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    images = Gallery([], uploads)
    for i in range(2):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
    first = images.add("a", tmp_path / "0.png")
    with pytest.raises(gallery.FullError, match="1 uploaded"):
        images.add("b", tmp_path / "1.png")
    images.remove(first.id)
    assert list(uploads.iterdir()) == []


def test_an_answer_that_the_end_of_the_server_cuts_off_says_so() -> None:
    async def cut_off(scope: Any, receive: Any, send: Any) -> None:
        raise asyncio.CancelledError

    client = TestClient(Guard(cut_off, host="127.0.0.1", token=None), base_url="http://127.0.0.1")
    answer = client.get("/api/export/coco")
    assert (answer.status_code, answer.json()) == (503, {"detail": "The server was ended."})


class TestToken:
    """A server that other machines can reach asks for a token."""

    @pytest.fixture
    def client(self) -> TestClient:
        async def hello(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"hello"})

        return TestClient(Guard(hello, host="0.0.0.0", token="secret"), base_url="http://192.168.0.1")

    def test_without_it_nothing_is_answered(self, client: TestClient) -> None:
        assert client.get("/").status_code == 401
        assert client.get("/api/images").status_code == 401
        assert client.get("/?token=wrong", follow_redirects=False).status_code == 401
        assert client.get("/api/images", headers={"authorization": "Bearer wrong"}).status_code == 401
        assert client.get("/api/images", headers={"cookie": f"{guard.COOKIE}=wrong"}).status_code == 401
        assert client.get("/api/images?token=secret").status_code == 401

    def test_programs_send_it(self, client: TestClient) -> None:
        assert client.get("/api/images", headers={"authorization": "Bearer secret"}).text == "hello"

    def test_the_page_keeps_it_as_a_cookie(self, client: TestClient) -> None:
        opened = client.get("/?token=secret", follow_redirects=False)
        assert (opened.status_code, opened.headers["location"]) == (303, "/")
        assert "HttpOnly" in opened.headers["set-cookie"]
        assert client.get("/api/images").text == "hello"

    def test_names_of_others_are_not_answered(self, client: TestClient) -> None:
        headers = {"authorization": "Bearer secret", "host": "evil.example"}
        assert client.get("/api/images", headers=headers).status_code == 421
