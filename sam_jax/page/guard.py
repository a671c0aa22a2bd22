"""Who may ask, and how much: everything that is refused before the server looks at it.

Any page in a browser can send requests to 127.0.0.1, and a name of its own can be made to lead there (DNS rebinding).
So the Host that is asked for must be the server's own, and the Origin, where there is one, the same.
"""

import asyncio
import ipaddress
import json
import secrets
import socket
from collections.abc import Collection
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "::1")

MOST_BYTES = 16 << 20
"""Of a request's body, but for uploads, which are counted as they are written."""

SLOWEST = 30.0
"""Seconds that the next piece of a body may take."""

COOKIE = "sam-jax-token"

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class _RefusedError(Exception):
    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


class Guard:
    """Refuses strangers' requests and endless ones, and answers the others by an application."""

    def __init__(self, app: ASGIApp, *, host: str, token: str | None) -> None:
        """Stand before an application.

        Args:
          app: the application.
          host: the address that the server listens at.
          token: what everybody has to show; None for none.
        """
        self._app, self._token = app, token
        self._names: Collection[str] = LOOPBACK
        self._takes_addresses = host not in LOOPBACK
        if self._takes_addresses:
            self._names = {*LOOPBACK, host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return

        begun = False

        async def send_with_headers(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            headers = Headers(scope=scope)
            self._check_place(scope, headers)
            if self._token is not None and await self._admit(scope, headers, send_with_headers):
                return
            is_upload = scope["method"] == "POST" and scope["path"] == "/api/images"
            checked = _patient(receive) if is_upload else await _whole(_patient(receive), headers)
        except _RefusedError as refused:
            await _answer(send_with_headers, refused.status, {"detail": refused.detail})
            return
        try:
            await self._app(scope, checked, send_with_headers)
        except asyncio.CancelledError:  # the server ends, and does not wait for this answer
            if not begun:
                await _answer(send_with_headers, 503, {"detail": "The server was ended."})

    def _check_place(self, scope: Scope, headers: Headers) -> None:
        """Refuse requests to other names, and those that another page sends."""
        host = headers.get("host", "")
        name = _name_of(host)
        if name not in self._names and not (self._takes_addresses and _is_address(name)):
            raise _RefusedError(421, f"This server does not answer for {host[:100]!r}.")
        origin = headers.get("origin")
        if origin is not None and origin != f"{scope['scheme']}://{host}":
            raise _RefusedError(403, "Pages of other servers may not ask this one.")
        site = headers.get("sec-fetch-site", "none")
        if scope["path"] != "/" and site not in ("same-origin", "none"):
            raise _RefusedError(403, "Pages of other servers may not ask this one.")

    async def _admit(self, scope: Scope, headers: Headers, send: Send) -> bool:
        """Refuse who has no token. Who opens the page with it gets it as a cookie; then the answer is sent already."""
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if scope["path"] == "/" and self._is_token(given):
            # Lax, as the address may be opened from a mail; the Origin is checked anyway.
            cookie = f"{COOKIE}={self._token}; HttpOnly; SameSite=Lax; Path=/"
            await _answer(send, 303, {}, [("location", "/"), ("set-cookie", cookie)])
            return True
        cookies = SimpleCookie(headers.get("cookie", ""))
        shown = cookies[COOKIE].value if COOKIE in cookies else ""
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        if not self._is_token(shown) and not (kind.lower() == "bearer" and self._is_token(bearer)):
            raise _RefusedError(
                401, "A token is needed: open the address that the server printed, or send it as Bearer."
            )
        return False

    def _is_token(self, text: str) -> bool:
        return self._token is not None and secrets.compare_digest(text.encode(), self._token.encode())


def _name_of(host: str) -> str:
    """The name in a Host header, without its port."""
    name = host.lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _patient(receive: Receive) -> Receive:
    """Receive a body that may be slow, but not endlessly."""
    more = True

    async def next_message() -> Message:
        nonlocal more
        if not more:
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), SLOWEST)
        except TimeoutError:
            more = False
            return {"type": "http.disconnect"}
        more = message.get("more_body", False)
        return message

    return next_message


async def _whole(receive: Receive, headers: Headers) -> Receive:
    """Receive a body within its bound before anything looks at it."""
    if int(headers.get("content-length", "0") or 0) > MOST_BYTES:
        raise _RefusedError(413, f"A request has at most {MOST_BYTES:,} bytes.")
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _RefusedError(408, "The request did not end.")
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MOST_BYTES:
            raise _RefusedError(413, f"A request has at most {MOST_BYTES:,} bytes.")
    sent = False

    async def again() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": bytes(body), "more_body": False}

    return again


async def _answer(send: Send, status: int, content: dict[str, Any], headers: Any = ()) -> None:
    body = json.dumps(content).encode()
    fields = [("content-type", "application/json"), ("content-length", str(len(body))), *headers]
    raw = [(name.encode(), value.encode("latin-1")) for name, value in fields]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
