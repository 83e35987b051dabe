"""Rows as token ids, stored in the cache folder, so that other ranks and later runs map them into memory.

A file is an Arrow IPC file of four columns (`COLUMNS`), named by a hash of all that the ids depend on. The first
process that needs it writes it to a temporary file, under a lock, and renames it; each batch has a checksum.
"""

import hashlib
import json
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import tokenizers
import transformers
from transformers import PreTrainedTokenizerBase

from codyra_llm.data import chat, encode, ids, raw_text
from codyra_llm.data.encode import encode_rows, encode_text
from codyra_llm.data.rows import Row
from codyra_llm.example import Example
from codyra_llm.files import cache_folder, replace_file
from codyra_llm.locks import exclusive

COLUMNS = ("prompt", "answer", "unlearned", "cut")  # unlearned: begin, end of each range; cut: 1 if the prompt was cut
SCHEMA = pa.schema({name: pa.large_list(pa.int32()) for name in COLUMNS})
ROWS_AT_ONCE = 1000  # kept as Python lists while a file is written
CHECKSUM = "crc32"


class TokenCache:
    """Tokenized rows, computed once for all processes that share the cache folder.

    Attributes:
        notes: one line if nothing can be stored in the folder, else empty.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer, self.folder = tokenizer, cache_folder() / "tokens"
        self.notes: list[str] = []

    def encode_rows(
        self, rows: list[Row], where: str, numbers: Sequence[int] | None = None, **limits: Any
    ) -> Sequence[Example]:
        """Returns the result of `encode_rows`, with the same arguments; each example is read when it is accessed.

        Raises:
            UserError: see `encode_rows`.
        """
        return self._kept(
            rows, limits, lambda: encode_rows(self.tokenizer, rows, where=where, numbers=numbers, **limits)
        )

    def encode_text(self, rows: list[Row], **limits: Any) -> Sequence[Example]:
        """Returns the result of `encode_text`, with the same arguments; each example is read when it is accessed."""
        return self._kept(rows, limits, lambda: encode_text(self.tokenizer, rows, **limits))

    def _kept(
        self, rows: list[Row], limits: dict[str, Any], fresh: Callable[[], Iterator[Example]]
    ) -> Sequence[Example]:
        if self.notes:
            return list(fresh())
        try:
            file = self.folder / f"{self._name(rows, limits)}.arrow"
            found = _read(file)
            if found is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                with exclusive(Path(f"{file}.lock")):
                    found = _read(file)  # another process may have written it by now
                    if found is None:
                        _write(file, fresh())
                        found = _read(file)
        except OSError as error:
            found, reason = None, error.strerror or str(error)
            self.notes.append(
                f"{self.folder}: tokenized data cannot be kept there ({reason}), so every process tokenizes all of it "
                "at every start; set CODYRA_CACHE to a folder that can be written"
            )
        return list(fresh()) if found is None else found

    def _name(self, rows: list[Row], limits: dict[str, Any]) -> str:
        digest = hashlib.sha256(self._method)
        digest.update(repr(sorted(limits.items())).encode())
        for row in rows:
            digest.update(json.dumps([row["prompt"], row["answer"], row.get("messages")]).encode())
        return digest.hexdigest()

    @cached_property
    def _method(self) -> bytes:
        """Hash of what determines the ids besides text: saved tokenizer, library versions, source of the encoding."""
        digest = hashlib.sha256(f"{transformers.__version__} {tokenizers.__version__}".encode())
        for module in (chat, encode, ids, raw_text):
            digest.update(Path(str(module.__file__)).read_bytes())
        with tempfile.TemporaryDirectory() as folder:
            self.tokenizer.save_pretrained(folder)
            for file in sorted(Path(folder).rglob("*")):
                if file.is_file():
                    digest.update(file.name.encode() + file.read_bytes())
        return digest.digest()


class _Examples(Sequence[Example]):
    """The rows of an Arrow table as examples; if it is mapped, only the rows in use take memory."""

    def __init__(self, table: pa.Table) -> None:
        self.columns = [table[name] for name in COLUMNS]

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        prompt, answer, places, cut = (column[index].values.to_numpy().tolist() for column in self.columns)
        return Example(prompt, answer, tuple(zip(places[::2], places[1::2], strict=True)), bool(cut))


def _read(file: Path) -> _Examples | None:
    """Returns the examples of a file, mapped into memory; None if it is missing or damaged."""
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(file)))
        batches = []
        for number in range(reader.num_record_batches):
            batch, metadata = reader.get_batch_with_custom_metadata(number)
            batch.validate(full=True)
            if dict(metadata or {}).get(CHECKSUM.encode()) != _checksum(batch):
                return None
            batches.append(batch)
        return _Examples(pa.Table.from_batches(batches, SCHEMA))
    except (OSError, pa.ArrowException):
        return None


def _write(file: Path, examples: Iterable[Example]) -> None:
    """Writes examples to a file; leaves no file if tokenizing raises a UserError."""
    remaining = iter(examples)
    with replace_file(file) as scratch, pa.ipc.new_file(str(scratch), SCHEMA) as writer:
        while some := list(islice(remaining, ROWS_AT_ONCE)):
            unlearned = [list(chain.from_iterable(example.unlearned)) for example in some]
            cut = [[1] if example.cut else [] for example in some]
            columns = [[example.prompt for example in some], [example.answer for example in some], unlearned, cut]
            batch = pa.record_batch(columns, schema=SCHEMA)
            writer.write_batch(batch, custom_metadata={CHECKSUM: _checksum(batch)})


def _checksum(batch: pa.RecordBatch) -> bytes:
    found = 0
    for column in batch.columns:
        for values in (column.value_lengths(), column.flatten()):
            found = zlib.crc32(values.to_numpy(), found)
    return str(found).encode()
