"""A judge behind an OpenAI-compatible chat endpoint, with limits on time, size, attempts and concurrent requests."""

import json
import os
import re
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urljoin, urlsplit, urlunsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import parse_url

from codyra_llm.errors import UserError
from codyra_llm.evaluation.judge.config import JudgeConfig
from codyra_llm.evaluation.judge.verdict import Reply, read_verdict
from codyra_llm.text import SECRET_PARAMETER, one_line, scrub

TRANSIENT = (408, 429, 500, 502, 503, 504)
REDIRECTS = (301, 302, 303, 307, 308)
MOST_REDIRECTS = 5
MAX_TOKENS = 512  # of a reply: a judge may reason before its verdict
LARGEST_REPLY = 2**20  # bytes, decompressed
READ_AT_ONCE = 4096  # bytes; decompressed at most about a thousand times as many
LONGEST_WAIT = 30  # seconds between tries
SHOWN = 200  # characters of an endpoint's error message that are shown


class _Failed(Exception):
    """Raised if there is no reply; the message is the reason."""


class EndpointJudge:
    """Sends questions to the endpoint of a configuration, with greedy decoding (temperature 0).

    Raises:
        UserError: as `read_address` and `read_key`.
    """

    def __init__(self, config: JudgeConfig) -> None:
        self.config = config
        self.url, self.key = read_address(config.judge), read_key(config.api_key_variable)
        self.session = requests.Session()
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, HTTPAdapter(pool_maxsize=config.concurrency, max_retries=0))

    def __call__(self, texts: Sequence[str]) -> list[Reply]:
        """Returns the replies to filled templates, in their order.

        Raises:
            UserError: the endpoint rejects the key, has no such path or model, or redirects to another host.
        """
        with ThreadPoolExecutor(self.config.concurrency) as pool:
            waiting = [pool.submit(self._ask, text) for text in texts]
            try:
                return [each.result() for each in waiting]
            finally:
                pool.shutdown(cancel_futures=True)

    def _ask(self, text: str) -> Reply:
        """Asks until there is a verdict; after failed attempts it waits 0, 2, 4, ... seconds before the next."""
        reply = Reply(None, "", "never asked")
        for attempt in range(self.config.retries + 1):
            reply, again = self._ask_once(text)
            if reply.verdict or not again:
                break
            if reply.problem and 0 < attempt < self.config.retries:
                time.sleep(min(2**attempt, LONGEST_WAIT))
        return reply

    def _ask_once(self, text: str) -> tuple[Reply, bool]:
        """Returns (the reply, whether another attempt may give a different one)."""
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": text}],
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
        }
        if self.config.judge_model:
            body["model"] = self.config.judge_model
        try:
            status, content = self._within_time(body)
        except _Failed as failed:
            return Reply(None, "", self._clean(str(failed))[:SHOWN]), True
        said = scrub(content.decode("utf-8", "replace"), self.key)
        start = self._clean(" ".join(said[: 2 * SHOWN].split()))[:SHOWN]
        if status in (401, 403):
            name = self.config.api_key_variable
            problem = f"the key in {name} is refused" if self.key else f"no key was sent; set {name}"
            raise UserError(f"judge {self.url}: status {status}: {problem} ({start})")
        if status == 404:
            raise UserError(f"judge {self.url}: status 404: no such path or model; see judge and judge_model ({start})")
        if status != 200:
            return Reply(None, "", f"status {status}: {start}"), status in TRANSIENT
        answer = _content_of(said)
        return (Reply(None, said) if answer is None else Reply(read_verdict(answer), answer)), True

    def _within_time(self, body: dict[str, Any]) -> tuple[int, bytes]:
        """Makes one exchange, including redirects, with a limit on its total time; returns (status, body).

        It runs in a separate thread: socket timeouts apply to each read, and a header may arrive byte by byte.
        """
        outcome: list[Any] = []

        def act() -> None:
            try:
                outcome.append(self._exchange(body, time.monotonic() + self.config.timeout))
            except Exception as error:  # several libraries raise different errors for invalid responses
                outcome.append(error)

        thread = threading.Thread(target=act, daemon=True)
        thread.start()
        thread.join(self.config.timeout)
        found = outcome[0] if outcome else requests.Timeout()
        if isinstance(found, UserError | _Failed):
            raise found
        if isinstance(found, Exception):
            raise _Failed(self._reason(found))
        return found

    def _exchange(self, body: dict[str, Any], deadline: float) -> tuple[int, bytes]:
        url = self.url
        for _ in range(MOST_REDIRECTS + 1):
            # an explicit `auth` keeps requests from using .netrc; proxies of the environment still apply
            response = self.session.post(
                url, json=body, timeout=self.config.timeout, stream=True, allow_redirects=False, auth=self._authorise
            )
            with response:
                if response.status_code not in REDIRECTS or "Location" not in response.headers:
                    return response.status_code, self._read(response, deadline)
            url = self._next(url, response.headers["Location"])
        raise _Failed(f"more than {MOST_REDIRECTS} redirects")

    def _next(self, url: str, location: str) -> str:
        following = urljoin(url, location)
        old, new = urlsplit(url), urlsplit(following)
        if (new.scheme, new.netloc) != (old.scheme, old.netloc):
            host = self._clean(f"{new.scheme}://{new.hostname}")
            raise UserError(
                f"judge {self.url}: redirects to {host}, where the key is not sent; give that address itself"
            )
        return following

    def _authorise(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self.key:
            request.headers["Authorization"] = f"Bearer {self.key}"
        return request

    def _read(self, response: requests.Response, deadline: float) -> bytes:
        content = bytearray()
        for part in response.iter_content(READ_AT_ONCE):
            content += part
            if len(content) > LARGEST_REPLY:
                raise _Failed(f"a reply of more than {LARGEST_REPLY // 2**20} MB")
            if time.monotonic() > deadline:
                raise requests.Timeout
        return bytes(content)

    def _reason(self, error: Exception) -> str:
        if isinstance(error, requests.Timeout) or "timed out" in str(error):
            return f"no answer within {self.config.timeout:g} s"
        cause = getattr(error.args[0] if error.args else None, "reason", error)
        return re.sub(r"^<[^>]*>: |^\w+\([^)]*\): ", "", str(cause)) or type(error).__name__

    def _clean(self, text: str) -> str:
        return one_line(scrub(text, self.key))


def read_address(judge: str) -> str:
    """Returns the URL for questions: the user's, with /chat/completions at the end of its path and its query unchanged.

    Raises:
        UserError: it is no address, or contains a user name, a password or a key, which would be stored with it.
    """
    where = f"judge {scrub(judge)}"
    try:
        parts = urlsplit(judge)
        _ = parts.port
        host = parse_url(judge).host or ""
        host.encode("idna")
    except (ValueError, requests.exceptions.RequestException) as error:  # UnicodeError, LocationParseError among them
        raise UserError(f"{where}: is no address ({error}); write http://host:port/v1") from None
    if not host or not judge.isprintable() or " " in judge:
        raise UserError(f"{where}: is no address; write http://host:port/v1")
    if "@" in parts.netloc:
        raise UserError(f"{where}: holds a user name or password; leave it out, a key goes into api_key_variable")
    if any(SECRET_PARAMETER.search(each.partition("=")[0]) for each in parts.query.split("&")):
        raise UserError(f"{where}: holds a key in its query; leave it out, a key goes into api_key_variable")
    path = parts.path.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
    return urlunsplit(parts._replace(path=path, fragment=""))


def read_key(variable: str) -> str | None:
    """Returns the key in an environment variable, None if it is empty or not set.

    Raises:
        UserError: it cannot be sent in a header; the message contains only the variable's name.
    """
    try:
        key = os.environ.get(variable, "").strip()
    except ValueError:
        raise UserError(f"api_key_variable {variable}: cannot be the name of a variable") from None
    if not all("!" <= character <= "~" for character in key):
        raise UserError(f"{variable}: the key in it has characters that cannot be sent; set it to the key alone")
    return key or None


def _content_of(said: str) -> str | None:
    """Returns the text of a reply, given as a string or as a list of parts; None if there is none."""
    try:
        content = json.loads(said)["choices"][0]["message"]["content"]
        if isinstance(content, list):
            content = "".join(part["text"] for part in content if part.get("type") == "text")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return content if isinstance(content, str) else None
