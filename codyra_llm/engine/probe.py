"""Checks that a model runs the way this project runs it: decoder and head apart, with the project's KV cache."""

import torch
from transformers import PreTrainedModel

from codyra_llm.errors import UserError, reason
from codyra_llm.generation.kv_cache import Context
from codyra_llm.models.head import answer_logits

TOKENS, READ_FIRST = 12, 8
TOLERANCE = {torch.float32: 0.01}  # share of the largest logit; 0.05 for other dtypes and quantized weights


@torch.no_grad()
def check_forward(model: PreTrainedModel, name: str) -> None:
    """Compares logits on a few tokens, computed in one pass and with a KV cache, with the model's own.

    Training and evaluation call the decoder and apply the head to the hidden states that they need. A model that does
    more than that (scaled logits, another kind of cache) would be trained on a loss that is not its own.

    Raises:
        UserError: the logits differ or are not finite, or the model cannot be run this way.
    """
    ids = _some_ids(model)
    rows = ids[0].tolist()
    try:
        own = model(input_ids=ids, use_cache=False).logits[0].float()
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0]
        context = Context(model, 1, TOKENS, pad=rows[0])
        context.read([rows[:READ_FIRST]])
        cached = context.read([rows[READ_FIRST:]])[0]
        found = {"the logits": answer_logits(model, hidden), "a step with cached keys": answer_logits(model, cached)}
    except Exception as error:  # a model's code can raise anything if called in a way that it does not expect
        raise _unfit(model, name, f"it cannot be run without its own cache or head: {reason(error)}") from None
    if not torch.isfinite(own).all():
        raise UserError(
            f"model.name_or_path {name}: its logits are not finite in {str(model.dtype).removeprefix('torch.')}: "
            "values leave the range of the dtype, or its weights are damaged; try another model.dtype"
        )
    allowed = TOLERANCE.get(model.dtype, 0.05) * float(own.abs().max())
    for what, logits in found.items():
        difference = float((logits - own[-len(logits) :]).abs().max())
        if not difference <= allowed:
            raise _unfit(model, name, f"{what} differ from the model's own by {difference:.3g}")


def _some_ids(model: PreTrainedModel) -> torch.Tensor:
    """[1, TOKENS] ids of ordinary tokens, without special ones such as a model's image placeholders."""
    config, text = model.config, model.config.get_text_config()
    special = {value for each in (config, text) for value in vars(each).values() if type(value) is int}
    size = text.vocab_size
    ids = [each for each in range(size // 7, size) if each not in special] or list(range(size))
    return torch.tensor([ids[:: max(1, len(ids) // TOKENS)][:TOKENS]], device=model.device)


def _unfit(model: PreTrainedModel, name: str, problem: str) -> UserError:
    return UserError(
        f"model.name_or_path {name}: {type(model).__name__} is not supported: {problem}; use a model like "
        "LlamaForCausalLM or Gemma3ForCausalLM"
    )
