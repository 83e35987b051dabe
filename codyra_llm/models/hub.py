"""The Hugging Face hub: reads the card of a base model, and publishes a finished model."""

import re
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, hf_hub_download

from codyra_llm.errors import UserError, reason
from codyra_llm.files import expand
from codyra_llm.models.gguf import PACKAGED
from codyra_llm.models.source import Source

PASSED_ON = ("license", "license_name", "license_link", "language")  # keys that a fine-tuned model takes from its base


def stated_card(source: Source) -> dict[str, Any]:
    """Returns what a base model's card states that a model made from it repeats: hub id, license, languages.

    Returns:
        {key of huggingface_hub's ModelCardData: value}, without keys that are not stated.
    """
    if source.name in PACKAGED:
        return dict(PACKAGED[source.name].card)
    folder, cached = Path(source.path), re.search(r"models--([^/]+)--([^/]+)/snapshots/", source.path)
    known: dict[str, Any] = {"base_model": "/".join(cached.groups())} if cached else {}
    try:
        card = folder / "README.md" if folder.exists() else hf_hub_download(source.path, "README.md")
        stated = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
    except Exception:  # no card, no network, or an invalid card
        return known
    return known | {key: stated[key] for key in PASSED_ON if key in stated}


def push(folder: str, repository: str, private: bool, revision: str | None) -> str:
    """Publishes a finished model, with its card, on the hub that HF_ENDPOINT names.

    Args:
        folder: the model, as saved by a run or by `codyra materialize`.
        repository: name of the user or organization, and of the model; created if it does not exist.
        private: whether a new repository is private.
        revision: branch to commit to; None: main.

    Returns:
        The URL of the commit.

    Raises:
        UserError: the folder contains no finished model, or the hub rejects the upload.
    """
    path = expand(folder)
    if not (path / "config.json").is_file() or not any(path.glob("*.safetensors")):
        inside = f"; did you mean {folder.rstrip('/')}/model?" if (path / "model").is_dir() else ""
        raise UserError(f"{folder}: holds no saved model (config.json and *.safetensors){inside}")
    api = HfApi()
    try:
        name = api.create_repo(repository, private=private, exist_ok=True).repo_id
        if revision:
            api.create_branch(name, branch=revision, exist_ok=True)
        commit = api.upload_folder(repo_id=name, folder_path=path, revision=revision, commit_message="Upload model")
    except Exception as error:  # of huggingface_hub and its HTTP client
        raise UserError(f"{repository}: cannot be pushed: {reason(error)}") from None
    return str(commit.commit_url)
