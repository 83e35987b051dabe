"""Any answer of an endpoint gives a reply or one line, within the time limit and without the key."""

import json
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codyra_llm.evaluation.judge.config import JudgeConfig
from codyra_llm.evaluation.judge.endpoint import EndpointJudge
from tests.endpoint import serve_bytes
from tests.fuzz.outcome import outcome, thorough
from tests.fuzz.strategies import HOSTILE, files_like

KEY = "sk-a-secret-key-0123456789"
REPLY = {"choices": [{"message": {"role": "assistant", "content": "[[A]]"}, "finish_reason": "stop"}], "usage": {}}
bodies = files_like(REPLY) | st.just(json.dumps({"error": f"the key {KEY} is wrong"}).encode())
headers = st.lists(
    st.sampled_from(
        [
            "Content-Type: application/json",
            "Content-Encoding: gzip",
            "Content-Encoding: deflate",
            "Transfer-Encoding: chunked",
            "Content-Length: -1",
            "Content-Length: 99999999999",
            "Retry-After: 1e300",
            "Location: http://elsewhere.invalid/v1",
            "Location: //[",
            "Set-Cookie: \x1b[31m",
            f"X-Echo: {KEY}",
            "no colon",
        ]
    ),
    max_size=3,
)


@thorough
@given(status=st.sampled_from([200] * 6 + [204, 302, 307, 401, 404, 429, 500, 999]), head=headers, body=bodies)
def test_a_reply(status: int, head: list[str], body: bytes) -> None:
    lines = "\r\n".join([f"HTTP/1.1 {status} \x1b[31m{KEY}", *head, "", ""]).encode()
    with serve_bytes(lines + body) as url, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOME_KEY", KEY)
        config = JudgeConfig("", "", (), judge=url, api_key_variable="SOME_KEY", retries=0, timeout=2.0)
        replies, _ = outcome(lambda: EndpointJudge(config)(["?"]), KEY)
        for reply in replies or ():
            assert reply.verdict in ("A", "B", "C", None)
            assert KEY not in reply.text and KEY not in (reply.problem or "")


@thorough
@given(st.sampled_from(HOSTILE) | st.text(max_size=20))
def test_an_address(address: str) -> None:
    if "invalid" not in address:
        config = JudgeConfig("", "", (), judge=f"http://{address}", retries=0, timeout=2.0)
        with pytest.MonkeyPatch.context() as patch:  # no DNS queries
            patch.setattr(socket, "getaddrinfo", lambda *_, **__: (_ for _ in ()).throw(socket.gaierror("unknown")))
            outcome(lambda: EndpointJudge(config)(["?"]))
