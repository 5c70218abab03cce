"""Two stand-ins for servers of OpenAI's API: each says who answered, counts what it was asked, and can fail."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Stand(ThreadingHTTPServer):
    """Answers every completion with ``name``, or with ``status`` where that is not 200. ``asked`` holds what came: the
    path, the headers in lower case, and the JSON."""

    daemon_threads = True

    def __init__(self, name: str):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.name, self.status = name, 200
        self.asked: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self._open: list[socket.socket] = []

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.append(request)
        super().process_request(request, client_address)

    def hang_up(self) -> None:
        """Connections that others keep open end too."""
        for each in self._open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Stand

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        message = {"role": "assistant", "content": self.server.name}
        answer = {
            "id": f"x-{len(self.server.asked)}",
            "object": "chat.completion",
            "created": 1,
            "model": body.get("model", "m"),
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }
        if body.get("stream") and self.server.status == 200:
            delta = {"index": 0, "delta": message, "finish_reason": "stop"}
            chunk = {**answer, "object": "chat.completion.chunk", "choices": [delta]}
            self._send(200, f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode(), "text/event-stream")
            return
        data = answer if self.server.status == 200 else {"error": {"message": "no", "type": "server_error"}}
        self._send(self.server.status, json.dumps(data).encode(), "application/json")

    def _send(self, status: int, data: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *values: Any) -> None:
        """Nobody reads it."""


def stop(stand: Stand) -> None:
    """As a killed server: nobody listens any more."""
    stand.shutdown()
    stand.server_close()
    stand.hang_up()


@contextmanager
def two_servers() -> Iterator[tuple[Stand, Stand]]:
    """The pruned model's and the dense one's."""
    stands = Stand("smaller"), Stand("dense")
    for each in stands:
        threading.Thread(target=each.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield stands
    finally:
        for each in stands:
            stop(each)
