"""Users' model folders: unexpected keys, code, adapters, damage; and requirements of a saved folder."""

import contextlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from codyra_llm.distributed.ranks import start
from codyra_llm.engine.zero import weight_layout, whole_weights
from codyra_llm.errors import UserError
from codyra_llm.models.load import load_model, meta_model, original_weights
from codyra_llm.models.save import save_model
from codyra_llm.models.source import open_source
from tests.models import tiny_model


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """Folder with a copy of the tiny model, which tests may change."""
    shutil.copytree(tiny_folder, tmp_path / "model")
    return tmp_path / "model"


def change_json(folder: Path, file: str, **changes: object) -> None:
    path = folder / file
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **changes}))


def add_tensors(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file({**load_file(folder / "model.safetensors"), **tensors}, folder / "model.safetensors", {"format": "pt"})


def use(folder: Path) -> None:
    """Uses a model folder as every command does."""
    source = open_source(str(folder))
    assert source.tokenizer
    load_model(source)
    original_weights(source)
    assert source.sha256


@pytest.mark.parametrize(
    "extra",
    [
        {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(4) for n in range(2)},
        {"model.embeddings.position_ids": torch.arange(8)},
        {"transformer.h.0.attn.masked_bias": torch.zeros(1)},
    ],
)
def test_keys_that_the_model_does_not_have_are_no_reason(
    extra: dict[str, Any], tiny_folder: Path, folder: Path
) -> None:
    add_tensors(folder, extra)
    read, expected = original_weights(str(folder)), load_model(str(tiny_folder)).state_dict()
    for name, weight in expected.items():
        part = torch.empty(weight.numel())
        read(name)(part, 0)
        assert torch.equal(part.view_as(weight), weight)


def test_a_tied_head_that_stands_in_the_file_as_well(tmp_path: Path, tiny_folder: Path) -> None:
    tiny_model("gemma").save_pretrained(tmp_path)
    embedding = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"]
    add_tensors(tmp_path, {"lm_head.weight": embedding.clone()})
    original_weights(str(tmp_path))
    add_tensors(tmp_path, {"lm_head.weight": embedding.clone() + 1})
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight, to which config"):
        original_weights(str(tmp_path))


@pytest.mark.parametrize("change", ["missing", "shape"])
def test_a_weight_that_the_files_lack(change: str, folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    if change == "missing":
        del tensors["model.norm.weight"]
    else:
        tensors["model.norm.weight"] = torch.ones(3)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.norm\.weight is not the same in the files and in the model"):
        original_weights(str(folder))


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_that_comes_with_a_model_is_neither_run_nor_asked_about(
    file: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass Model: pass\n")
    changes: dict[str, object] = {"auto_map": {"AutoConfig": "evil.Model", "AutoTokenizer": ["evil.Model", None]}}
    changes |= {"model_type": "evil"} if file == "config.json" else {"tokenizer_class": "Evil"}
    change_json(folder, file, **changes)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))
    monkeypatch.setattr(sys, "stdin", None)
    with contextlib.suppress(UserError):
        open_source(str(folder)).tokenizer  # noqa: B018
        load_model(str(folder))
    assert not (folder / "ran").exists()


def test_what_is_there_instead_of_a_model(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    use(Path("~/model"))
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for name, problem in {
        "run": r"is the folder of a run; give .*run/model",
        "adapter": r"is an adapter, not a model; merge the adapter into its base",
        "empty": r"holds no config\.json",
        "file": r"is a file; give the folder",
        "misspelt": r"no such folder$",
    }.items():
        with pytest.raises(UserError, match=problem):
            open_source(str(tmp_path / name)).tokenizer  # noqa: B018
    for file in [path for path in folder.iterdir() if path.name.startswith("tokenizer")]:
        file.unlink()
    with pytest.raises(UserError, match="holds no tokenizer"):
        open_source(str(folder)).tokenizer  # noqa: B018


def test_an_adapter_beside_the_model(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]}')
    for act in (open_source, load_model):
        with pytest.raises(UserError, match=r"holds adapter_config\.json beside the model; merge the adapter"):
            act(str(folder))


def write(file: str, content: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / file).write_bytes(content)

    return change


def index(content: object) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "part.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))

    return act


def header(content: bytes, length: int | None = None) -> bytes:
    return (len(content) if length is None else length).to_bytes(8, "little") + content


DAMAGE = {
    "index is a list": index([]),
    "index without map": index({"metadata": {}}),
    "index of numbers": index({"weight_map": {"a": 3}}),
    "index that leads out": index({"weight_map": {"a": "../../etc/passwd"}}),
    "index names nothing": index({"weight_map": {"a": "gone.safetensors"}}),
    "git-lfs": write("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 13\n"),
    "empty weights": write("model.safetensors", b""),
    "header too long": write("model.safetensors", header(b"{}", 2**63)),
    "header no JSON": write("model.safetensors", header(b"garbage!")),
    "header a list": write("model.safetensors", header(b"[]")),
    "header of numbers": write("model.safetensors", header(b'{"a": 3}')),
    "negative offsets": write(
        "model.safetensors", header(b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}')
    ),
    "config a list": write("config.json", b"[]"),
    "config no JSON": write("config.json", b"{"),
    "config of another kind": write("config.json", b'{"model_type": "llama", "hidden_size": "wide"}'),
    "config of no model": write("config.json", b'{"model_type": "nothing"}'),
    "tokenizer null": write("tokenizer.json", b"null"),
    "tokenizer no JSON": write("tokenizer.json", b"{"),
    "tokenizer config a list": write("tokenizer_config.json", b"[]"),
    "generation config null": write("generation_config.json", b"null"),
    "generation config no JSON": write("generation_config.json", b"{"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damage_is_one_line(how: str, folder: Path) -> None:
    DAMAGE[how](folder)
    with pytest.raises(UserError, match=r"model\.name_or_path|model\.safetensors|_?config\.json line"):
        use(folder)


def saved(folder: Path, target: Path) -> Path:
    start()
    model, tokenizer = load_model(str(folder)), open_source(str(folder)).tokenizer
    layout, weights = weight_layout(model), whole_weights(model)
    save_model(model, layout, weights, tokenizer, target, "# card", base=str(folder))
    return target


def test_a_saved_model_stops_where_it_was_taught_to(folder: Path, tmp_path: Path) -> None:
    change_json(folder, "generation_config.json", eos_token_id=5)
    model = AutoModelForCausalLM.from_pretrained(saved(folder, tmp_path / "saved"))
    end = AutoTokenizer.from_pretrained(tmp_path / "saved").eos_token_id
    assert model.generation_config.eos_token_id == [end, 5]
    weight = torch.zeros_like(model.lm_head.weight)
    weight[end] = model.model.norm.weight.sign()
    model.lm_head.weight.data.copy_(weight)  # EOS gets a nonzero logit, all other tokens zero
    ids = torch.tensor([[1, 7, 8, 9]])
    with torch.no_grad():
        first = model(ids).logits[0, -1].argmax()
    given = model.generate(  # type: ignore[misc]
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=0
    )
    assert given.shape[1] == (5 if first == end else 12)


def test_what_lies_beside_a_model_goes_with_it(folder: Path, tmp_path: Path) -> None:
    for name in ("LICENSE", "NOTICE.txt", "tokenizer.model", "preprocessor_config.json", "evil.py", "weights.bin"):
        (folder / name).write_text("{}")
    (folder / "LICENSE-link").symlink_to("/etc/passwd")
    found = {path.name for path in saved(folder, tmp_path / "saved").iterdir()}
    assert found >= {"LICENSE", "NOTICE.txt", "tokenizer.model", "preprocessor_config.json", "generation_config.json"}
    assert not found & {"evil.py", "weights.bin", "LICENSE-link"}


def test_a_generation_config_that_only_loading_allows_can_be_saved(folder: Path, tmp_path: Path) -> None:
    change_json(folder, "generation_config.json", do_sample=False, temperature=0.6, top_p=0.9)
    model = AutoModelForCausalLM.from_pretrained(saved(folder, tmp_path / "saved"))
    assert model.generation_config.temperature == 0.6


def test_a_model_that_is_not_its_configurations_is_not_saved(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "codyra_llm.models.save.names_in_files", lambda model, layout: {name: f"x.{name}" for name in layout}
    )
    with pytest.raises(UserError, match="was not written as the configuration has it"):
        start()
        model, tokenizer = load_model(str(folder)), open_source(str(folder)).tokenizer
        monkeypatch.setattr("codyra_llm.models.save._check_names", real_check(monkeypatch))
        save_model(model, weight_layout(model), whole_weights(model), tokenizer, tmp_path / "saved", "# card")
    assert not (tmp_path / "saved").exists()


def real_check(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """The check of a saved folder's weight names, with the real function that reads them."""
    from codyra_llm.models import save
    from codyra_llm.models.shards import names_in_files

    check = save._check_names

    def act(folder: Path) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(save, "names_in_files", names_in_files)
            check(folder)

    return act


def test_a_disk_that_is_full_for_a_library_in_rust(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise Exception("No space left on device (os error 28)")

    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", fail)
    monkeypatch.setattr("transformers.PreTrainedTokenizerBase.save_pretrained", fail)
    with pytest.raises(UserError, match="the model cannot be saved: No space left on device"):
        saved(folder, tmp_path / "saved")
    assert not (tmp_path / "saved").exists() and not (tmp_path / "saved.tmp").exists()


@pytest.mark.parametrize("size", ["hidden_size", "vocab_size", "intermediate_size", "num_attention_heads"])
def test_sizes_that_no_model_has(size: str, folder: Path) -> None:
    change_json(folder, "config.json", **{size: -8})
    with pytest.raises(UserError, match=r"model"):
        meta_model(open_source(str(folder)).config)
