"""The bytes that one rank stores and moves in each way of running: allocations of DeepSpeed 0.19 with fp32 adapters.

DeepSpeed's configuration enables neither bf16 nor fp16 (the adapters are fp32 whatever the base is), so gradients,
master copies, moments and their communication are fp32. `codyra_llm/engine/ds_config.py` specifies what a JSON file may
change; its bucket and prefetch sizes are used here.
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
    """The sizes of a model that memory depends on.

    Attributes:
        parameters: all parameters.
        gates: number of trained gate values.
        adam_bits: bits of a value of Adam's moments of A and B.
        head: values of the output embedding.
        embedding: values of the input embedding; 0 if it is tied to the output embedding.
        last: values of the last projection of each layer.
    """

    parameters: Sequence[Parameter]
    gates: int
    adam_bits: int = 32
    head: int = 0
    embedding: int = 0
    last: tuple[int, ...] = ()

    @classmethod
    def of(cls, model: PreTrainedModel, adam_bits: int = 32) -> "ModelSizes":
        """Returns the sizes of a model with gated branches, on any device."""
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
        """Bytes of the gates' moving averages of importance, fp32."""
        return self.gates * FP32

    def persistent(self, zero: DeepSpeedZeroConfig) -> list[Parameter]:
        """Returns the parameters that ZeRO-3 does not partition because they are small."""
        return [p for p in self.parameters if p.values <= zero.param_persistence_threshold]

    def bytes_of(self, trains: bool, largest: int | None = None) -> int:
        """Returns the bytes of the parameters that train (or do not), with at most `largest` values (None: all)."""
        chosen = (p for p in self.parameters if p.trains == trains and (largest is None or p.values <= largest))
        return sum(p.bytes for p in chosen)


@dataclass(frozen=True)
class RankMemory:
    """Bytes on one rank's device and host.

    `weights` to `activations` exist at the same time at the peak of a backward pass. `step` is what the optimizer step
    allocates instead of gradients, gathered weights, buckets and activations.
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
        """Bytes that are always on the device."""
        return self.weights + self.adapters + self.optimizer

    @property
    def passing(self) -> int:
        """Bytes that the peak of a backward pass adds."""
        return self.gradients + self.gathered + self.buckets + self.activations

    @property
    def peak(self) -> int:
        """Peak bytes on the device."""
        return self.held + max(self.passing, self.step)

    @property
    def host_peak(self) -> int:
        """Peak bytes on the host, for this rank."""
        return self.host + self.host_step

    @property
    def shared_peak(self) -> int:
        """Peak bytes if device and host have the same memory, as on a CPU."""
        return self.held + self.host + max(self.passing, self.step + self.host_step)


def rank_memory(
    sizes: ModelSizes, zero: DeepSpeedZeroConfig, ranks: int, accumulation: int, activations: int
) -> RankMemory:
    """Returns the memory of one rank in training.

    Args:
        sizes: of the model with branches.
        zero: DeepSpeed's section "zero_optimization".
        ranks: number of ranks that ZeRO partitions over.
        accumulation: micro batches of one optimizer step on one rank.
        activations: peak bytes of a micro batch, as returned by `activation_bytes`.
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
    flat = min(n, bucket)  # a reduction flattens the content of the bucket
    scratch = 4 * own  # averaged gradients, the flat copy that Adam gets, and two temporaries of Adam
    if stage == 1:
        step = max(n + buckets + own + flat, scratch)
        return RankMemory(weights, n, states, n, buckets=buckets, activations=activations, step=step)
    waiting = own if accumulation > 1 else 0
    # a bucket that fits all gradients is reduced after the activations are freed, a smaller one before
    early = n > bucket
    if zero.offload_optimizer is None:
        step = max(waiting + own + buckets + flat, scratch)
        gradients = waiting + (own if early else 0)
        return RankMemory(weights, n, states, gradients, 0, buckets + (flat if early else 0), activations, step)
    largest = FP32 * max(p.values for p in sizes.parameters if p.trains)  # a gradient in transfer, on either side
    host = states + 2 * own + waiting + largest  # plus the gradients, and the updated values in transfer
    step, buckets = buckets + flat + largest, buckets + largest + (flat if early else 0)
    return RankMemory(weights, n, 0, 0, 0, buckets, activations, step, host, host_step=2 * own)


def _stage_3(sizes: ModelSizes, zero: DeepSpeedZeroConfig, ranks: int, activations: int) -> RankMemory:
    n = sizes.adapter_bytes
    own, base = ceil(n / ranks), ceil(sizes.bytes_of(trains=False) / ranks)
    states = own + ceil(_moments(sizes) / ranks)
    small = zero.param_persistence_threshold
    offloaded = zero.offload_param is not None
    whole = ranks > 1 or offloaded  # a single rank without offloading computes with its partition directly
    persistent = [sizes.bytes_of(trains, small) if whole else 0 for trains in (False, True)]
    gathered = _gathered(sizes, zero) if whole else 0
    bucket = zero.reduce_bucket_size * FP32
    flat = min(n, bucket)
    buckets = bucket + (flat if n > bucket else 0)  # one permanent bucket, and the copy for an early reduction
    weights, adapters = persistent[0] + (0 if offloaded else base), persistent[1] + (0 if offloaded else own)
    kept = base + own if offloaded else 0
    if zero.offload_optimizer is None:
        # own gradients stay between steps; a step adds a flat copy and two temporaries of Adam, a last reduction two
        # copies
        step = bucket + own + max(3 * own, 2 * flat)
        return RankMemory(weights, adapters, states, own, gathered, buckets, activations, step, host=kept)
    host = kept + states + 2 * own  # accumulated gradients, and those that Adam gets
    step = bucket + 2 * flat
    return RankMemory(weights, adapters, 0, 0, gathered, buckets, activations, step, host, host_step=2 * own)


def _moments(sizes: ModelSizes) -> int:
    if sizes.adam_bits == 32:
        return 2 * sizes.adapter_bytes + sizes.importance_bytes
    narrow = sizes.trainable - sizes.gates
    return 2 * (narrow + FP32 * ceil(narrow / 256)) + 3 * sizes.importance_bytes  # a scale for 256; gates in fp32


def _gathered(sizes: ModelSizes, zero: DeepSpeedZeroConfig) -> int:
    """Returns the bytes of the weights that are gathered on a rank at the peak of activations."""
    values, total = partitioned(sizes, zero)
    live = min(values, zero.max_live_parameters)
    # weights fetched together exist twice, in the flat buffer that they arrived in and in separate tensors, until the
    # last of them is used
    arriving = min(values, zero.prefetch_bucket_size)
    return (live + arriving) * total // max(values, 1)


def partitioned(sizes: ModelSizes, zero: DeepSpeedZeroConfig) -> tuple[int, int]:
    """Returns (values, bytes) of the parameters that ZeRO-3 gathers for use and then releases."""
    chosen = [p for p in sizes.parameters if p.values > zero.param_persistence_threshold]
    return sum(p.values for p in chosen), sum(p.bytes for p in chosen)


@dataclass(frozen=True)
class Traffic:
    """Bytes that one rank receives in one optimizer step (it sends as many): over the network, and from its host.

    The `..._calls` are the largest numbers of collective operations that move them: ZeRO-3 may gather small weights
    together when it prefetches them, and on one rank fetches weights without a collective. `agreements` are all-reduces
    of a few numbers: norms, sums of losses, the gates' importance.
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
        """Bytes received over the network: all except those from the host."""
        return self.gradients + self.weights + self.optimizer


def step_traffic(
    sizes: ModelSizes, zero: DeepSpeedZeroConfig, ranks: int, accumulation: int, recompute: bool
) -> Traffic:
    """Returns the traffic of an optimizer step with ring collectives: (ranks - 1) / ranks of all gathered bytes.

    `gradients` are reduced (stages 0 and 1: once per step; 2 and 3: for each micro batch), `weights` are gathered by
    ZeRO-3 for each pass over a layer, and `optimizer` is the gathering of the updated values.
    """
    stage, n = int(zero.stage), sizes.adapter_bytes
    host = _from_host(sizes, zero, ranks, accumulation, recompute) if stage >= 2 else 0
    gathered, calls = _gathers(sizes, zero, recompute) if stage == 3 else (0, 0)
    if ranks == 1:
        return Traffic(0, 0, 0, host, weight_calls=calls * accumulation)

    def share(size: int) -> int:
        return size * (ranks - 1) // ranks

    if stage <= 1:
        return Traffic(
            2 * share(n), 0, share(n) * stage, 0, ceil(n / FP32 / STAGE_0_BUFFER), 0, GROUPS * stage, 3 + stage
        )
    buckets = accumulation * ceil(n / FP32 / zero.reduce_bucket_size)
    if stage == 2:
        return Traffic(2 * share(n) * accumulation, 0, share(n), host, buckets, 0, GROUPS, 4)
    small = sizes.persistent(zero)
    moved = (share(n) * accumulation, share(gathered) * accumulation, share(sum(p.bytes for p in small)), host)
    return Traffic(*moved, buckets, calls * accumulation, len(small), 4 + accumulation)


def _gathers(sizes: ModelSizes, zero: DeepSpeedZeroConfig, recompute: bool) -> tuple[int, int]:
    """Returns (bytes, number) of the weights that ZeRO-3 gathers for one micro batch.

    Each weight is gathered once for the forward pass. For the backward pass those are gathered that have been released
    (not the input embedding, which has no backward pass unless its output is the input of an activation checkpoint).
    With recomputation each layer's weights are gathered once more, except its last projection, with which the backward
    pass begins. After the forward pass the head stays gathered and, as far as `stage3_max_reuse_distance` reaches
    beyond it, the last layers.
    """
    values, total = partitioned(sizes, zero)
    of_layers, ends = values - sizes.head - sizes.embedding, 1 + (sizes.embedding > 0)
    number = len(sizes.parameters) - len(sizes.persistent(zero)) - ends
    reach = max(0, int(zero.max_reuse_distance) - 2 * sizes.head) // (3 if recompute else 2)
    stays = min(1.0, reach / max(1, of_layers))  # share of the layers that stay gathered
    passes = 2 - stays + recompute
    moved, calls = passes * of_layers - recompute * sum(sizes.last), passes * number - recompute * len(sizes.last)
    of_head = 1 if zero.max_reuse_distance else 2
    # if all layers stay gathered, so does the input embedding
    of_embedding = 2 if recompute and stays < 1 else 1
    moved += of_head * sizes.head + of_embedding * sizes.embedding
    return int(moved * total / max(values, 1)), round(calls) + of_head + of_embedding * (sizes.embedding > 0)


def _from_host(sizes: ModelSizes, zero: DeepSpeedZeroConfig, ranks: int, accumulation: int, recompute: bool) -> int:
    """Returns the bytes that offloading copies to the device of one rank in an optimizer step."""
    if int(zero.stage) == 2:
        return sizes.adapter_bytes // ranks if zero.offload_optimizer else 0
    if not zero.offload_param:
        return 0
    small = sum(p.bytes for p in sizes.persistent(zero))
    return accumulation * _gathers(sizes, zero, recompute)[0] // ranks + small // ranks
