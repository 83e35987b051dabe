"""Cache of base-model answers across runs: many runs start with the same model and ask it the same questions.

A file of the cache folder contains all answers to one list of questions. Its name is a hash of the model and of the
questions' tokens and limits, so that a change of model, tokenizer, item, prompt or limit leads to new answers. Scores
are computed from the answers every time. The first line is a checksum of the rest: a damaged file counts as missing.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from codyra_llm.files import cache_folder, write_text
from codyra_llm.generation.generate import Answered, Question

VERSION = 1  # of the way in which answers are computed: greedy decoding, stops, losses


def recall(identity: str, questions: Sequence[Question]) -> list[Answered] | None:
    """Returns the cached answers to these questions, in their order; None if there are none."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        vouched, _, text = _file(identity, questions).read_text(encoding="utf-8").partition("\n")
        if vouched == _digest(text):
            return [Answered(*answer) for answer in json.loads(text)]
    return None


def remember(identity: str, questions: Sequence[Question], answers: Sequence[Answered]) -> None:
    """Stores answers for `recall`; does nothing if the cache cannot be written."""
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
