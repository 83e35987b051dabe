"""A slow, endless, hostile or redirecting endpoint; and secrets, which are neither printed nor written to disk."""

import base64
import gzip
import json
from pathlib import Path
from urllib.parse import quote

import pytest

from codyra_llm.errors import UserError
from codyra_llm.evaluation.judge.endpoint import LARGEST_REPLY, read_address, read_key
from codyra_llm.text import scrub
from tests.endpoint import serve, serve_bytes
from tests.unit.judge.test_judges import judge_of

HEAD = b"HTTP/1.1 200 OK\r\n"
KEY = "sk-SECRET+KEY/123"


def reply(content: object) -> bytes:
    return json.dumps({"choices": [{"message": {"content": content}}]}).encode()


def whole(body: bytes, *headers: bytes) -> bytes:
    return b"\r\n".join([HEAD.strip(), b"Content-Length: %d" % len(body), *headers, b"", body])


SLOW = {
    "body byte by byte": ([HEAD + b"Content-Length: 99999\r\n\r\n", b" "], 0.1),
    "header byte by byte": ([HEAD, b"X"], 0.1),
    "status line byte by byte": ([b"H"], 0.1),
    "endless headers": ([HEAD, b"X-Y: z\r\n"], 0.02),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("how", SLOW)
def test_the_time_limit_is_for_the_whole_exchange(how: str) -> None:
    parts, pause = SLOW[how]
    with serve_bytes(*parts, pause=pause, endless=True) as url:
        (found,) = judge_of(url, retries=0, timeout=1.0)(["?"])
        assert found.problem == "no answer within 1 s" or "header" in found.problem


BOMB = gzip.compress(b" " * 200_000_000)
LARGE = {
    "endless body": ([HEAD + b"\r\n", b" " * 65536], True),
    "endless chunks": ([HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b" " * 65536 + b"\r\n"], True),
    "gzip bomb": ([whole(BOMB, b"Content-Encoding: gzip")], False),
}


@pytest.mark.parametrize("how", LARGE)
def test_a_reply_has_a_largest_size(how: str) -> None:
    parts, endless = LARGE[how]
    with serve_bytes(*parts, endless=endless) as url:
        (found,) = judge_of(url, retries=0, timeout=20.0)(["?"])
        assert found.problem == f"a reply of more than {LARGEST_REPLY // 2**20} MB"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "it is "}, {"type": "text", "text": "[[B]]"}], "it is [[B]]"),
        ([{"type": "thinking"}, {"type": "text", "text": "[[B]]"}], "[[B]]"),
    ],
)
def test_a_reply_in_parts(content: object, text: str) -> None:
    with serve_bytes(whole(reply(content))) as url:
        (found,) = judge_of(url)(["?"])
        assert (found.verdict, found.text) == ("B", text)


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b"\xff\xfe", b'{"choices": {"0": 1}}', b"null", reply([1]), reply(3), b""]
)
def test_a_reply_that_is_none(body: bytes) -> None:
    with serve_bytes(whole(body)) as url:
        (found,) = judge_of(url, retries=0)(["?"])
        assert (found.verdict, found.problem) == (None, None)


def test_what_is_shown_of_a_reply_is_printable() -> None:
    with serve_bytes(b"HTTP/1.1 401 no\r\n\r\n\x1b[31mred\x1b]0;title\x07") as url:
        with pytest.raises(UserError) as error:
            judge_of(url)(["?"])
        assert str(error.value).isprintable() and "red" in str(error.value)


def test_the_query_of_an_address_stays() -> None:
    assert read_address("https://h/v1?api-version=2") == "https://h/v1/chat/completions?api-version=2"
    assert read_address("https://h/v1/chat/completions/?a=b") == "https://h/v1/chat/completions?a=b"
    assert read_address("http://[::1]:8000") == "http://[::1]:8000/chat/completions"


@pytest.mark.parametrize(
    "address",
    ["http://", "http://h:99999/v1", "http://h:x/v1", "http://[::1/v1", "http://" + "n" * 300, "http://a..b/v1",
     "http://h h/v1", "http://h/\x00", "http://\ud800/", "http:///v1"],
)  # fmt: skip
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(UserError, match="is no address"):
        judge_of(address)


@pytest.mark.parametrize("address", ["http://me:hunter2@h/v1", "http://hunter2@h/v1", "https://h/v1?api_key=hunter2"])
def test_an_address_with_a_secret_is_refused_without_saying_it(address: str) -> None:
    with pytest.raises(UserError) as error:
        judge_of(address)
    assert "hunter2" not in str(error.value) and "api_key_variable" in str(error.value)


def test_a_redirect_is_followed_on_the_same_host_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    with serve(lambda text: "[[A]]") as elsewhere:
        redirect = b"HTTP/1.1 307 to\r\nContent-Length: 0\r\nConnection: close\r\nLocation: %s/chat/completions\r\n\r\n"
        refused = pytest.raises(UserError, match=r"redirects to http://127\.0\.0\.1, where the key is not sent")
        with serve_bytes(redirect % elsewhere.url.encode()) as url, refused:
            judge_of(url)(["?"])
        assert not elsewhere.asked
    with serve_bytes(redirect % b"/v2") as url:
        assert judge_of(url, retries=0)(["?"])[0].problem == "more than 5 redirects"


@pytest.mark.parametrize("key", ["sk-SECRET\r", "sk-SECRET\n", " sk-SECRET \r\n"])
def test_a_key_from_a_file_loses_its_line_break(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", key)
    with serve(lambda text: "[[A]]") as endpoint:
        assert judge_of(endpoint.url)(["?"])[0].verdict == "A"
        assert endpoint.keys == ["Bearer sk-SECRET"]


@pytest.mark.parametrize("key", ["sk-SECRET\r\nX-Evil: 1", "sk SECRET", "sk-SECRETé", "sk-SECRET\x1b"])
def test_a_key_that_no_header_takes_is_not_said(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", key)
    with pytest.raises(UserError, match=r"^SOME_KEY: ") as error:
        read_key("SOME_KEY")
    assert "SECRET" not in str(error.value)


def test_netrc_does_not_replace_the_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password hunter2\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    with serve(lambda text: "[[A]]") as endpoint:
        judge_of(endpoint.url)(["?"])
        monkeypatch.setenv("SOME_KEY", KEY)
        judge_of(endpoint.url)(["?"])
        assert endpoint.keys == [None, f"Bearer {KEY}"]


@pytest.mark.parametrize("status", [200, 401, 404, 500])
def test_a_key_that_the_endpoint_gives_back_is_scrubbed(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    with serve(lambda text: (status, f"your key {KEY} is wrong")) as endpoint:
        try:
            (found,) = judge_of(endpoint.url, retries=0)(["?"])
        except UserError as error:
            assert KEY not in str(error) and "***" in str(error)
        else:
            assert KEY not in found.text and KEY not in (found.problem or "")
            assert "***" in found.text + (found.problem or "")


def test_scrubbing() -> None:
    for spelling in (KEY, quote(KEY, safe=""), json.dumps(KEY), base64.b64encode(KEY.encode()).decode()):
        assert "SECRET" not in scrub(f"a {spelling} b", KEY) and KEY not in scrub(f"a {spelling} b", KEY)
    assert scrub("see http://me:hunter2@h/x and ftp://u@h") == "see http://***@h/x and ftp://***@h"
    assert scrub("http://a:b@c@h/x?v=1&api_key=hunter2&token=z#f") == "http://***@h/x?v=1&api_key=***&token=***#f"
    assert scrub("nothing: here @home 1://2") == "nothing: here @home 1://2"
    assert "hunter2" not in str(UserError("http://me:hunter2@h is no model"))
