"""The bytes that one rank holds and moves, for each way of running: what DeepSpeed 0.19 allocates around fp32 adapters.

DeepSpeed's configuration enables neither bf16 nor fp16 (the adapters are fp32 whatever the base is), so gradients,
master copies, moments and what is communicated of them are fp32. `codyra_llm/engine/ds_config.py` says what a JSON
file may change; its bucket and prefetch sizes are read here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from torch import nn

from codyra_llm.adapter.layer import gated_layers

FP32 = 4
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

    `gates` is the number of trained gate values, `adam_bits` what a moment of A or B takes.
    """

    parameters: Sequence[Parameter]
    gates: int
    adam_bits: int = 32

    @classmethod
    def of(cls, model: nn.Module, adam_bits: int = 32) -> "ModelSizes":
        """The sizes of a model with gated branches, on any device."""
        gates = sum(layer.rank for _, layer in gated_layers(model) if layer.gate.requires_grad)
        parameters = [
            Parameter(p.numel(), getattr(p, "stored_bytes", p.nbytes), p.requires_grad) for p in model.parameters()
        ]
        return cls(parameters, gates, adam_bits)

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
    """Bytes that one rank receives in one optimizer step (it sends as many): over the network, and from its host."""

    gradients: int
    weights: int
    optimizer: int
    host: int

    @property
    def network(self) -> int:
        """All but what comes from the host."""
        return self.gradients + self.weights + self.optimizer


def step_traffic(sizes: ModelSizes, zero: DeepSpeedZeroConfig, ranks: int, accumulation: int, passes: int) -> Traffic:
    """What an optimizer step moves, with ring collectives: (ranks - 1) / ranks of what is gathered or scattered.

    `gradients` are reduced (stages 0 and 1: once a step; 2 and 3: for each micro batch), `weights` gathered by
    ZeRO-3 for the forward and the backward pass, `optimizer` is the gathering of what the step has changed.
    `passes` counts how often a micro batch visits a layer: 2, or 3 with gradient checkpointing, where a layer's weights
    are taken to stay from its recomputation to its backward pass (stage3_max_reuse_distance of two layers or more).
    """
    stage, n = int(zero.stage), sizes.adapter_bytes

    def share(size: int) -> int:
        return size * (ranks - 1) // ranks

    if stage <= 1:
        return Traffic(2 * share(n), 0, share(n) if stage else 0, 0)
    own = n // ranks
    if stage == 2:
        host = own if zero.offload_optimizer else 0
        return Traffic(2 * share(n) * accumulation, 0, share(n), host)
    values, total = partitioned(sizes, zero)
    # of the weights that the backward pass needs, those used last in the forward pass are still there
    kept = min(values, zero.max_reuse_distance // passes)
    again = total * (values - kept) // max(values, 1)
    small = sizes.bytes_of(False, zero.param_persistence_threshold) + sizes.bytes_of(
        True, zero.param_persistence_threshold
    )
    host = accumulation * (total + again) // ranks + small // ranks if zero.offload_param else 0
    return Traffic(share(n) * accumulation, share(total + again) * accumulation, share(small), host)
