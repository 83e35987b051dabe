"""Whether a model can be run as it is run here: decoder and head apart, over our own key-value cache."""

import torch
from transformers import PreTrainedModel

from codyra_llm.errors import UserError, reason
from codyra_llm.generation.kv_cache import Context
from codyra_llm.models.head import answer_logits

TOKENS, READ_FIRST = 12, 8
TOLERANCE = {torch.float32: 0.01}  # of the largest logit; of other dtypes and of quantized weights 0.05


@torch.no_grad()
def check_forward(model: PreTrainedModel, name: str) -> None:
    """Compares, on a few tokens, our logits and those after a cached step with the model's own.

    Training and evaluation call the decoder and put the head on the hidden states that they need. A model that does
    more than that (another scaling of its logits, a cache of another kind) would be trained on another loss than its
    own.

    Raises:
        UserError: they differ or are not finite, or the model cannot be run so.
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
    except Exception as error:  # of whatever the model's code assumes of its caller
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
    """[1, TOKENS] ids that stand for text, not for what a model puts images in."""
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
