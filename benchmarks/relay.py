"""Simulates a distant database: relays a port to a Unix socket with a delay."""

import multiprocessing
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.support.serving import free_port


def _pump(source: socket.socket, sink: socket.socket, delay: float) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 20):
            time.sleep(delay)  # more precise than an event loop's timers of 1 ms
            sink.sendall(data)
    for end in (source, sink):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def _serve(port: int, upstream: str, delay: float) -> None:
    with socket.create_server(("127.0.0.1", port)) as server:
        while True:
            client, _ = server.accept()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            database = socket.socket(socket.AF_UNIX)
            database.connect(upstream)
            threading.Thread(target=_pump, args=(client, database, delay), daemon=True).start()
            threading.Thread(target=_pump, args=(database, client, 0), daemon=True).start()


@contextmanager
def relay(upstream: str, round_trip: float) -> Iterator[int]:
    """Relay a port to a Unix socket in a separate process, delaying each request by `round_trip` seconds."""
    port = free_port()
    process = multiprocessing.get_context("spawn").Process(
        target=_serve, args=(port, upstream, round_trip), daemon=True
    )
    process.start()
    while True:
        with suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port)).close()
            break
        time.sleep(0.01)
    try:
        yield port
    finally:
        process.terminate()
        process.join()
