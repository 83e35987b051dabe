"""The folder or hub id of a model: checks, weight files and companion files."""

import shutil
from pathlib import Path

from transformers.utils import (
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    cached_file,
)

from codyra_llm.errors import UserError
from codyra_llm.files import plain_name, read_json
from codyra_llm.models.shards import is_git_lfs_pointer

# files that users need besides weights, configuration and the tokenizer's own files
COMPANIONS = (
    "*.model",
    "*processor*.json",
    "chat_template.*",
    "vocab.json",
    "merges.txt",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)
OF_A_HUB_ID = (
    "tokenizer.model",
    "preprocessor_config.json",
    "processor_config.json",
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
    "USE_POLICY.md",
)


def check_folder(source: str, name: str) -> None:
    """Raises UserError if a path is not a model folder, with one line that tells what it is instead.

    Args:
        source: the path or hub id; a hub id is not checked.
        name: the model's name in the configuration, for the error.
    """
    folder, where = Path(source), f"model.name_or_path {name}"
    if not folder.is_dir():
        if folder.is_file():
            raise UserError(f"{where}: is a file; give the folder that holds config.json, or a .gguf file")
        if name.startswith(("/", ".", "~")) or name.count("/") > 1:
            raise UserError(f"{where}: no such folder")
        return
    has_config = (folder / CONFIG_NAME).is_file()
    if (folder / "adapter_config.json").is_file():
        problem = "holds adapter_config.json beside the model" if has_config else "is an adapter, not a model"
        raise UserError(f"{where}: {problem}; merge the adapter into its base first, or give the model without it")
    if not has_config and (folder / "model").is_dir():
        raise UserError(f"{where}: is the folder of a run; give {folder / 'model'}")
    if not has_config:
        raise UserError(f"{where}: holds no {CONFIG_NAME}; give a folder that save_pretrained wrote")
    for file in (folder / file for file in (CONFIG_NAME, GENERATION_CONFIG_NAME, "tokenizer_config.json")):
        damage = _problem_of(file) if file.is_file() else None
        if damage:
            raise UserError(f"{where}: {damage}; restore it, or give a hub id, an HF folder or a .gguf file")
    for file in folder.iterdir():
        if file.is_file() and is_git_lfs_pointer(file):
            raise UserError(f"{where}: {file.name} is a pointer of git-lfs; run `git lfs pull` in {folder}")


def _problem_of(file: Path) -> str | None:
    try:
        return None if isinstance(read_json(file), dict) else f"{file.name} holds no JSON object"
    except UserError as error:
        return str(error)


def weight_files(source: str, one: str = SAFE_WEIGHTS_NAME, index: str = SAFE_WEIGHTS_INDEX_NAME) -> list[Path]:
    """Returns the weight files of a folder or hub id; missing files of a hub id are downloaded.

    Args:
        source: the folder or hub id.
        one: file name of weights in a single file; by default that of safetensors.
        index: file name of the index of several files.

    Raises:
        OSError: there are no such files.
        UserError: the index is damaged.
    """

    def find(name: str) -> Path:
        return Path(str(cached_file(source, name)))

    try:
        return [find(one)]
    except OSError:
        path = find(index)
        listed = read_json(path)
        places = listed.get("weight_map") if isinstance(listed, dict) else None
        if not isinstance(places, dict) or not places:
            raise UserError(f"{path}: not an index of weight files; it has no weight_map of names to files") from None
        names = {plain_name(name, f"{path}: the file name") for name in places.values()}
        return [find(name) for name in sorted(names)]


def copy_companions(source: str, target: Path) -> None:
    """Copies companion files (license, tokenizer model, and so on) of a model that `target` does not have yet.

    A link is followed within the folder, and within a hub's cache, whose snapshots consist of links.

    Args:
        source: folder or hub id of the model.
        target: the folder to copy to.
    """
    folder = Path(source)
    if folder.is_dir():
        found = [path for pattern in COMPANIONS for path in folder.glob(pattern)]
    else:
        options = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
        named = [cached_file(source, name, **options) for name in OF_A_HUB_ID]
        found = [Path(path) for path in named if path]
    for path in found:
        roots = (path.parent.resolve(), (path.parent.parent.parent / "blobs").resolve())
        inside = any(path.resolve().is_relative_to(root) for root in roots)
        if inside and path.is_file() and not (target / path.name).exists():
            shutil.copyfile(path, target / path.name)
