"""The memory of one forward and backward pass, measured by running it on the meta device: real operations, no data.

The result of each operation is counted from its creation until nothing references it, including autograd's saved
tensors. So the model's own code determines which tensors are kept, recomputed or temporary.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from deepspeed.runtime.zero.linear import zero3_linear_wrap
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from codyra_llm.engine.loss import summed_loss

ATEN = torch.ops.aten
PRODUCTS = {ATEN.mm, ATEN.addmm, ATEN.addmm_, ATEN.bmm, ATEN.baddbmm}
# torch does not count these as views, but they move no data; an embedding reads only few rows
UNMOVING = {ATEN.empty, ATEN.empty_like, ATEN.new_empty, ATEN._unsafe_view, ATEN.embedding}


class LiveBytes(TorchDispatchMode):
    """A context that counts the bytes of the storages that operations allocate.

    Attributes:
        live: bytes that are in use.
        peak: largest value of `live`.
        touched: bytes that all operations except matrix products and views read and write.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.touched = 0
        self._known: set[int] = set()

    def hold(self, tensor: torch.Tensor) -> None:
        """Excludes a tensor that already existed from the count, also if an operation returns it."""
        self._known.add(tensor.untyped_storage()._cdata)

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation is torch.ops.aten._local_scalar_dense.default:
            return (
                True  # transformers checks whether positions are consecutive: they are, but meta tensors have no data
            )
        result = operation(*args, **(kwargs or {}))
        moves = not operation.is_view and operation.overloadpacket not in PRODUCTS | UNMOVING
        for leaf in (result,) if isinstance(result, torch.Tensor) else tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
                self.touched += leaf.nbytes * moves
        if moves:
            self.touched += sum(part.nbytes for part in tree_leaves(args) if isinstance(part, torch.Tensor))
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        weakref.finalize(storage, self._free, key, storage.nbytes())
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def activation_bytes(
    model: PreTrainedModel, rows: int, length: int, answer_tokens: int, checkpointing: bool, partitioned: bool = False
) -> int:
    """Returns the peak bytes of a micro batch's forward and backward pass, without weights and their gradients.

    The arguments are those of `pass_bytes`.
    """
    return pass_bytes(model, rows, length, answer_tokens, checkpointing, partitioned)[0]


def pass_bytes(
    model: PreTrainedModel, rows: int, length: int, answer_tokens: int, checkpointing: bool, partitioned: bool = False
) -> tuple[int, int, int]:
    """Returns (`activation_bytes`, bytes read and written by all operations except products, those of the forward).

    Attention counts as fused wherever the model uses torch's scaled_dot_product_attention.

    Args:
        model: with gated branches, on the meta device.
        rows: number of rows of the micro batch.
        length: tokens of a row, including padding.
        answer_tokens: positions of the whole micro batch at which the head runs.
        checkpointing: whether each layer is recomputed in the backward pass.
        partitioned: whether ZeRO-3 is used, whose linear layers save their input even if the weight is frozen.
    """
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_disable()
        model.disable_input_require_grads()  # enabling checkpointing turns them on
    input_ids = torch.zeros(rows, length, dtype=torch.long, device="meta")
    targets = torch.zeros(answer_tokens, dtype=torch.long, device="meta")
    count = LiveBytes()
    for tensor in (*model.parameters(), *model.buffers()):
        count.hold(tensor)
    with _gradients_dropped(model), _functions(partitioned), count:
        loss = _loss(model, input_ids, targets)
        forward = count.touched
        loss.backward()
    return count.peak, count.touched, forward


def _loss(model: PreTrainedModel, input_ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Computes AnswerLoss without its boolean mask, whose number of selected entries is unknown on the meta device."""
    hidden = model.get_decoder()(input_ids=input_ids, use_cache=False).last_hidden_state
    chosen = hidden[:, :-1].reshape(-1, hidden.shape[-1])[torch.zeros_like(targets)]
    return summed_loss(model, chosen, targets)


@contextmanager
def _gradients_dropped(model: nn.Module) -> Iterator[None]:
    """A context in which each parameter's gradient is freed at once: how long it exists depends on the ZeRO stage."""

    def drop(parameter: torch.Tensor) -> None:
        parameter.grad = None

    handles = [p.register_post_accumulate_grad_hook(drop) for p in model.parameters() if p.requires_grad]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _functions(partitioned: bool) -> Iterator[None]:
    """A context in which attention uses a fused kernel, which torch does not choose on the meta device.

    The linear function is that of ZeRO-3 if `partitioned`, else torch's own, which DeepSpeed may have replaced in this
    process.
    """
    names: dict[str, Callable[..., Any]] = {
        "scaled_dot_product_attention": _fused_attention,
        "linear": zero3_linear_wrap if partitioned else torch._C._nn.linear,
    }
    before = {name: getattr(nn.functional, name) for name in names}
    try:
        for name, function in names.items():
            setattr(nn.functional, name, function)
        yield
    finally:
        for name, function in before.items():
            setattr(nn.functional, name, function)


def _fused_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Runs a fused kernel, which saves query, key, value, output and one sum per query; a mask becomes additive."""
    if attn_mask is not None:
        attn_mask = torch.empty_like(attn_mask, dtype=query.dtype)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return kernel(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
