"""A chat endpoint on this machine that speaks HTTP as a judge's does."""

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
    """Answers with what `behave` makes of a question: its reply, or (status, body), after `delay` seconds.

    Attributes:
        url: where it is. asked: the bodies of all requests. keys: their Authorization headers.
    """

    def __init__(self, behave: Callable[[str], str | tuple[int, str]], delay: float = 0) -> None:
        self.behave, self.delay = behave, delay
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.url = ""

    def respond(self, handler: BaseHTTPRequestHandler) -> None:
        """One request."""
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
    """An endpoint, up within the block and down after it."""
    endpoint = Endpoint(behave, delay)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            endpoint.respond(self)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # a client that has gone away
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
    """The address of a server that answers every request with these bytes, with a pause after each part of them."""
    listener = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def answer(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            for part in itertools.chain(parts, itertools.repeat(parts[-1]) if endless else ()):
                connection.sendall(part)
                if ended.wait(pause) if pause else ended.is_set():
                    return
            connection.shutdown(socket.SHUT_WR)  # what is left unread when it closes would take the answer back
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
    """The two answers that a judge is asked about."""
    answers = r"\[Answer A\]\n(.*)\n\[End of answer A\].*\[Answer B\]\n(.*)\n\[End of answer B\]"
    found = re.search(answers, question, re.DOTALL)
    return found[1], found[2]


def prefers_longer(question: str) -> str:
    """A judge who counts."""
    first, second = map(len, answers_in(question))
    return "Mine is [[C]]" if first == second else f"The verdict: [[{'A' if first > second else 'B'}]]."
