"""A model of a run's time: operations and bytes, divided by the ceilings of the machine.

For one rank, with N values in the projections, n in the branches, h in the head, T tokens and A answer tokens in a
micro batch of rows of L tokens, and w attention values per token over all layers (causal: L / 2 on average):

    forward          2 (N + n) T + 2 w L T + 2 h A
    training         4 N T + 6 n T + 7 w L T + 4 h A          the base is frozen: no gradients of its weights
    recomputation    + 2 (N + n) T + 2 w L T
    computing        operations / flops + bytes of all other operations / memory, and at least the launch time; of the
                     branches at least their inputs and outputs / memory; at stage 3 at least what the host takes to
                     fetch each weight
    a collective     call + latency of its steps + bytes received / bandwidth, with the fastest protocol
    a pass of generation    the maximum of reading weights and KV cache, computing, and launching each layer

A ring of p ranks on k nodes gathers in p - 1 steps, of which k - 1 are between nodes, and all-reduces in twice as many.
A ring enters a node once, through all its network adapters together. All functions are pure; times are in seconds.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil, log2

from torch import nn
from transformers import PreTrainedModel

from codyra_llm.adapter.layer import gated_layers
from codyra_llm.planning.ceilings import Ceilings
from codyra_llm.planning.memory import ModelSizes, Traffic

BACKWARD_OF_ATTENTION = 2.5  # times the forward pass: four products instead of two, and one recomputed
FP32 = 4


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that time depends on.

    Attributes:
        layers: number of decoder layers.
        projections: values of the base's projections.
        branches: values of all branches.
        head: values of the output embedding.
        attention: query values of a token, over all layers.
        cached: bytes of the keys and values of a token, over all layers.
        weights: bytes of the base.
        width: bytes of an activation value.
        touched: bytes per token that a forward pass reads and writes in all operations except matrix products.
        spanned: values per token that the branches read and write in a forward pass: their inputs and outputs.
    """

    layers: int
    projections: int
    branches: int
    head: int
    attention: int
    cached: int
    weights: int
    width: int
    touched: float = 0
    spanned: int = 0

    @classmethod
    def of(cls, model: PreTrainedModel, sizes: ModelSizes) -> "Shape":
        """Returns the shape of a model with branches, on any device."""
        text = model.config.get_text_config()
        heads, kept = text.num_attention_heads, getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        of_head = getattr(text, "head_dim", None) or text.hidden_size // heads
        linear = sum(part.weight.numel() for part in model.modules() if isinstance(part, nn.Linear))
        width = model.dtype.itemsize
        return cls(
            layers=text.num_hidden_layers,
            projections=linear - sizes.head,
            branches=sizes.trainable,
            head=sizes.head,
            attention=text.num_hidden_layers * heads * of_head,
            cached=2 * text.num_hidden_layers * kept * of_head * width,
            weights=sizes.bytes_of(trains=False),
            width=width,
            spanned=sum(layer.A.shape[1] + layer.B.shape[0] for _, layer in gated_layers(model)),
        )


def forward_flops(shape: Shape, tokens: int, length: float, answers: int = 0) -> float:
    """Returns the FLOPs of a forward pass over `tokens` in rows of `length`, with the head at `answers` positions."""
    of_token = 2 * (shape.projections + shape.branches) + 2 * shape.attention * length
    return tokens * of_token + 2 * shape.head * answers


def training_flops(shape: Shape, tokens: int, length: float, answers: int, recompute: bool) -> float:
    """Returns the FLOPs of a forward and a backward pass, which computes gradients of inputs and of branches."""
    attention = 2 * shape.attention * length
    backward = tokens * (2 * shape.projections + 4 * shape.branches + BACKWARD_OF_ATTENTION * attention)
    again = forward_flops(shape, tokens, length) if recompute else 0
    return forward_flops(shape, tokens, length, answers) + backward + 2 * shape.head * answers + again


def micro_batch_seconds(
    shape: Shape, ceilings: Ceilings, tokens: int, length: float, answers: int, recompute: bool, touched: float = 0
) -> float:
    """Returns the time of the passes of a micro batch on one device.

    Args:
        shape: of the model.
        ceilings: of the machine.
        tokens: number of tokens.
        length: tokens of a row.
        answers: number of answer tokens.
        recompute: whether gradient checkpointing is used.
        touched: bytes read and written by all operations except matrix products (`activations.pass_bytes`).
    """
    passes = 3 if recompute else 2
    rows = (tokens, length, answers, recompute)
    of_base = training_flops(replace(shape, branches=0), *rows)
    of_branches = training_flops(shape, *rows) - of_base
    products = max(of_base / ceilings.flops, passes * shape.weights / ceilings.memory)
    # products of a small rank are limited by their inputs and outputs: once in a forward, twice in a backward pass
    spanned = tokens * shape.spanned * shape.width * (passes + 1)
    products += max(of_branches / ceilings.flops, spanned / ceilings.memory)
    return with_host(products + touched / ceilings.memory, passes * shape.layers * ceilings.layer, ceilings)


def with_host(seconds: float, host: float, ceilings: Ceilings) -> float:
    """Returns the time of the device and of its host's code, which overlap only on a GPU."""
    return max(seconds, host) if ceilings.ahead else seconds + host


def collective_seconds(received: float, calls: int, ranks: int, ceilings: Ceilings, rounds: int = 1) -> float:
    """Returns the time of consecutive ring collectives.

    Args:
        received: bytes that a rank receives in total.
        calls: number of collectives.
        ranks: number of ranks.
        ceilings: of the machine.
        rounds: 1 for all-gathers and reduce-scatters, 2 for all-reduces.
    """
    if ranks == 1 or not calls:
        return 0.0
    nodes = ceil(ranks / ceilings.devices)
    bandwidth = ceilings.link if nodes == 1 else min(ceilings.link, ceilings.network)

    def by(link: float, network: float, share: float) -> float:
        latency = rounds * ((ranks - nodes) * link + (nodes - 1) * network)
        return calls * (ceilings.call + latency) + received / (bandwidth * share)

    return min(by(each.link, each.network, each.share) for each in ceilings.protocols)


def agreement_seconds(ranks: int, ceilings: Ceilings) -> float:
    """Returns the time of an all-reduce of a few numbers: a chain within each node, a tree over nodes, in both ways."""
    if ranks == 1:
        return 0.0
    nodes = ceil(ranks / ceilings.devices)
    first = ceilings.protocols[0]
    steps = (ceil(ranks / nodes) - 1) * first.link + ceil(log2(nodes)) * first.network
    return ceilings.call + 2 * steps


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step. `overlaps`: whether gathering and reducing run while the device computes."""

    compute: float
    weights: float
    gradients: float
    optimizer: float
    agreements: float
    host: float
    overlaps: bool

    @property
    def network(self) -> float:
        """Seconds of all collectives, whether they overlap with computing or not."""
        return self.weights + self.gradients + self.optimizer + self.agreements

    @property
    def total(self) -> float:
        """Seconds of the whole step."""
        beside = self.weights + self.gradients + self.host
        passes = max(self.compute, beside) if self.overlaps else self.compute + beside
        return passes + self.optimizer + self.agreements


def step_time(
    compute: float, traffic: Traffic, stage: int, ranks: int, ceilings: Ceilings, overlaps: bool, trainable: int = 0
) -> StepTime:
    """Returns the time of an optimizer step, from the `compute` seconds of its micro batches and its traffic.

    The optimizer reads and writes values, gradients and moments of a rank's partition: 28 bytes per value.
    """
    part = trainable / (ranks if stage else 1)
    compute = with_host(compute, traffic.weight_calls * ceilings.fetch, ceilings)
    return StepTime(
        compute + 28 * part / ceilings.memory,
        collective_seconds(traffic.weights, traffic.weight_calls, ranks, ceilings),
        collective_seconds(traffic.gradients, traffic.gradient_calls, ranks, ceilings, 1 if stage == 3 else 2),
        collective_seconds(traffic.optimizer, traffic.optimizer_calls, ranks, ceilings),
        (traffic.agreements + 1) * agreement_seconds(ranks, ceilings),  # one more: whether to stop
        traffic.host / ceilings.host,
        overlaps and stage >= 2,
    )


@dataclass(frozen=True)
class Questions:
    """Rows to answer: their number, and the tokens of a prompt, of its reference answer and of the generated answer."""

    rows: int
    prompt: float
    answer: float = 0
    new: float = 0


def batch_seconds(
    shape: Shape, ceilings: Ceilings, asked: Questions, batch: int, gather: float = 0, speedup: float = 1
) -> float:
    """Returns the time of a batch of questions on one rank: prompts, reference answers, then generation.

    Args:
        shape: of the model.
        ceilings: of the machine.
        asked: the kind of questions.
        batch: number of rows.
        gather: seconds in which a pass gathers the weights, if they are partitioned (`evaluate.gather` never).
        speedup: tokens of a row per pass of generation, with guesses.
    """

    def a_pass(operations: float, read: float, tokens: float) -> float:
        moved = batch * tokens * shape.touched / ceilings.memory
        computed = max(operations / ceilings.flops, read / ceilings.memory) + moved
        return with_host(computed, shape.layers * ceilings.layer, ceilings) + gather

    def reading(tokens: float, answers: float) -> float:
        operations = forward_flops(shape, int(batch * tokens), tokens, int(batch * answers))
        return a_pass(operations, shape.weights, tokens)

    seconds = reading(asked.prompt, 0)
    if asked.answer:
        seconds += reading(asked.answer, asked.answer)
    if asked.new:
        mean = asked.prompt + asked.new / 2
        kept = batch * mean * shape.cached
        operations = batch * 2 * (shape.projections + shape.head + shape.attention * mean)
        seconds += asked.new / speedup * a_pass(operations, shape.weights + kept, 1)
    return seconds


def answering_seconds(batches: Iterable[tuple[int, float]], ranks: int) -> float:
    """Returns the time of batches, given as (number, seconds of each); in each round every rank answers one.

    The longest batches are first, and a round takes as long as its longest batch.
    """
    left, seconds = 0, 0.0  # ranks that are free in the current round
    for number, each in sorted(batches, key=lambda pair: -pair[1]):
        beyond = max(0, number - left)
        rounds = ceil(beyond / ranks)
        seconds += rounds * each
        left += rounds * ranks - number
    return seconds


def asking_seconds(
    shape: Shape, ceilings: Ceilings, asked: Sequence[Questions], batch: int, ranks: int, gather: float = 0
) -> float:
    """Returns the time of answering several kinds of questions, each in separate batches."""
    batches = [
        (ceil(each.rows / batch), batch_seconds(shape, ceilings, each, min(batch, each.rows), gather))
        for each in asked
        if each.rows
    ]
    return answering_seconds(batches, ranks)


def writing_seconds(size: float, ceilings: Ceilings) -> float:
    """Returns the time of a file that rank 0 writes and hashes while the other ranks wait."""
    return size / ceilings.disk + size / ceilings.hashing


def merge_seconds(
    shape: Shape, ceilings: Ceilings, entry: float, tasks: int, projections: int, ranks: int, partitioned: bool
) -> float:
    """Returns the time of merging after the last of `tasks` tasks: weight = round(original + all updates).

    Rank 0 reads all entries and broadcasts each projection's factors; each node reads the original projections or, if
    weights are partitioned, the slices of its ranks; the sum is computed in fp32.

    Args:
        shape: of the model.
        ceilings: of the machine.
        entry: bytes of one task's update.
        tasks: number of entries.
        projections: number of changed projections.
        ranks: number of ranks.
        partitioned: whether weights are partitioned (ZeRO-3).
    """
    nodes, base = ceil(ranks / ceilings.devices), shape.projections * shape.width
    sent = tasks * entry
    original = base / (nodes if partitioned else 1) / ceilings.disk
    own = shape.projections / (ranks if partitioned else 1)
    summed = own * (3 * FP32 + 2 * shape.width) / ceilings.memory
    # an object is broadcast as its length and its bytes, and so is a possible error
    sending = collective_seconds(sent, 4 * projections, ranks, ceilings)
    return sent / ceilings.disk + sending + original + summed
