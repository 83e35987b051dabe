"""A chat endpoint on localhost with the HTTP interface of a judge's endpoint."""

import contextlib
import itertools
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Endpoint:
    """Answers each question, after `delay` seconds, with the result of `behave`: a reply, or (status, body).

    Attributes:
        url: its address.
        asked: bodies of all requests.
        keys: Authorization headers of all requests.
    """

    def __init__(self, behave: Callable[[str], str | tuple[int, str]], delay: float = 0) -> None:
        self.behave, self.delay = behave, delay
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.url = ""

    def respond(self, handler: BaseHTTPRequestHandler) -> None:
        """Records one request and sends its answer."""
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        self.asked.append(body)
        self.keys.append(handler.headers.get("Authorization"))
        time.sleep(self.delay)
        said = self.behave(body["messages"][-1]["content"]) if handler.path == "/v1/chat/completions" else (404, "")
        reply = json.dumps({"choices": [{"message": {"role": "assistant", "content": said}}]})
        status, text = (200, reply) if isinstance(said, str) else said
        handler.send_response(status)
        handler.end_headers()
        handler.wfile.write(text.encode())


@contextmanager
def serve(behave: Callable[[str], str | tuple[int, str]], delay: float = 0) -> Iterator[Endpoint]:
    """Yields an endpoint that serves until the block ends."""
    endpoint = Endpoint(behave, delay)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            endpoint.respond(self)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # clients may disconnect early
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    endpoint.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def serve_bytes(*parts: bytes, pause: float = 0, endless: bool = False) -> Iterator[str]:
    """Yields the address of a server that answers every request with these bytes.

    Args:
        parts: sent one after another.
        pause: seconds after each part.
        endless: repeats the last part without end.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def answer(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            for part in itertools.chain(parts, itertools.repeat(parts[-1]) if endless else ()):
                connection.sendall(part)
                if ended.wait(pause) if pause else ended.is_set():
                    return
            connection.shutdown(socket.SHUT_WR)  # closing with unread input would reset the connection
            connection.settimeout(1)
            while connection.recv(65536):
                pass

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def answers_in(question: str) -> tuple[str, str]:
    """Returns the two answers in a judge's question."""
    answers = r"\[Answer A\]\n(.*)\n\[End of answer A\].*\[Answer B\]\n(.*)\n\[End of answer B\]"
    found = re.search(answers, question, re.DOTALL)
    return found[1], found[2]


def prefers_longer(question: str) -> str:
    """Replies as a judge that prefers the longer answer, or a tie for equal lengths."""
    first, second = map(len, answers_in(question))
    return "Mine is [[C]]" if first == second else f"The verdict: [[{'A' if first > second else 'B'}]]."
