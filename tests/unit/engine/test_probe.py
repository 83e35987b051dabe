"""The check that our forward pass equals a model's own: models that differ are refused, with the difference named."""

from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from codyra_llm.engine.loss import AnswerLoss
from codyra_llm.engine.probe import check_forward
from codyra_llm.errors import UserError
from tests.models import COMMON, CONFIGS, tiny_model

SCALED: dict[str, Any] = {
    "Granite": {"logits_scaling": 8.0, "embedding_multiplier": 12.0, "attention_multiplier": 0.5},
    "Cohere": {"logit_scale": 0.0625},
    "Cohere2": {"logit_scale": 0.25, "sliding_window": 16},
}
FAMILIES: dict[str, Any] = {
    "Qwen2": {},
    "Phi3": {"pad_token_id": 0, "sliding_window": 16},
    "Olmo2": {},
    "Mixtral": {"num_local_experts": 2},
}
OTHER: dict[str, Any] = {
    "RecurrentGemma": {"lru_width": 32, "attention_window_size": 16, "logits_soft_cap": 5.0},
    "Llama4Text": {"num_local_experts": 2, "intermediate_size_mlp": 64},
    "Lfm2": {"layer_types": ["conv", "full_attention"]},
    "Mamba": {"state_size": 4},
    "FalconMamba": {"state_size": 4},
}


def model_of(kind: str, settings: dict[str, Any]) -> PreTrainedModel:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**COMMON, **settings})
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_models_that_are_run_as_their_own_code_does(architecture: str, dtype: torch.dtype) -> None:
    state = torch.random.get_rng_state()
    model = tiny_model(architecture, dtype=dtype)
    torch.random.set_rng_state(state)
    check_forward(model, "here")
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("kind", [*SCALED, *FAMILIES])
def test_other_families_and_scaled_heads(kind: str) -> None:
    model = model_of(kind, {**SCALED, **FAMILIES}[kind])
    check_forward(model, "here")
    ids = torch.arange(10, 40)[None]
    labels = torch.where(torch.arange(30) >= 24, ids, -100)
    own = model(input_ids=ids, use_cache=False).logits.float()
    expected = torch.nn.functional.cross_entropy(own[0, :-1], labels[0, 1:], ignore_index=-100, reduction="sum")
    torch.testing.assert_close(AnswerLoss(model)(ids, labels), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", OTHER)
def test_models_that_are_more_than_a_decoder_and_a_head(kind: str) -> None:
    with pytest.raises(UserError, match=rf"model.name_or_path here: {kind.removesuffix('Text')}\w* is not supported: "):
        check_forward(model_of(kind, OTHER[kind]), "here")


def test_a_head_that_is_scaled_in_a_way_nobody_knows() -> None:
    model = tiny_model("llama")
    model.lm_head.register_forward_hook(lambda module, inputs, output: output * (3 if inputs[0].ndim == 3 else 1))
    with pytest.raises(UserError, match="the logits differ from the model's own by"):
        check_forward(model, "here")
