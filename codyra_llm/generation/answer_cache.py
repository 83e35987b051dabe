"""Cache of base-model answers across runs: many runs begin with the same model and ask it the same.

A file of the cache folder holds all answers to one list of questions. It is named by the model and by what was asked,
token by token, so that a changed model, tokenizer, item, prompt or limit is asked anew; scores are computed
from the answers every time. A first line vouches for the rest: what is damaged is as if it were not there.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from codyra_llm.files import cache_folder, write_text
from codyra_llm.generation.generate import Answered, Question

VERSION = 1  # of how answers come about: greedy decoding, stops, losses


def recall(identity: str, questions: Sequence[Question]) -> list[Answered] | None:
    """The answers to these questions, in their order; None where they are not known."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        vouched, _, text = _file(identity, questions).read_text(encoding="utf-8").partition("\n")
        if vouched == _digest(text):
            return [Answered(*answer) for answer in json.loads(text)]
    return None


def remember(identity: str, questions: Sequence[Question], answers: Sequence[Answered]) -> None:
    """Keeps answers for `recall`; a cache that cannot be written keeps nothing."""
    text, file = json.dumps([dataclasses.astuple(answer) for answer in answers]), _file(identity, questions)
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, f"{_digest(text)}\n{text}")


def _file(identity: str, questions: Sequence[Question]) -> Path:
    digest = hashlib.sha256(json.dumps([VERSION, identity]).encode())
    for question in questions:
        digest.update(question.key.encode())
    return cache_folder() / "answers" / f"{digest.hexdigest()}.json"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
