"""Several hosts, and several addresses of one host: each has its own timeout."""

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import asyncpg
import pytest

from tests.database.neon.conftest import Neon
from tests.support.api import error
from tests.support.postgres import settings_for
from tests.support.proxy import FaultProxy
from todo_api.database.connecting import Connector
from todo_api.migrations import migrate


def silent_listener(stack: ExitStack, host: str, port: int = 0) -> int:
    """Listen on a port that never accepts: its backlog is full, so the kernel drops further connection attempts."""
    listener = stack.enter_context(socket.socket())
    listener.bind((host, port))
    listener.listen(0)
    address: tuple[str, int] = listener.getsockname()
    for _ in range(4):
        waiting = stack.enter_context(socket.socket())
        waiting.setblocking(False)  # noqa: FBT003  # the standard library's signature
        with suppress(BlockingIOError):
            waiting.connect(address)
    return address[1]


@pytest.fixture
def silent_port() -> Iterator[int]:
    with ExitStack() as stack:
        yield silent_listener(stack, "127.0.0.1")


@pytest.mark.parametrize("order", ["{silent},{good}", "{good},{silent}", "127.0.0.1:1,{silent},{good}"])
def test_unresponsive_host_does_not_block_next(direct: Neon, silent_port: int, order: str) -> None:
    hosts = order.format(silent=f"127.0.0.1:{silent_port}", good=f"127.0.0.1:{direct.proxy.port}")
    direct.url = f"postgresql://postgres@{hosts}/todo?target_session_attrs=read-write"
    alice = direct.serve(pool_size=2)()

    started = time.monotonic()
    assert alice.create()["user_id"] == alice.id
    assert time.monotonic() - started < 5

    migrate(settings_for(direct.url))
    assert time.monotonic() - started < 10


def test_lasting_error_of_one_host_ends_search(direct: Neon) -> None:
    with FaultProxy(direct.proxy.port) as refusing:
        refusing.refusals.append(("28P01", "password authentication failed"))
        direct.url = f"postgresql://postgres@127.0.0.1:{refusing.port},127.0.0.1:{direct.proxy.port}/todo"

        async def connect() -> None:
            with pytest.raises(asyncpg.InvalidPasswordError):
                await Connector(direct.url).connect()
            assert direct.proxy.connections == 0, "as libpq, which tries another host only if one is unavailable"
            await (await Connector(direct.url).connect()).close()

        asyncio.run(connect())


def test_hosts_in_query_parameters_work(direct: Neon, silent_port: int) -> None:
    ports = f"{silent_port},{direct.proxy.port}"
    direct.url = (
        f"postgresql://postgres@/todo?host=127.0.0.1,127.0.0.1&port={ports}&target_session_attrs=prefer-standby"
    )

    assert direct.serve(pool_size=1)().create()


def test_mute_host_does_not_block_next(direct: Neon) -> None:
    with FaultProxy(direct.proxy.port) as mute:
        mute.freeze()
        direct.url = f"postgresql://postgres@127.0.0.1:{mute.port},127.0.0.1:{direct.proxy.port}/todo"
        alice = direct.serve(pool_size=1)()

        started = time.monotonic()
        assert alice.create()
        assert time.monotonic() - started < 5
        assert mute.connections == 1
        direct.proxy.abort_connections()
        assert alice.create()
        assert mute.connections == 1, "the host that answered last is the first to be tried"
        mute.unfreeze()


def test_unresponsive_address_does_not_block_next(direct: Neon, monkeypatch: pytest.MonkeyPatch) -> None:
    look_up = socket.getaddrinfo

    def two_addresses(host: Any, port: Any, *args: Any, **options: Any) -> Any:
        if host != "localhost":
            return look_up(host, port, *args, **options)
        return [look_up(address, port, *args, **options)[0] for address in ("127.0.0.2", "127.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", two_addresses)
    with ExitStack() as stack:
        silent_listener(stack, "127.0.0.2", direct.proxy.port)
        direct.url = f"postgresql://postgres@localhost:{direct.proxy.port}/todo"
        alice = direct.serve(pool_size=1)()

        started = time.monotonic()
        assert alice.create()
        assert time.monotonic() - started < 3
        direct.proxy.abort_connections()
        started = time.monotonic()
        assert alice.create()
        assert time.monotonic() - started < 1, "the address that answered last is the first to be tried"


def test_unsupported_address_family_is_skipped(direct: Neon, monkeypatch: pytest.MonkeyPatch) -> None:
    look_up = socket.getaddrinfo

    def unsupported_first(*args: Any, **options: Any) -> Any:
        found = look_up(*args, **options)
        return [(socket.AF_APPLETALK, *info[1:]) for info in found] + found  # as IPv6 where the system has none

    monkeypatch.setattr(socket, "getaddrinfo", unsupported_first)

    assert direct.serve(pool_size=1)().create()


def test_wrong_server_role_is_unavailable(direct: Neon) -> None:
    direct.url += "?target_session_attrs=standby"
    alice = direct.serve(wake_seconds=0.5)()

    assert alice.client.get("/health/ready").status_code == 503
    started = time.monotonic()
    answer = alice.ask("GET")

    assert (answer.status_code, answer.json()) == (500, error("Internal server error"))
    assert int(answer.headers["retry-after"]) > 0
    assert 0.2 < time.monotonic() - started < 3
