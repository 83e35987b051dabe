"""AdamW with 8-bit moments (bitsandbytes, arXiv 2110.02861), followed by the same proximal step.

The moving averages of A and B are stored in 8 bits, in blocks of 256 values with a scale each: a quarter of the memory.
Those of the gates stay in fp32, since they decide which components are pruned. Those of fewer than 4096 values stay in
fp32 as well, as in bitsandbytes.
"""

from collections.abc import Iterable
from typing import Any

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import dequantize_blockwise, quantize_blockwise

from codyra_llm.adapter.optimizer import Proximal

# (our name, bitsandbytes' tensor, its scales, its table of values)
PACKED = (("exp_avg", "state1", "absmax1", "qmap1"), ("exp_avg_sq", "state2", "absmax2", "qmap2"))
BLOCK = 256
SMALLEST = 4096


class ProximalAdamW8bit(Proximal, bnb.optim.AdamW8bit):
    """AdamW in 8 bits and its proximal step; takes the arguments of `ProximalAdamW`."""

    def __init__(self, params: Iterable[Any], **options: Any) -> None:
        super().__init__(params, min_8bit_size=SMALLEST, **options)

    def get_config(self, gindex: int, pindex: int, group: dict[str, Any]) -> dict[str, Any]:
        """Returns bitsandbytes' configuration of a parameter, with 32 bits for the gates' averages."""
        config: dict[str, Any] = super().get_config(gindex, pindex, group)
        return {**config, "optim_bits": 32} if "threshold_mode" in group else config

    def moments(self, p: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns the moving averages, dequantized; see `Proximal.moments`."""
        state = self.state[p]
        found = {"importance": state["importance"]} if "importance" in state else {}
        for name, values, scales, table in PACKED:
            if scales in state:
                found[name] = dequantize_blockwise(state[values], None, state[scales], state[table], blocksize=BLOCK)
            elif values in state:
                found[name] = state[values]
        return found

    def set_moments(self, p: torch.Tensor, step: int, moments: dict[str, torch.Tensor], of_gates: bool) -> None:
        """Restores the moving averages (`Proximal.set_moments`); those stored in 8 bits are quantized again."""
        state = self.state[p]
        state["step"] = step
        for (name, values, scales, table), kind in zip(PACKED, ("dynamic", "udynamic"), strict=True):
            state[values] = moments[name]
            if not of_gates and p.numel() >= SMALLEST:
                state[table] = self.name2qmap[kind].to(p.device)
                state[values], quant_state = quantize_blockwise(moments[name], state[table], blocksize=BLOCK)
                state[scales] = quant_state.absmax
        if "importance" in moments:
            state["importance"] = moments["importance"]
