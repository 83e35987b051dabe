"""Fixtures of all tests: folders of reference data, small real tokenizers, a tiny model on disk."""

import gc
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GemmaTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from tests.models import WIDE, tiny_model

REPOSITORY = Path(__file__).parents[1]


def write_from_every_rank(file: Path, text: str) -> None:
    """Writes a file that all ranks write with the same content: a rank that reads it never finds half of it."""
    own = file.with_name(f"{file.name}.{os.getpid()}")
    own.write_text(text)
    own.replace(file)


SAMPLE = REPOSITORY / "tasks" / "trace" / "sample"
SHARED = REPOSITORY.parent / "shared"

# not run by `make test`: these take minutes, start processes or need the 135M model
SLOW = (
    "tests/distributed",
    "tests/slurm",
    "tests/e2e",
    "tests/fuzz",
    "tests/unit/planning/test_footprint.py",
    "tests/unit/general",
    "tests/unit/models/test_gguf.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.startswith(SLOW) and "e2e/test_run.py" not in item.nodeid:
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """Freezes imported objects, so that garbage collections during the tests do not scan them."""
    gc.collect()
    gc.freeze()


def shared_folder(path: str, lacking: str) -> Path:
    """Returns a folder of reference data; skips the test if the folder does not exist."""
    folder = SHARED / path
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: {lacking}")
    return folder


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of numbers produced by official implementations."""
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden_rows() -> Path:
    """Folder of rows of the benchmark with the scores that official implementations give them."""
    return shared_folder("golden/scorers", "no scored rows of the benchmark to compare with")


@pytest.fixture(scope="session")
def trace_500() -> Path:
    """The real TRACE-500 data."""
    return shared_folder("data/trace-500", "no real TRACE data to test with")


@pytest.fixture(scope="session")
def general_data() -> Path:
    """Real data of the six general-ability suites."""
    return shared_folder("data/general", "no real data of the suites to test with")


@pytest.fixture(scope="session")
def sample_texts() -> list[str]:
    """All prompts and answers of the built-in sample, to train tokenizers on."""
    rows = [row for file in sorted(SAMPLE.glob("*/*.json")) for row in json.loads(file.read_text(encoding="utf-8"))]
    return [text for row in rows for text in (row["prompt"], row["answer"])]


@pytest.fixture(scope="session")
def sentencepiece_model(sample_texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small SentencePiece BPE model with byte fallback, as Llama 2 and Gemma have."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.replace("\n", " ") for text in sample_texts),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=700,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.98,
        minloglevel=2,
    )
    return folder / "tokenizer.model"


@pytest.fixture(scope="session")
def tokenizers_by_family(sentencepiece_model: Path, sample_texts: list[str]) -> dict[str, PreTrainedTokenizerFast]:
    """SentencePiece as in Llama 2 and Gemma, with BOS token; byte-level BPE without (SmolLM2) and with it (Llama 3)."""
    folder = str(sentencepiece_model.parent)
    return {
        "llama-sentencepiece": _with_begin_mark(LlamaTokenizer.from_pretrained(folder)),
        "gemma": _with_begin_mark(GemmaTokenizer.from_pretrained(folder)),
        "byte-bpe": _byte_bpe(sample_texts),
        "byte-bpe-with-begin-mark": _with_begin_mark(_byte_bpe(sample_texts)),
    }


def _byte_bpe(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def _with_begin_mark(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Adds a post-processor that puts the BOS token before a text, as in published tokenizer files."""
    mark = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{mark} $A", pair=f"{mark} $A {mark} $B", special_tokens=[(mark, tokenizer.bos_token_id)]
    )
    return tokenizer


@pytest.fixture(scope="session")
def tiny_folder(
    tokenizers_by_family: dict[str, PreTrainedTokenizerFast], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Folder of a tiny random Llama and its tokenizer, in Hugging Face's format."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    tiny_model("llama").save_pretrained(folder)
    tokenizers_by_family["llama-sentencepiece"].save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def wide_folder(
    tokenizers_by_family: dict[str, PreTrainedTokenizerFast], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """As `tiny_folder`, with weight rows of 64 values, which NF4 needs."""
    folder = tmp_path_factory.mktemp("wide-llama")
    tiny_model("llama", **WIDE).save_pretrained(folder)
    tokenizers_by_family["llama-sentencepiece"].save_pretrained(folder)
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A mounted file system of 8 MB; skips the test without the right to mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("no right to mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
