"""Injection, prune and merge on real architectures."""

import math
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3Config

from codyra_llm import CoDyRAConfig, inject, merge, prune
from codyra_llm.adapter.injection import describe_targets, number_of_layer
from codyra_llm.adapter.layer import CoDyRALinear, gated_layers
from codyra_llm.adapter.merging import norm_of_product
from tests.models import CONFIGS, tiny_model

IDS = torch.arange(3, 27).reshape(2, 12)


def randomise(model: torch.nn.Module, zero_share: float = 0.4) -> None:
    """Changes branches as training would: B is not zero, some gates are zero."""
    torch.manual_seed(1)
    for _, layer in gated_layers(model):
        layer.B.data.normal_(std=0.1)
        layer.gate.data.normal_()
        layer.gate.data[torch.rand(layer.rank) < zero_share] = 0


@pytest.mark.parametrize("architecture", CONFIGS)
def test_seven_projections_of_each_layer_are_wrapped_and_alone_trainable(architecture: str) -> None:
    model = tiny_model(architecture)
    names = inject(model, CoDyRAConfig(rank=4))
    assert len(names) == 14
    assert describe_targets(names).startswith("14 projections: 2 q_proj")
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {f"{name}.{part}" for name in names for part in ("A", "B", "gate")}
    assert not model.get_submodule("model.layers.0.mlp.gate_proj").base.weight.requires_grad


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_fresh_branch_changes_nothing_and_a_merged_model_equals_the_live_one(architecture: str) -> None:
    model = tiny_model(architecture)
    before, modules = model(IDS).logits, [type(m) for m in model.modules()]
    count = sum(p.numel() for p in model.parameters())
    inject(model, CoDyRAConfig(rank=4))
    torch.testing.assert_close(model(IDS).logits, before)
    randomise(model)
    live = model(IDS).logits
    assert (live - before).abs().max() > 1e-2
    report = prune(model)
    torch.testing.assert_close(model(IDS).logits, live, atol=1e-4, rtol=0)
    assert {module.rank for module in report} != {4}
    assert merge(model) == 14
    torch.testing.assert_close(model(IDS).logits, live, atol=1e-4, rtol=0)
    assert [type(m) for m in model.modules()] == modules
    assert sum(p.numel() for p in model.parameters()) == count


def test_rank_report_agrees_with_the_dense_update() -> None:
    model = tiny_model()
    inject(model, CoDyRAConfig(rank=4))
    randomise(model)
    dense = {name: torch.matmul(*layer.factors()) for name, layer in gated_layers(model)}
    for module in prune(model):
        update = dense[module.name].double()
        assert module.norm == pytest.approx(float(update.norm()), rel=1e-5, abs=1e-7)
        assert module.norm <= module.bound + 1e-6
        assert module.rank == torch.linalg.matrix_rank(update, tol=1e-6)


def test_the_norm_of_a_sum_of_updates() -> None:
    torch.manual_seed(0)
    updates = [(torch.randn(6, rank), torch.randn(rank, 5)) for rank in (3, 2, 1)]
    total = sum(B @ A for B, A in updates)
    B, A = torch.cat([B for B, _ in updates], dim=1), torch.cat([A for _, A in updates])
    assert norm_of_product(B, A) == pytest.approx(float(total.norm()), rel=1e-5)


def test_merge_at_a_share_of_the_update() -> None:
    model, base = tiny_model(), tiny_model()
    inject(model, CoDyRAConfig(rank=4))
    randomise(model)
    updates = {name: layer.factors() for name, layer in gated_layers(model)}
    merge(model, scale=0.6)
    for name, (B, A) in updates.items():
        expected = base.get_submodule(name).weight + 0.6 * B @ A
        torch.testing.assert_close(model.get_submodule(name).weight.data, expected.data, atol=1e-6, rtol=0)


def test_a_bf16_base_keeps_fp32_branches_and_is_rounded_once() -> None:
    model = tiny_model(dtype=torch.bfloat16)
    inject(model, CoDyRAConfig(rank=4))
    layer = model.get_submodule("model.layers.0.self_attn.q_proj")
    assert {p.dtype for p in (layer.A, layer.B, layer.gate)} == {torch.float32}
    randomise(model)
    B, A = layer.factors()
    expected = (layer.base.weight.float() + B @ A).bfloat16()
    merge(model)
    assert torch.equal(model.get_submodule("model.layers.0.self_attn.q_proj").weight.data, expected.data)
    assert model(IDS).logits.dtype == torch.bfloat16


def test_draws_depend_on_seed_and_name_alone() -> None:
    first, second, third = tiny_model(), tiny_model(), tiny_model()
    config = CoDyRAConfig(rank=4, gate_init="normal")
    inject(first, config, seed=7)
    inject(second, CoDyRAConfig(rank=4, gate_init="normal", target_modules=("v_proj",)), seed=7)
    inject(third, config, seed=8)
    name = "model.layers.1.self_attn.v_proj"
    one, two, three = (model.get_submodule(name) for model in (first, second, third))
    assert torch.equal(one.A, two.A) and torch.equal(one.gate, two.gate)
    assert not torch.equal(one.A, three.A)
    assert one.A.abs().max() <= 1 / math.sqrt(one.in_features)


def test_targets_by_a_longer_tail_of_the_name() -> None:
    model = tiny_model()
    names = inject(model, CoDyRAConfig(rank=4, target_modules=("self_attn.q_proj", "layers.1.mlp.up_proj")))
    assert names == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
    ]


def test_a_tied_head_is_refused() -> None:
    model = tiny_model("gemma2")
    with pytest.raises(ValueError, match="lm_head is tied to another module's"):
        inject(model, CoDyRAConfig(rank=4, target_modules=("q_proj", "lm_head")))
    untied = tiny_model("llama")
    assert inject(untied, CoDyRAConfig(rank=4, target_modules=("lm_head",))) == ["lm_head"]


def test_the_vision_part_of_a_model_is_left_alone() -> None:
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config=CONFIGS["gemma3"]().to_dict(), vision_config={**vision, "image_size": 28, "patch_size": 14}
    )
    model = AutoModelForCausalLM.from_config(config)
    assert any("vision" in name and name.endswith("q_proj") for name, _ in model.named_modules())
    names = inject(model, CoDyRAConfig(rank=4))
    assert len(names) == 14
    assert not any("vision" in name for name in names)


def test_mistakes_are_named() -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match='"c_attn" matches no projection of this model; it has down_proj, gate_proj'):
        inject(model, CoDyRAConfig(rank=4, target_modules=("q_proj", "c_attn")))
    with pytest.raises(ValueError, match="no gated branch to merge"):
        merge(model)
    inject(model, CoDyRAConfig(rank=4))
    with pytest.raises(ValueError, match="has gated branches already"):
        inject(model, CoDyRAConfig(rank=4))
    weights = {name: p.clone() for name, p in model.named_parameters()}
    list(gated_layers(model))[-1][1].B.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite; nothing was merged"):
        merge(model)
    name = "model.layers.0.self_attn.q_proj.base.weight"
    assert torch.equal(model.get_parameter(name), weights[name])
    assert isinstance(model.get_submodule("model.layers.0.self_attn.q_proj"), CoDyRALinear)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"target_modules": ()}, "target_modules is empty"),
        ({"threshold_strength": 0.0}, "can prune nothing"),
        ({"threshold_strength": 0.2}, "use at least 0.25"),
        ({"threshold_mode": "budget", "gate_init": "ones", "threshold_strength": 0.65}, "use at least 1"),
        ({"dense_fraction": 1.5}, "dense_fraction is 1.5"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CoDyRAConfig(**settings)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (("all",), {0, 1, 2, 3, 4}),
        (("early",), {0, 1}),
        (("middle",), {2, 3}),
        (("late",), {4}),
        (("0", "late"), {0, 4}),
        (("3",), {3}),
    ],
)
def test_branches_in_some_layers(layers: tuple[str, ...], expected: set[int]) -> None:
    model = tiny_model(num_hidden_layers=5)
    names = inject(model, CoDyRAConfig(rank=4, target_modules=("q_proj", "up_proj"), target_layers=layers))
    assert {number_of_layer(name) for name in names} == expected and len(names) == 2 * len(expected)


def test_layers_that_are_not_there() -> None:
    with pytest.raises(ValueError, match="there is no layer 2; this model has layers 0 to 1"):
        inject(tiny_model(), CoDyRAConfig(rank=4, target_layers=("0", "2")))
    with pytest.raises(ValueError, match="no target is in late"):
        inject(
            tiny_model(tie_word_embeddings=False), CoDyRAConfig(target_modules=("lm_head",), target_layers=("late",))
        )
    with pytest.raises(ValueError, match="'last' is neither all, early, middle, late nor the number"):
        CoDyRAConfig(target_layers=("last",))
