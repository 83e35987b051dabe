"""How long a run takes, by formula: what it computes, moves and writes, over what the machine can do.

Of a rank, with N values in the projections, n in the branches, h in the head, T tokens and A answer tokens of a micro
batch of rows of L tokens, and attention of w values a token over all layers (causal: half of L is seen on average):

    forward          2 (N + n) T + 2 w L T + 2 h A
    training         4 N T + 6 n T + 7 w L T + 4 h A          the base is frozen: no gradients of its weights
    recomputation    + 2 (N + n) T + 2 w L T
    computing        operations / flops + bytes of all that is no matrix product / memory, and no less than starting it;
                     of branches no less than reading their inputs and writing their outputs, and at stage 3 no less
                     than what the host does to fetch each weight
    a collective     started + steps of latency + bytes received / bandwidth, by the protocol that takes least
    a pass of generation    reading weights and keys and values, or computing, or starting each layer: what takes most

A ring of p ranks on k nodes gathers in p - 1 steps, of which k - 1 are between nodes, and all-reduces in twice as many.
A ring enters a node once, through all its network adapters together. All functions are pure; times are seconds.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, log2

from torch import nn
from transformers import PreTrainedModel

from codyra_llm.adapter.layer import CoDyRALinear
from codyra_llm.planning.ceilings import Ceilings
from codyra_llm.planning.memory import ModelSizes, Traffic

BACKWARD_OF_ATTENTION = 2.5  # times the forward pass: four products for two, and one computed anew
FP32 = 4


@dataclass(frozen=True)
class Shape:
    """What of a model its time depends on.

    Attributes:
        layers: decoder layers.
        projections, branches, head: values of the base's projections, of all branches, of the output embedding.
        attention: values of the queries of a token, over all layers.
        cached: bytes of the keys and values of a token, over all layers.
        weights: bytes of the base.
        width: bytes of a value of the activations.
        touched: bytes of a token that a forward pass reads and writes in all operations but matrix products.
        spanned: values of a token that the branches read and write in a forward pass: their inputs and outputs.
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
        """Of a model with branches, on any device."""
        text = model.config.get_text_config()
        heads, kept = text.num_attention_heads, getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        of_head = getattr(text, "head_dim", None) or text.hidden_size // heads
        linear = sum(part.weight.numel() for part in model.modules() if isinstance(part, nn.Linear))
        branches = [part for part in model.modules() if isinstance(part, CoDyRALinear)]
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
            spanned=sum(branch.in_features + branch.out_features for branch in branches),
        )


def forward_flops(shape: Shape, tokens: int, length: float, answers: int = 0) -> float:
    """Operations of a forward pass over `tokens` in rows of `length`, with the head at `answers` positions."""
    of_token = 2 * (shape.projections + shape.branches) + 2 * shape.attention * length
    return tokens * of_token + 2 * shape.head * answers


def training_flops(shape: Shape, tokens: int, length: float, answers: int, recompute: bool) -> float:
    """Operations of a forward and a backward pass; the backward pass computes gradients of inputs and of branches."""
    attention = 2 * shape.attention * length
    backward = tokens * (2 * shape.projections + 4 * shape.branches + BACKWARD_OF_ATTENTION * attention)
    again = forward_flops(shape, tokens, length) if recompute else 0
    return forward_flops(shape, tokens, length, answers) + backward + 2 * shape.head * answers + again


def micro_batch_seconds(
    shape: Shape, ceilings: Ceilings, tokens: int, length: float, answers: int, recompute: bool, touched: float = 0
) -> float:
    """Of the passes of a micro batch on one device.

    Args:
        touched: bytes read and written by all operations but matrix products (`activations.pass_bytes`).
    """
    passes = 3 if recompute else 2
    of_branches = tokens * shape.branches * (6 + 2 * recompute)
    of_base = training_flops(shape, tokens, length, answers, recompute) - of_branches
    products = max(of_base / ceilings.flops, passes * shape.weights / ceilings.memory)
    # products of a small rank are limited by their inputs and outputs: once in a forward, twice in a backward pass
    spanned = tokens * shape.spanned * shape.width * (passes + 1)
    products += max(of_branches / ceilings.flops, spanned / ceilings.memory)
    return with_host(products + touched / ceilings.memory, passes * shape.layers * ceilings.layer, ceilings)


def with_host(seconds: float, host: float, ceilings: Ceilings) -> float:
    """Seconds of the device and of its host's code: at the same time on a GPU, one after the other on a CPU."""
    return max(seconds, host) if ceilings.ahead else seconds + host


def collective_seconds(received: float, calls: int, ranks: int, ceilings: Ceilings, rounds: int = 1) -> float:
    """Of `calls` ring collectives, one after another, in which a rank receives so many bytes in all.

    Args:
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
    """Of an all-reduce of a few numbers: along the devices of a node, and up and down a tree of nodes."""
    if ranks == 1:
        return 0.0
    nodes = ceil(ranks / ceilings.devices)
    first = ceilings.protocols[0]
    steps = (ceil(ranks / nodes) - 1) * first.link + ceil(log2(nodes)) * first.network
    return ceilings.call + 2 * steps


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step. `overlaps`: gathering and reducing go on while the device computes."""

    compute: float
    weights: float
    gradients: float
    optimizer: float
    agreements: float
    host: float
    overlaps: bool

    @property
    def network(self) -> float:
        """All that is spent on collectives, hidden behind computing or not."""
        return self.weights + self.gradients + self.optimizer + self.agreements

    @property
    def total(self) -> float:
        """Of the whole step."""
        beside = self.weights + self.gradients + self.host
        passes = max(self.compute, beside) if self.overlaps else self.compute + beside
        return passes + self.optimizer + self.agreements


def step_time(
    compute: float, traffic: Traffic, stage: int, ranks: int, ceilings: Ceilings, overlaps: bool, trainable: int = 0
) -> StepTime:
    """Of an optimizer step: its micro batches' `compute`, and what it moves.

    The step of the optimizer itself reads and writes values, gradients and moments of a rank's part: 28 bytes a value.
    """
    part = trainable / (ranks if stage else 1)
    compute = with_host(compute, traffic.weight_calls * ceilings.fetch, ceilings)
    return StepTime(
        compute + 28 * part / ceilings.memory,
        collective_seconds(traffic.weights, traffic.weight_calls, ranks, ceilings),
        collective_seconds(traffic.gradients, traffic.gradient_calls, ranks, ceilings, 1 if stage == 3 else 2),
        collective_seconds(traffic.optimizer, traffic.optimizer_calls, ranks, ceilings),
        (traffic.agreements + 1) * agreement_seconds(ranks, ceilings),  # and whether to stop
        traffic.host / ceilings.host,
        overlaps and stage >= 2,
    )


@dataclass(frozen=True)
class Questions:
    """Rows to answer: how many, the tokens of a prompt and of a true answer, the tokens that are generated for it."""

    rows: int
    prompt: float
    answer: float = 0
    new: float = 0


def batch_seconds(
    shape: Shape, ceilings: Ceilings, asked: Questions, batch: int, gather: float = 0, speedup: float = 1
) -> float:
    """Of a batch of questions on one rank: prompts, true answers, then the model's own, a token of all rows a pass.

    Args:
        gather: seconds in which a pass gathers the weights, where they are not whole (`evaluate.gather` never).
        speedup: tokens that a pass gives, by guessing.
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
    """Of all batches, given as (how many, seconds of each): ranks take them in turn, the longest first, and wait."""
    left, seconds = 0, 0.0  # places left in the round that has begun
    for number, each in sorted(batches, key=lambda pair: -pair[1]):
        beyond = max(0, number - left)
        rounds = ceil(beyond / ranks)
        seconds += rounds * each
        left += rounds * ranks - number
    return seconds


def asking_seconds(
    shape: Shape, ceilings: Ceilings, asked: Sequence[Questions], batch: int, ranks: int, gather: float = 0
) -> float:
    """Of answering questions of several kinds, batches of each."""
    batches = [
        (ceil(each.rows / batch), batch_seconds(shape, ceilings, each, min(batch, each.rows), gather))
        for each in asked
        if each.rows
    ]
    return answering_seconds(batches, ranks)


def writing_seconds(size: float, ceilings: Ceilings) -> float:
    """Of a file that rank 0 writes and hashes while the others wait."""
    return size / ceilings.disk + size / ceilings.hashing


def merge_seconds(
    shape: Shape, ceilings: Ceilings, entry: float, tasks: int, projections: int, ranks: int, partitioned: bool
) -> float:
    """Of merging after the last of so many tasks: weight = round(original + all updates).

    Rank 0 reads all entries and sends each projection's factors; each node reads the original projections, or where
    weights are partitioned its ranks' slices; the sum is computed in fp32.

    Args:
        entry: bytes of one task's update.
    """
    nodes, base = ceil(ranks / ceilings.devices), shape.projections * shape.width
    sent = tasks * entry
    original = base / (nodes if partitioned else 1) / ceilings.disk
    own = shape.projections / (ranks if partitioned else 1)
    summed = own * (3 * FP32 + 2 * shape.width) / ceilings.memory
    # an object is sent as its length and its bytes, and so is what went wrong
    sending = collective_seconds(sent, 4 * projections, ranks, ceilings)
    return sent / ceilings.disk + sending + original + summed
