"""uvicorn's HTTP protocol with the door in front of its parser: `uvicorn … --http todo_api.uvicorn_http:Protocol`.

To parse a request and to call the application for it costs several times what a refusal costs. Beyond capacity, that
is most of what a server does, so plain requests are refused from the bytes that have arrived. All other requests, and
under other servers all of them, are refused by the door itself, with the same response.
"""

import asyncio
import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from todo_api.door import STATE_KEY, Door
from todo_api.errors import Busy
from todo_api.inputs import DISCONNECTED_KEY
from todo_api.middleware import new_request_id

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application

# The head of a request that is understood without a parser: with a target that needs no decoding, each header on a line
# of its own, and none that affects the connection or the body's framing but one `Content-Length`. `X-Request-ID` and
# `Origin` are only accepted in their valid forms. `(?(3)(?!))` fails if the third group has matched before, so `Origin`
# comes once at most. Possessive, so that the time is linear in the length.
_PLAIN_REQUEST = re.compile(
    rb"""
    (?:GET|POST|PUT|PATCH|DELETE)[ ]/api/(?P<owner>[A-Za-z0-9._~-]++)/tasks(?:[/?][!-~]{0,8000}+)?+[ ]HTTP/1\.1\r\n
    (?:
        (?i:X-Request-ID):[ ]?(?P<id>[A-Za-z0-9._-]{1,128}+)\r\n
    |
        (?i:Origin):[ ]?(?(3)(?!))(?P<origin>[!-~]++)\r\n
    |
        (?i:Content-Length):[ ]?(?(4)(?!))(?P<length>[0-9]{1,7}+)\r\n
    |
        (?i:Connection):[ ]?(?i:keep-alive)\r\n
    |
        (?!(?i:X-Request-ID|Origin|Content-Length|Connection|Proxy-Connection|Expect|Transfer-Encoding):)
        [!#$%&'*+.^_`|~0-9A-Za-z-]++:[\t -~\x80-\xff]*+\r\n
    )*+
    \r\n
    """,
    re.VERBOSE,
)
MOST_DELAYED = 5000  # a delayed refusal is a timer and some bytes here
_STATUS_LINE = b"HTTP/1.1 %d %b\r\n" % (Busy.status, HTTPStatus(Busy.status).phrase.encode())


class Protocol(HttpToolsProtocol):
    """Refuse a plain request like the door, before it is parsed, if it arrives as a whole and alone.

    Also note in a request's state that its client has disconnected. Otherwise, and for other applications, it is
    uvicorn's own protocol.
    """

    _door: Door | None = None
    _in_message = False
    _delayed = b""  # a refusal to send later; meanwhile, nothing is read
    _refused_at = 0.0  # time of the event loop
    _served: RequestResponseCycle | None = None  # the last request given to the application, and its state
    _state: dict[str, Any]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Look up the door, unless the server sends a `Connection` header, which only uvicorn's own protocol obeys."""
        super().connection_made(cast("asyncio.Transport", transport))
        if not any(name == b"connection" for name, _ in self.config.encoded_headers):
            self._door = self.app_state.get(STATE_KEY)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: "ASGI3Application") -> None:
        self._served = cycle
        self._state = cycle.scope["state"]  # before a middleware can replace it
        super()._start_asgi_task(cycle, app)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the request that is served that its client has disconnected; uvicorn tells the last one received."""
        if self._door and self._served and not self._served.response_complete:
            self._state[DISCONNECTED_KEY] = True
            self._served.disconnected = True
            self._served.message_event.set()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # after an error too: the timer refers to this protocol

    def on_message_begin(self) -> None:
        """Note that the parser has begun a request."""
        self._in_message = True
        super().on_message_begin()

    def on_message_complete(self) -> None:
        """Note that the parser has ended a request."""
        self._in_message = False
        super().on_message_complete()

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection, unless a request was refused since the timeout was set."""
        left = self._refused_at + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self.timeout_keep_alive_task = self.loop.call_later(left, self.timeout_keep_alive_handler)
        else:
            super().timeout_keep_alive_handler()

    def shutdown(self) -> None:
        """Send a delayed refusal before the connection is closed."""
        self._send_delayed()
        super().shutdown()

    def data_received(self, data: bytes) -> None:
        """Refuse a request, or pass the data to the parser."""
        self._send_delayed()  # with TLS, data may arrive although reading is paused
        if not (self._door and self._door.admission.is_near_limit and self._refuse(self._door, data)):
            super().data_received(data)

    def _refuse(self, door: Door, data: bytes) -> bool:
        """Refuse the request in the data, and return True; or return False."""
        if self._in_message or (self.cycle and not self.cycle.response_complete) or self.flow.write_paused:
            return False
        request = _PLAIN_REQUEST.match(data)
        if not request or request.end() + int(request["length"] or 0) != len(data):
            return False
        owner = request["owner"].decode()
        lines = door.header_lines.get(request["origin"])
        if lines is None or door.root_path != self.root_path:  # the application is mounted in another
            return False
        if not door.admission.refuses(owner):
            door.admission.announce(owner)
            return False
        door.admission.record_refusal()
        server_lines = b"".join([b"%b: %b\r\n" % pair for pair in self.server_state.default_headers])
        identifier = request["id"] or new_request_id()
        refusal = b"%b%b%bx-request-id: %b\r\n\r\n%b" % (_STATUS_LINE, server_lines, lines, identifier, door.body)
        if delay := door.delay(owner, MOST_DELAYED):
            door.delayed += 1
            self._unset_keepalive_if_required()
            self.flow.pause_reading()
            self._delayed = refusal
            self.loop.call_later(delay, self._send_delayed)
        else:
            self._send(refusal)
        return True

    def _send_delayed(self) -> None:
        if self._door and self._delayed:
            refusal, self._delayed = self._delayed, b""
            self._door.delayed -= 1
            if not self.transport.is_closing():  # uvloop's raises when it is written to after that
                self._send(refusal)

    def _send(self, refusal: bytes) -> None:
        self.transport.write(refusal)
        if self.timeout_keep_alive_task:  # to set it anew would cost as much as to build the refusal
            self._refused_at = self.loop.time()
            self.server_state.total_requests += 1
        else:
            self.on_response_complete()  # which also reads on
