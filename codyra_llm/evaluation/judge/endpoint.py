"""A judge behind an OpenAI-compatible chat endpoint: bounded in time, tries and requests at once."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from codyra_llm.errors import UserError
from codyra_llm.evaluation.judge.config import JudgeConfig
from codyra_llm.evaluation.judge.verdict import Reply, read_verdict

TRANSIENT = (408, 429, 500, 502, 503, 504)
MAX_TOKENS = 512  # of a reply: a judge may reason before its verdict
SHOWN = 200  # characters of what an endpoint says of an error


class EndpointJudge:
    """Asks the endpoint that a configuration names, greedily (temperature 0)."""

    def __init__(self, config: JudgeConfig) -> None:
        self.config = config
        self.url = config.judge.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        # waits 0, 2, 4, ... seconds between tries, and no longer if a server asks for it
        retry = Retry(
            config.retries,
            status_forcelist=TRANSIENT,
            allowed_methods=None,
            backoff_factor=1,
            backoff_max=30,
            raise_on_status=False,
            respect_retry_after_header=False,
        )
        self.session = requests.Session()
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, HTTPAdapter(pool_maxsize=config.concurrency, max_retries=retry))
        if key := os.environ.get(config.api_key_variable):
            self.session.headers["Authorization"] = f"Bearer {key}"

    def __call__(self, texts: Sequence[str]) -> list[Reply]:
        """Replies to filled templates, in their order.

        Raises:
            UserError: the endpoint refuses the key, or knows no such path or model.
        """
        with ThreadPoolExecutor(self.config.concurrency) as pool:
            waiting = [pool.submit(self._ask, text) for text in texts]
            try:
                return [each.result() for each in waiting]
            finally:
                pool.shutdown(cancel_futures=True)

    def _ask(self, text: str) -> Reply:
        reply = Reply(None, "", "never asked")
        for _ in range(self.config.retries + 1):
            reply = self._ask_once(text)
            if reply.verdict or reply.problem:
                break
        return reply

    def _ask_once(self, text: str) -> Reply:
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": text}],
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
        }
        if self.config.judge_model:
            body["model"] = self.config.judge_model
        try:
            response = self.session.post(self.url, json=body, timeout=self.config.timeout)
        except requests.RequestException as error:
            return Reply(None, "", self._reason(error))
        said = " ".join(response.text.split())[:SHOWN]
        if response.status_code in (401, 403):
            known, name = "Authorization" in self.session.headers, self.config.api_key_variable
            key = f"the key in {name} is refused" if known else f"no key was sent; set {name}"
            raise UserError(f"judge {self.url}: status {response.status_code}: {key} ({said})")
        if response.status_code == 404:
            raise UserError(f"judge {self.url}: status 404: no such path or model; see judge and judge_model ({said})")
        if not response.ok:
            return Reply(None, "", f"status {response.status_code}: {said}")
        try:
            content = response.json()["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            return Reply(None, response.text)
        return Reply(read_verdict(content), content) if isinstance(content, str) else Reply(None, response.text)

    def _reason(self, error: requests.RequestException) -> str:
        if isinstance(error, requests.Timeout) or "timed out" in str(error):
            return f"no answer within {self.config.timeout:g} s"
        cause = getattr(error.args[0] if error.args else None, "reason", error)
        return " ".join(str(cause).split(": ")[-1].split())[:SHOWN]
