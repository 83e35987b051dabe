"""The configurations of well-known models, by hub id, so that runs of them can be planned without a network."""

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from codyra_llm.errors import UserError, reason
from codyra_llm.files import expand
from codyra_llm.models.gguf import BUILTIN, PACKAGED
from codyra_llm.models.source import Source, check_causal, load_config, resolve_model

FILE = Path(__file__).with_name("architectures.json")


def known_models() -> dict[str, dict[str, Any]]:
    """Returns {hub id: configuration}; base and instruction-tuned ids of a model have the same configuration.

    For Gemma 3 4B it is that of the text model only.
    """
    content = json.loads(FILE.read_text(encoding="utf-8"))
    return {name: entry["config"] for first, entry in content.items() for name in (first, *entry["also"])}


def find_source(name_or_path: str) -> Source:
    """Returns a model with its configuration from this table or from local files, without network access.

    Raises:
        UserError: the model is neither a known one nor a causal language model on this machine.
    """
    known = known_models()
    if name_or_path in known:
        return Source(name_or_path, name_or_path, AutoConfig.for_model(**known[name_or_path]), local_files_only=True)
    is_here = name_or_path in PACKAGED or name_or_path.endswith(".gguf") or expand(name_or_path).exists()
    try:
        path = resolve_model(name_or_path)
        config = load_config(path, local_files_only=True)
        check_causal(config, name_or_path)
        return Source(name_or_path, path, config, local_files_only=True)
    except UserError:
        raise
    except Exception as error:  # transformers and huggingface_hub raise many types of errors
        problem = reason(error) if is_here else "unknown model, not on this machine"
        names = ", ".join([BUILTIN, *known])
        raise UserError(f"model {name_or_path}: {problem}; give an HF folder, a .gguf file or one of {names}") from None
