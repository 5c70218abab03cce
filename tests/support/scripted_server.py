"""An OpenAI-compatible server that does what a script says, at the times it says."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Script:
    """What one request gets. ``pieces`` are (seconds to wait, bytes); ``status`` other than 200 sends ``pieces`` as the
    body at once; ``reset`` ends the connection with RST after them, ``stall`` seconds pass before the end."""

    pieces: tuple[tuple[float, bytes], ...] = ()
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    reset: bool = False
    stall: float = 0.0
    length: bool = False


def event(data: Any) -> bytes:
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return f"data: {text}\n\n".encode()


def chunk(text: str, finish: str | None = None, *, chat: bool = False) -> bytes:
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
    choice |= {"delta": {"content": text}} if chat else {"text": text}
    return event({"model": "scripted", "choices": [choice]})


def usage(prompt: int, completion: int, **more: Any) -> bytes:
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, **more}
    return event({"model": "scripted", "choices": [], "usage": counts})


def answer(
    tokens: int, *, ttft: float, tpot: float, prompt: int = 8, a_chunk: int = 1, finish: str = "length"
) -> Script:
    """``tokens`` tokens, the first after ``ttft`` seconds and each other one ``tpot`` later, ``a_chunk`` in a chunk
    (the first one alone), then the counts and ``[DONE]``."""
    pieces = [(ttft, chunk(" w", finish if tokens == 1 else None))]
    left = tokens - 1
    while left > 0:
        taken = min(a_chunk, left)
        left -= taken
        pieces.append((tpot * taken, chunk(" w" * taken, None if left else finish)))
    return Script((*pieces, (0.0, usage(prompt, tokens)), (0.0, event("[DONE]"))))


@dataclass
class Scripted:
    """A server under way: ``seen`` holds the bodies of all requests, ``at`` when each came, ``busiest`` the most that
    were answered at once."""

    url: str
    seen: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    at: list[float] = field(default_factory=list)
    now: int = 0
    busiest: int = 0
    pages: dict[str, str] = field(default_factory=dict)


@contextmanager
def scripted(
    script: Callable[[dict[str, Any], int], Script], *, slots: int = 0, pages: dict[str, str] | None = None
) -> Iterator[Scripted]:
    """A server on the loopback interface. ``script`` is called with the body and the number of each request; ``slots``
    answers at a time are given (0: any number), the others wait; ``pages`` are answered to GET."""
    room = threading.Semaphore(slots) if slots else None
    lock = threading.Lock()
    made = Scripted("")
    made.pages = {"/v1/models": json.dumps({"data": [{"id": "scripted"}]}), **(pages or {})}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            page = made.pages.get(self.path)
            data = (page or "").encode()
            self.send_response(200 if page is not None else 404)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                number = len(made.seen)
                made.seen.append(body)
                made.headers.append(dict(self.headers.items()))
                made.at.append(time.perf_counter())
                made.now += 1
                made.busiest = max(made.busiest, made.now)
            try:
                if room is not None:
                    room.acquire()
                try:
                    self._play(script(body, number))
                finally:
                    if room is not None:
                        room.release()
            except OSError:
                self.close_connection = True
            finally:
                with lock:
                    made.now -= 1

        def _play(self, played: Script) -> None:
            begin = time.perf_counter()
            self.send_response(played.status)
            for name, value in played.headers:
                self.send_header(name, value)
            if played.status != 200 or played.length:
                data = b"".join(each for _, each in played.pieces)
                time.sleep(sum(wait for wait, _ in played.pieces))
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
                return
            self.send_header("content-type", "text/event-stream")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            self.wfile.flush()
            due = begin
            for wait, data in played.pieces:
                due += wait
                time.sleep(max(0.0, due - time.perf_counter()))
                self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                self.wfile.flush()
            time.sleep(played.stall)
            if played.reset:
                # RST in place of FIN.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.shutdown(socket.SHUT_RDWR) if played.stall < 0 else self.connection.close()
                self.close_connection = True
                return
            self.wfile.write(b"0\r\n\r\n")

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

        def handle_error(self, *_: Any) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()


def free_port() -> int:
    """A port of the loopback interface that nobody listens to."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        port: int = made.getsockname()[1]
        return port
