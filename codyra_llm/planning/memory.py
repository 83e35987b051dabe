"""The bytes that one rank holds and moves, for each way of running: what DeepSpeed 0.19 allocates around fp32 adapters.

DeepSpeed's configuration enables neither bf16 nor fp16 (the adapters are fp32 whatever the base is), so gradients,
master copies, moments and what is communicated of them are fp32. `codyra_llm/engine/ds_config.py` says what a JSON
file may change; its bucket and prefetch sizes are read here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from torch import nn
from transformers import PreTrainedModel

from codyra_llm.adapter.layer import gated_layers

FP32 = 4
GROUPS = 2  # of the optimizer: A and B; gates
# elements that DeepSpeed's plain all-reduce (stage 0) flattens at once
STAGE_0_BUFFER = 500_000_000


@dataclass(frozen=True)
class Parameter:
    """One parameter of a model with branches: its number of values, their bytes, and whether it trains."""

    values: int
    bytes: int
    trains: bool


@dataclass(frozen=True)
class ModelSizes:
    """What of a model the memory depends on.

    `gates` is the number of trained gate values, `adam_bits` what a moment of A or B takes. `head` and `embedding` are
    values of the output and the input embedding, the latter 0 where the two are one; `last` those of the
    last projection of each layer.
    """

    parameters: Sequence[Parameter]
    gates: int
    adam_bits: int = 32
    head: int = 0
    embedding: int = 0
    last: tuple[int, ...] = ()

    @classmethod
    def of(cls, model: PreTrainedModel, adam_bits: int = 32) -> "ModelSizes":
        """The sizes of a model with gated branches, on any device."""
        gates = sum(layer.rank for _, layer in gated_layers(model) if layer.gate.requires_grad)
        parameters = [
            Parameter(p.numel(), getattr(p, "stored_bytes", p.nbytes), p.requires_grad) for p in model.parameters()
        ]
        head: Any = model.get_output_embeddings().weight
        embedding: Any = model.get_input_embeddings().weight
        layers: Any = getattr(model.get_decoder(), "layers", ())
        of_layers = [
            [part.weight.numel() for part in layer.modules() if isinstance(part, nn.Linear)] for layer in layers
        ]
        last = tuple(values[-1] for values in of_layers)
        return cls(parameters, gates, adam_bits, head.numel(), 0 if embedding is head else embedding.numel(), last)

    @property
    def trainable(self) -> int:
        """Number of trained values."""
        return sum(p.values for p in self.parameters if p.trains)

    @property
    def total(self) -> int:
        """Number of all values."""
        return sum(p.values for p in self.parameters)

    @property
    def adapter_bytes(self) -> int:
        """A, B and gates in fp32: the size of the adapters, of their gradients and of one Adam moment."""
        return self.trainable * FP32

    @property
    def importance_bytes(self) -> int:
        """The gates' moving averages."""
        return self.gates * FP32

    def persistent(self, zero: DeepSpeedZeroConfig) -> list[Parameter]:
        """The parameters so small that ZeRO-3 keeps them whole."""
        return [p for p in self.parameters if p.values <= zero.param_persistence_threshold]

    def bytes_of(self, trains: bool, largest: int | None = None) -> int:
        """Bytes of the parameters that train, or do not; `largest` leaves out those of more values."""
        chosen = (p for p in self.parameters if p.trains == trains and (largest is None or p.values <= largest))
        return sum(p.bytes for p in chosen)


@dataclass(frozen=True)
class RankMemory:
    """Bytes on one rank's device and host.

    The first group is held together at the height of a backward pass. `step` is what the optimizer step holds in
    place of gradients, gathered weights, buckets and activations.
    """

    weights: int
    adapters: int
    optimizer: int
    gradients: int = 0
    gathered: int = 0
    buckets: int = 0
    activations: int = 0
    step: int = 0
    host: int = 0
    host_step: int = 0

    @property
    def held(self) -> int:
        """Bytes on the device all the time."""
        return self.weights + self.adapters + self.optimizer

    @property
    def passing(self) -> int:
        """Bytes that the height of a backward pass adds."""
        return self.gradients + self.gathered + self.buckets + self.activations

    @property
    def peak(self) -> int:
        """Most bytes on the device at one time."""
        return self.held + max(self.passing, self.step)

    @property
    def host_peak(self) -> int:
        """Most bytes on the host at one time, for this rank."""
        return self.host + self.host_step

    @property
    def shared_peak(self) -> int:
        """Most bytes at one time where device and host are one memory, as on a CPU."""
        return self.held + self.host + max(self.passing, self.step + self.host_step)


def rank_memory(
    sizes: ModelSizes, zero: DeepSpeedZeroConfig, ranks: int, accumulation: int, activations: int
) -> RankMemory:
    """What one rank holds while it trains.

    Args:
        sizes: of the model with branches.
        zero: DeepSpeed's section "zero_optimization".
        ranks: over which ZeRO divides.
        accumulation: micro batches of one optimizer step on one rank.
        activations: peak bytes of a micro batch, as `activation_bytes` gives them.
    """
    stage = int(zero.stage)
    if stage == 3:
        return _stage_3(sizes, zero, ranks, activations)
    weights, n = sizes.bytes_of(trains=False), sizes.adapter_bytes
    if stage == 0:
        flat = min(n, STAGE_0_BUFFER * FP32)
        return RankMemory(weights, n, _moments(sizes), gradients=n, activations=activations, step=n + flat)
    own = ceil(n / ranks)
    states = own + ceil(_moments(sizes) / ranks)  # ZeRO steps an fp32 copy of its part
    bucket = zero.reduce_bucket_size * FP32
    buckets = bucket * (2 if zero.overlap_comm else 1)
    flat = min(n, bucket)  # a reduction flattens what the bucket holds
    scratch = 4 * own  # averaged gradients, the flat copy that Adam is given, and two of Adam's own
    if stage == 1:
        step = max(n + buckets + own + flat, scratch)
        return RankMemory(weights, n, states, n, buckets=buckets, activations=activations, step=step)
    waiting = own if accumulation > 1 else 0
    # a bucket that all gradients fit into is reduced when the activations are gone, a smaller one before
    early = n > bucket
    if zero.offload_optimizer is None:
        step = max(waiting + own + buckets + flat, scratch)
        gradients = waiting + (own if early else 0)
        return RankMemory(weights, n, states, gradients, 0, buckets + (flat if early else 0), activations, step)
    largest = FP32 * max(p.values for p in sizes.parameters if p.trains)  # a gradient on its way, on either side
    host = states + 2 * own + waiting + largest  # and the gradients, and the stepped values on their way back
    step, buckets = buckets + flat + largest, buckets + largest + (flat if early else 0)
    return RankMemory(weights, n, 0, 0, 0, buckets, activations, step, host, host_step=2 * own)


def _stage_3(sizes: ModelSizes, zero: DeepSpeedZeroConfig, ranks: int, activations: int) -> RankMemory:
    n = sizes.adapter_bytes
    own, base = ceil(n / ranks), ceil(sizes.bytes_of(trains=False) / ranks)
    states = own + ceil(_moments(sizes) / ranks)
    small = zero.param_persistence_threshold
    offloaded = zero.offload_param is not None
    whole = ranks > 1 or offloaded  # one rank without offloading computes with its part itself
    persistent = [sizes.bytes_of(trains, small) if whole else 0 for trains in (False, True)]
    gathered = _gathered(sizes, zero) if whole else 0
    bucket = zero.reduce_bucket_size * FP32
    flat = min(n, bucket)
    buckets = bucket + (flat if n > bucket else 0)  # one, kept all the time; and what an early reduction takes out
    weights, adapters = persistent[0] + (0 if offloaded else base), persistent[1] + (0 if offloaded else own)
    kept = base + own if offloaded else 0
    if zero.offload_optimizer is None:
        # own gradients stay between steps; a step adds a flat copy and two of Adam's, a last reduction two copies
        step = bucket + own + max(3 * own, 2 * flat)
        return RankMemory(weights, adapters, states, own, gathered, buckets, activations, step, host=kept)
    host = kept + states + 2 * own  # accumulated gradients, and those that Adam is given
    step = bucket + 2 * flat
    return RankMemory(weights, adapters, 0, 0, gathered, buckets, activations, step, host, host_step=2 * own)


def _moments(sizes: ModelSizes) -> int:
    if sizes.adam_bits == 32:
        return 2 * sizes.adapter_bytes + sizes.importance_bytes
    narrow = sizes.trainable - sizes.gates
    return 2 * (narrow + FP32 * ceil(narrow / 256)) + 3 * sizes.importance_bytes  # a scale for 256; gates in fp32


def _gathered(sizes: ModelSizes, zero: DeepSpeedZeroConfig) -> int:
    """Bytes of the weights that are whole on a rank at the height of activations."""
    values, total = partitioned(sizes, zero)
    live = min(values, zero.max_live_parameters)
    # what was fetched together exists twice, in the flat buffer it arrived in and in tensors of its own, until the last
    # of it is used
    arriving = min(values, zero.prefetch_bucket_size)
    return (live + arriving) * total // max(values, 1)


def partitioned(sizes: ModelSizes, zero: DeepSpeedZeroConfig) -> tuple[int, int]:
    """(values, bytes) of the parameters that ZeRO-3 gathers for use and lets go again."""
    chosen = [p for p in sizes.parameters if p.values > zero.param_persistence_threshold]
    return sum(p.values for p in chosen), sum(p.bytes for p in chosen)


@dataclass(frozen=True)
class Traffic:
    """Bytes that one rank receives in one optimizer step (it sends as many): over the network, and from its host.

    The `..._calls` are the collective operations that move them, at most: ZeRO-3 gathers small weights together where
    it prefetches them, and on one rank fetches them without a collective. `agreements` are all-reduces of a few
    numbers: norms, the sums of losses, the gates' importance.
    """

    gradients: int
    weights: int
    optimizer: int
    host: int
    gradient_calls: int = 0
    weight_calls: int = 0
    optimizer_calls: int = 0
    agreements: int = 0

    @property
    def network(self) -> int:
        """All but what comes from the host."""
        return self.gradients + self.weights + self.optimizer


def step_traffic(
    sizes: ModelSizes, zero: DeepSpeedZeroConfig, ranks: int, accumulation: int, recompute: bool
) -> Traffic:
    """What an optimizer step moves, with ring collectives: (ranks - 1) / ranks of what is gathered or scattered.

    `gradients` are reduced (stages 0 and 1: once a step; 2 and 3: for each micro batch), `weights` gathered by
    ZeRO-3 for each pass over a layer, `optimizer` is the gathering of what the step has changed.
    """
    stage, n = int(zero.stage), sizes.adapter_bytes
    if ranks == 1:
        host = 0 if stage < 2 else _from_host(sizes, zero, ranks, accumulation, recompute)
        fetched = accumulation * _gathers(sizes, zero, recompute)[1] if stage == 3 else 0
        return Traffic(0, 0, 0, host, weight_calls=fetched)

    def share(size: int) -> int:
        return size * (ranks - 1) // ranks

    if stage <= 1:
        return Traffic(
            2 * share(n), 0, share(n) * stage, 0, ceil(n / FP32 / STAGE_0_BUFFER), 0, GROUPS * stage, 3 + stage
        )
    host = _from_host(sizes, zero, ranks, accumulation, recompute)
    buckets = accumulation * ceil(n / FP32 / zero.reduce_bucket_size)
    if stage == 2:
        return Traffic(2 * share(n) * accumulation, 0, share(n), host, buckets, 0, GROUPS, 4)
    gathered, calls = _gathers(sizes, zero, recompute)
    small = sizes.persistent(zero)
    moved = (share(n) * accumulation, share(gathered) * accumulation, share(sum(p.bytes for p in small)), host)
    return Traffic(*moved, buckets, calls * accumulation, len(small), 4 + accumulation)


def _gathers(sizes: ModelSizes, zero: DeepSpeedZeroConfig, recompute: bool) -> tuple[int, int]:
    """(bytes, number) of the weights that ZeRO-3 gathers for one micro batch.

    Each weight once for the forward pass; for the backward pass those that are no longer there (an input embedding has
    none, unless its output is a checkpoint's input); and with recomputation each layer's once more, but for its last
    projection, which the backward pass begins with. What stays from the forward pass on is the head and, as far as
    `stage3_max_reuse_distance` reaches over it, the last layers.
    """
    values, total = partitioned(sizes, zero)
    of_layers, ends = values - sizes.head - sizes.embedding, 1 + (sizes.embedding > 0)
    number = len(sizes.parameters) - len(sizes.persistent(zero)) - ends
    reach = max(0, int(zero.max_reuse_distance) - 2 * sizes.head) // (3 if recompute else 2)
    stays = min(1.0, reach / max(1, of_layers))  # share of the layers
    passes = 2 - stays + recompute
    moved, calls = passes * of_layers - recompute * sum(sizes.last), passes * number - recompute * len(sizes.last)
    of_head = 1 if zero.max_reuse_distance else 2
    # where all layers stay, the input embedding does as well
    of_embedding = 2 if recompute and stays < 1 else 1
    moved += of_head * sizes.head + of_embedding * sizes.embedding
    return int(moved * total / max(values, 1)), round(calls) + of_head + of_embedding * (sizes.embedding > 0)


def _from_host(sizes: ModelSizes, zero: DeepSpeedZeroConfig, ranks: int, accumulation: int, recompute: bool) -> int:
    """Bytes that offloading brings to the device of one rank in an optimizer step."""
    if int(zero.stage) == 2:
        return sizes.adapter_bytes // ranks if zero.offload_optimizer else 0
    if not zero.offload_param:
        return 0
    small = sum(p.bytes for p in sizes.persistent(zero))
    return accumulation * _gathers(sizes, zero, recompute)[0] // ranks + small // ranks
