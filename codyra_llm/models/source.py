"""A model's source, opened once: reads configuration and tokenizer, so that mistakes show before weights are loaded."""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from codyra_llm.errors import UserError, reason
from codyra_llm.files import expand, shipped
from codyra_llm.models.family import is_two_towers
from codyra_llm.models.fingerprint import model_hash
from codyra_llm.models.folder import check_folder
from codyra_llm.models.gguf import BUILTIN, PACKAGED, folder_of_gguf, packaged_model_folder
from codyra_llm.models.open_clip import folder_of_open_clip, is_open_clip

SMALL = {"nano": "tasks/nano/model", "shapes": "tasks/shapes/model"}  # for comparing methods in minutes
HINT = f"give a hub id, an HF folder, a .gguf file or {BUILTIN}"


@dataclass(frozen=True)
class Source:
    """The source of a model, opened by a command once and passed to all code that reads from it.

    Attributes:
        name: the user's name for the model.
        path: the folder or hub id that transformers loads it from.
        config: its configuration, which must not be changed.
        local_files_only: whether the tokenizer is loaded without network access.
    """

    name: str
    path: str
    config: PretrainedConfig
    local_files_only: bool = False

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer, read at first use.

        Raises:
            UserError: there is none, or it cannot be read.
        """
        options = {"trust_remote_code": False, "local_files_only": self.local_files_only}
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(self.path, **options)
        except Exception as error:  # transformers and huggingface_hub raise many types, some of them their own
            lacking = _lacks_tokenizer(self.path)
            problem = "the folder holds no tokenizer (tokenizer.json)" if lacking else source_problem(error)
            raise UserError(f"model.name_or_path {self.name}: {problem}; {HINT}") from None
        return tokenizer

    @cached_property
    def sha256(self) -> str:
        """The `model_hash` of the model's weights."""
        return model_hash(self.path)

    @property
    def context_length(self) -> int:
        """The context length of the model; sys.maxsize if its configuration specifies none."""
        return getattr(self.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize


def resolve_model(name_or_path: str, accept_gemma_terms: bool = False) -> str:
    """Returns a path or hub id that transformers can load.

    Packaged models, GGUF files and open_clip folders are converted to cached folders; `SMALL` models are shipped ones.
    """
    if name_or_path in SMALL:
        return str(shipped(SMALL[name_or_path]))
    if name_or_path in PACKAGED:
        return str(packaged_model_folder(name_or_path, accept_gemma_terms))
    if is_open_clip(expand(name_or_path)):
        return str(folder_of_open_clip(expand(name_or_path)))
    if name_or_path.endswith(".gguf"):
        return str(folder_of_gguf(expand(name_or_path)))
    return str(expand(name_or_path)) if name_or_path.startswith("~") else name_or_path


def load_config(source: str, **options: Any) -> PretrainedConfig:
    """Loads a model's configuration; code that comes with a model is never run."""
    return AutoConfig.from_pretrained(source, trust_remote_code=False, **options)


def source_problem(error: Exception) -> str:
    """Returns a message for the user about an error in reading a model."""
    if "trust_remote_code" in str(error):
        return "it brings code of its own to run (auto_map), which is never done; only models of transformers work"
    return reason(error)


def check_causal(config: PretrainedConfig, name: str) -> None:
    """Raises UserError if a configuration is not that of a causal language model."""
    architectures = config.architectures or []
    if architectures:
        causal = any(architecture in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() for architecture in architectures)
    else:
        causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not config.is_encoder_decoder
    if not causal:
        kind = architectures[0] if architectures else type(config).__name__
        remedy = "use one like LlamaForCausalLM"
        if is_two_towers(config):
            remedy += ", or, to train and score this one, a task file of images (docs/clip.md)"
        raise UserError(f"model.name_or_path {name}: {kind} is not a causal language model; {remedy}")


def check_clip(config: PretrainedConfig, name: str) -> None:
    """Raises UserError if a configuration is not that of a CLIP model."""
    if not is_two_towers(config):
        kind = (config.architectures or [type(config).__name__])[0]
        raise UserError(f"model.name_or_path {name}: {kind} is not a CLIP model; give a folder of CLIPModel")


def check_any(config: PretrainedConfig, name: str) -> None:
    """Raises UserError if a configuration is neither that of CLIP nor of a causal language model."""
    if not is_two_towers(config):
        check_causal(config, name)


def open_source(
    name_or_path: str,
    accept_gemma_terms: bool = False,
    check: Callable[[PretrainedConfig, str], None] = check_causal,
) -> Source:
    """Opens a hub id, an HF folder, an open_clip folder, a GGUF file or a packaged model.

    Args:
        name_or_path: the model.
        accept_gemma_terms: whether the user accepts the Gemma Terms of Use.
        check: raises UserError if a configuration is not that of a usable model.

    Raises:
        UserError: there is no such model, or `check` fails; by default if it is not a causal language model.
    """
    path = resolve_model(name_or_path, accept_gemma_terms)
    check_folder(path, name_or_path)
    try:
        config = load_config(path)
        check(config, name_or_path)
    except UserError:
        raise
    except Exception as error:  # transformers and huggingface_hub raise many types, some of them their own
        raise UserError(f"model.name_or_path {name_or_path}: {source_problem(error)}; {HINT}") from None
    return Source(name_or_path, path, config)


def _lacks_tokenizer(source: str) -> bool:
    files = [path.name for path in Path(source).iterdir()] if Path(source).is_dir() else []
    return bool(files) and not any(re.match(r"tokenizer|vocab|spiece|.*\.model$", name) for name in files)
