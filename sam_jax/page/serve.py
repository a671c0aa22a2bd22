"""Serving the application until Ctrl-C."""

import contextlib
import socket
import threading
import webbrowser

import uvicorn
from fastapi import FastAPI

MOST_CONNECTIONS = 64
"""At the same time; others are told to come again."""


def serve(app: FastAPI, bound: socket.socket, address: str | None) -> None:
    """Answer requests until Ctrl-C.

    Args:
      app: the application.
      bound: what `listen` returned.
      address: what to open in a browser; None for nothing.
    """
    if address is not None:
        threading.Timer(0.5, webbrowser.open, [address]).start()
    settings = uvicorn.Config(
        app, log_level="warning", limit_concurrency=MOST_CONNECTIONS, timeout_graceful_shutdown=3, server_header=False
    )
    with contextlib.suppress(KeyboardInterrupt):  # raised again when all is closed
        uvicorn.Server(settings).run([bound])


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address; port 0 takes a free one.

    Raises:
      OSError: if the address is not this machine's, or the port is taken.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
        bound.listen()  # who comes before the server is ready waits
    except OSError as error:
        bound.close()
        raise OSError(f"Port {port} of {host} cannot be used: {error.strerror}. --port names another.") from error
    return bound
