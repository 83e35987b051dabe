"""A fake Hugging Face hub that accepts a repository, large files and a commit, and keeps what it receives."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "a" * 40


@dataclass
class Hub:
    """The state of the fake hub.

    Attributes:
        url: its address.
        created: requests that created repositories.
        large: content of uploaded large files, by SHA-256.
        files: content of committed files, by path.
        refused: if True, every POST is answered with an error.
    """

    url: str
    created: list[dict[str, Any]] = field(default_factory=list)
    large: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    refused: bool = False


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.hub.refused:
            self.reply({"error": "You don't have the rights to create a model here"}, 403)
        elif self.path == "/api/repos/create":
            self.hub.created.append(json.loads(body))
            made = self.hub.created[-1]
            self.reply({"url": f"{self.hub.url}/{made.get('organization', 'me')}/{made['name']}"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            self.reply({"files": [file | {"uploadMode": mode(file["path"]), "shouldIgnore": False} for file in files]})
        elif self.path.endswith("/info/lfs/objects/batch"):
            self.reply({"transfer": "basic", "objects": list(map(self.to_upload, json.loads(body)["objects"]))})
        elif "/commit/" in self.path:
            for line in body.splitlines():
                keep(self.hub, **json.loads(line))
            self.reply({"commitUrl": f"{self.hub.url}/me/x/commit/{COMMIT}", "commitOid": COMMIT})
        else:
            self.reply({"errors": [], "warnings": []})

    def do_PUT(self) -> None:
        self.hub.large[self.path.rpartition("/")[2]] = self.rfile.read(int(self.headers["Content-Length"]))
        self.reply({})

    def do_GET(self) -> None:
        self.reply({"id": "me/x", "sha": COMMIT, "siblings": [], "name": "me"})

    def to_upload(self, file: dict[str, Any]) -> dict[str, Any]:
        return file | {"actions": {"upload": {"href": f"{self.hub.url}/large/{file['oid']}", "header": {}}}}

    def reply(self, content: dict[str, Any], status: int = 200) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def serve() -> Iterator[Hub]:
    """Yields a fake hub that serves until the block ends."""
    hub = Hub("")
    with ThreadingHTTPServer(("127.0.0.1", 0), type("OfHub", (Handler,), {"hub": hub})) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield hub
        server.shutdown()


def mode(path: str) -> str:
    return "lfs" if path.endswith(".safetensors") else "regular"


def keep(hub: Hub, key: str, value: dict[str, Any]) -> None:
    if key == "file":
        hub.files[value["path"]] = base64.b64decode(value["content"])
    elif key == "lfsFile":
        hub.files[value["path"]] = hub.large[value["oid"]]
