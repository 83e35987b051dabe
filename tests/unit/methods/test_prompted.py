"""L2P and DualPrompt: published numbers, which prompts are trained and read, and that nothing else changes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from codyra_llm.adapter.prompts import PromptedEmbedding, prompted, prompts_of, with_prompts
from codyra_llm.config import load_config
from codyra_llm.data.batches import GlobalBatches, collate
from codyra_llm.distributed.ranks import start
from codyra_llm.engine.loss import AnswerLoss
from codyra_llm.engine.passes import ModelPasses
from codyra_llm.engine.train import train_task
from codyra_llm.errors import UserError
from codyra_llm.example import Example
from codyra_llm.methods import METHODS, Method
from codyra_llm.methods.prompting import similarity
from codyra_llm.planning.run_plan import RunPlan, plan_run
from tests.models import tiny_model
from tests.oracles import CLOSE, method_of, oracle
from tests.unit.generation.test_generate import NumberTokenizer, answer, some_examples

ROWS = [Example([1, *range(5 + 9 * row, 9 + 9 * row + row)], [7 + row, 30, 2]) for row in range(8)]
OTHERS = [Example([1, *range(300 + 7 * row, 305 + 7 * row)], [400 + row, 2]) for row in range(8)]


def passes_on(model: Any, steps: Sequence[int] = range(len(ROWS))) -> ModelPasses:
    return ModelPasses(AnswerLoss(model), {}, 0, start(), rows_of=lambda step: steps)


def prepared(name: str, rows: list[Example] = ROWS, **settings: Any) -> tuple[Any, Any, PromptedEmbedding]:
    """Returns a method, a tiny model prepared for a first task, and the layer with the prompts."""
    method, model = method_of(name, **settings), tiny_model()
    method.before_training(rows, passes_on(model))
    method.prepare(model, "first", 10)
    layer = prompts_of(model)
    assert layer
    return method, model, layer


def loss_of(model: Any, rows: list[Example]) -> torch.Tensor:
    batch = collate(rows, pad_token_id=0)
    loss: torch.Tensor = AnswerLoss(model)(batch.input_ids, batch.labels)
    return loss


def test_the_pool_of_l2p(golden: Path) -> None:
    numbers = oracle(golden, "l2p")
    pool, length, width = numbers["prompt_pool"].shape
    method: Any = method_of(
        "l2p", **{"l2p.selected": int(numbers["top_k"]), "l2p.pull": float(numbers["pull_coefficient"])}
    )
    vectors, ids = numbers["prompt_pool"].flatten(0, 1), numbers["input_ids"]
    embedding = nn.Embedding.from_pretrained(numbers["embedding"])
    layer = PromptedEmbedding(embedding, pool * length, pool, method.choose)
    method.start, method._keys = vectors, method._means(vectors)
    with torch.no_grad():
        method.start_branch("m", layer)
    lengths = [ids.shape[1]] * len(ids)
    queries = embedding(ids).mean(1)
    torch.testing.assert_close(similarity(queries, layer.B.detach()), numbers["similarity"], **CLOSE)
    fed = layer(torch.cat([layer.chosen(ids, lengths), ids], dim=1))
    torch.testing.assert_close(fed.detach(), numbers["inputs_embeds"], **CLOSE)
    method._queries, method._rows = queries, range(len(ids))
    value, gradients = method.penalty({"m": (layer.B.detach(), layer.A.detach())})
    assert value == pytest.approx(float(numbers["pull_loss"]), rel=1e-9)
    torch.testing.assert_close(gradients["m.A"].unflatten(0, (pool, length)), numbers["grad_prompt_of_pull"], **CLOSE)
    assert width == layer.out_features and list(gradients) == ["m.A"]


def test_keys_that_are_learned_have_the_gradient_of_the_term() -> None:
    method, _, layer = prepared("l2p", **{"l2p.repaired": True, "l2p.pull": 0.7})
    method.begin_step(0, passes_on(None, [2, 5]))
    value, gradients = method.penalty({"m": (layer.B.detach(), layer.A.detach())})
    near = similarity(method._queries[[2, 5]], layer.B).topk(3).values
    (expected,) = torch.autograd.grad(-0.7 * near.sum(1).mean(), layer.B)
    assert value == pytest.approx(-0.7 * float(near.sum(1).mean().detach())) and list(gradients) == ["m.B"]
    torch.testing.assert_close(gradients["m.B"], expected)
    assert bool((expected != 0).any(0).sum() <= 6), "keys that no row has chosen stay where they are"


@pytest.mark.parametrize("repaired", [False, True])
def test_prompts_that_are_not_selected_learn_nothing(repaired: bool) -> None:
    method, model, layer = prepared("l2p", **{"l2p.selected": 2, "l2p.repaired": repaired})
    read = method.choose(method._queries[:1], layer.B.detach()).flatten().tolist()
    loss_of(model, ROWS[:1]).backward()
    assert layer.A.grad is not None
    touched = layer.A.grad.any(dim=1).nonzero().flatten().tolist()
    assert touched == sorted(read) and len(touched) == 10
    assert layer.B.requires_grad is repaired and (layer.B.grad is None or not layer.B.grad.any())
    assert [name for name, p in model.named_parameters() if p.requires_grad and not name.endswith((".A", ".B"))] == []


@pytest.mark.parametrize("repaired", [False, True])
def test_a_row_is_the_same_in_any_batch(repaired: bool) -> None:
    """A row's prompts depend on its own tokens only: of prompt and answer as released, of the prompt if repaired."""
    method, model, layer = prepared("l2p", **{"l2p.repaired": repaired})
    together = loss_of(model, ROWS)
    apart = [loss_of(model, [row]) for row in ROWS]
    torch.testing.assert_close(together, torch.stack(apart).sum())
    rows = [row.prompt + row.answer * (not repaired) for row in ROWS]
    torch.testing.assert_close(method._queries, passes_on(model).embedding_means(rows), rtol=0, atol=0)
    chosen = {tuple(before[:15]) for before in with_prompts(model, rows)}
    assert len(chosen) > 1 and min(map(min, chosen)) >= layer.in_features


@pytest.mark.parametrize("architecture", ["llama", "gemma", "gemma2", "gemma3"])
def test_what_is_trained_is_what_is_scored_and_generated(architecture: str) -> None:
    """Training loss, scoring loss and greedy answers with the KV cache equal those of the plain model."""
    model, rows = tiny_model(architecture), some_examples()
    method: Any = method_of("l2p", **{"l2p.repaired": True, "l2p.length": 2})
    torch.manual_seed(1)
    untouched = answer(model, rows, limit=4, batch_size=4)
    with prompted(model, torch.randn(20, 32), torch.randn(32, 10), method.choose):
        scored = answer(model, rows, limit=4, batch_size=4)
        losses = [float(loss_of(model, [row])) for row in rows]
        for row, found in zip(rows, scored, strict=True):
            (read,) = with_prompts(model, [row.prompt])
            assert list(read[6:]) == row.prompt and min(read[:6]) >= 768
            said: list[int] = []
            while len(said) < 4 and said[-1:] != [2]:
                logits = model(input_ids=torch.tensor([[*read, *said]]), use_cache=False).logits
                said.append(int(logits[0, -1].argmax()))
            assert found.text == NumberTokenizer().decode([token for token in said if token != 2])
    assert [found.loss for found in scored] == pytest.approx(losses, abs=2e-3)
    assert [found.loss for found in scored] != pytest.approx([found.loss for found in untouched], abs=0.1)
    assert answer(model, rows, limit=4, batch_size=4) == untouched, "the model is as it was"


def trained(method: Method, model: Any, task: str, rows: list[Example]) -> dict[str, torch.Tensor]:
    """Trains a task on the rows; returns the tensors that the method keeps."""
    batches = GlobalBatches(rows, 4, 2, 1.5, 0, task)
    method.before_training(rows, passes_on(model))
    ready = method.prepare(model, task, batches.total_steps)
    train_task(model, ready.optimizer, None, batches, method.config.train, {}, start(), hooks=method)
    report, updates = method.finish(model)
    assert updates == {} and prompts_of(model) is None and report[0].norm > 0
    return dict(method.kept)


def test_prompts_of_dualprompt() -> None:
    """All tasks train the general vectors, a task's own only it; a row's task is that of the nearest key."""
    train = {"train.global_batch_size": 4, "train.per_device_train_batch_size": 2, "train.learning_rate": 0.1}
    method, model = method_of("dualprompt", **train), tiny_model()
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    first = trained(method, model, "first", ROWS)
    second = trained(method, model, "second", OTHERS)
    assert first["general"].shape == (2, 32) and bool((first["general"] != second["general"]).all(1).all())
    assert torch.equal(first["prompt/first"], second["prompt/first"])
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())

    queries = passes_on(model).embedding_means([row.prompt for row in ROWS])
    key, others = second["key/first"], torch.randn(200, 32)
    matching = (1 - similarity(queries, torch.stack([key, *others, *(key + 0.1 * others)], dim=1))).sum(0)
    assert int(matching.argmin()) == 0, "no other key has as small a matching loss"

    routes = method.routes([*ROWS, *OTHERS], passes_on(model))
    assert routes == ["first"] * len(ROWS) + ["second"] * len(OTHERS)
    with method.serving(model, None):
        by_key = with_prompts(model, [ROWS[0].prompt, OTHERS[0].prompt])
    assert [[token - 768 for token in read[:5]] for read in by_key] == [[0, 1, 2, 3, 4], [0, 1, 5, 6, 7]]
    oracle = method_of("dualprompt", **{"dualprompt.by": "oracle"})
    oracle.kept = method.kept
    assert oracle.routes(ROWS, passes_on(model)) is None
    for task, own in (("first", [2, 3, 4]), ("second", [5, 6, 7]), ("third", []), (None, [])):
        with oracle.serving(model, task):
            (read,) = with_prompts(model, [ROWS[0].prompt])
        assert [token - 768 for token in read[: len(read) - len(ROWS[0].prompt)]] == [0, 1, *own]


def test_dualprompt_without_a_general_prompt() -> None:
    train = {"train.global_batch_size": 4, "train.per_device_train_batch_size": 4}
    method, model = method_of("dualprompt", **{"dualprompt.general": 0}, **train), tiny_model()
    kept = trained(method, model, "first", ROWS)
    assert kept["general"].shape == (0, 32) and kept["prompt/first"].shape == (3, 32)
    with method.serving(model, "first"):
        assert list(with_prompts(model, [[5, 6]])[0]) == [768, 769, 770, 5, 6]


@pytest.mark.parametrize("name", ["l2p", "dualprompt"])
def test_nothing_is_live_before_the_first_task(name: str) -> None:
    model = tiny_model()
    with method_of(name).serving(model, None):
        assert prompts_of(model) is None


def test_no_prompt_is_the_model_as_it_is() -> None:
    """If no prompts are selected, every loss is the model's own, and training changes nothing."""
    model, method = tiny_model(), method_of("l2p", **{"l2p.selected": 0, "l2p.pull": 0.0})
    own = [float(loss_of(model, [row])) for row in ROWS]
    method.before_training(ROWS, passes_on(model))
    start_as = method.start.clone()  # type: ignore[attr-defined]
    ready = method.prepare(model, "first", 2)
    batches = GlobalBatches(ROWS, 4, 4, 1, 0, "first")
    train = load_config(None, {"train.global_batch_size": 4, "train.per_device_train_batch_size": 4}).train
    steps = train_task(model, ready.optimizer, None, batches, train, {}, start(), hooks=method)
    assert [step.grad_norm for step in steps] == [0.0, 0.0]
    assert [float(loss_of(model, [row])) for row in ROWS] == own
    method.finish(model)
    assert torch.equal(method.kept["prompts"], start_as)


@pytest.mark.parametrize("name", ["l2p", "dualprompt"])
@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"data.packing": "pack"}, "packed rows are one; set data.packing bucket"),
        ({"retention.prompts": 1.0}, "leave retention"),
        ({"retention.protected": 0.1}, "leave retention"),
        ({"merge.scale": 0.5}, "merge.scale must be 1"),
        ({"extend": "runs/x/ledger"}, "leave extend empty"),
    ],
)
def test_what_prompts_cannot_run_with_is_refused(name: str, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=f"method {name}: .*{reason}"):
        METHODS[name](load_config(None, {"method": name, **settings})).check_run(0)


def planned(folder: Path, **settings: Any) -> RunPlan:
    given = {"model.name_or_path": str(folder), "order": ["NumGLUE-cm"], "data.max_prompt_length": 64, **settings}
    return plan_run(load_config(None, given), start(), to_train="evaluate.demonstrations" not in settings)


def test_prompts_that_leave_no_room_are_named(tiny_folder: Path) -> None:
    with pytest.raises(UserError, match=r"tokens, 9000 of them the method's prompts, .*; lower those prompts, data"):
        planned(tiny_folder, method="l2p", **{"l2p.length": 3000})


def test_demonstrations_leave_room_for_prompts(tiny_folder: Path) -> None:
    settings = {"evaluate.demonstrations": 99, "data.max_test_examples": 3}
    (plain,) = planned(tiny_folder, method="lora", **settings).test_examples
    (short,) = planned(tiny_folder, method="dualprompt", **settings, **{"dualprompt.task": 100}).test_examples
    assert all(len(each.prompt) > len(other.prompt) for each, other in zip(plain, short, strict=True))


def test_models_that_read_ids_elsewhere_as_well_are_refused() -> None:
    model = tiny_model()
    model.model.embed_tokens_per_layer = nn.Embedding(8, 2)
    with pytest.raises(UserError, match="method dualprompt: LlamaForCausalLM reads ids beside its input embedding"):
        method_of("dualprompt").prepare(model, "first", 1)
    with pytest.raises(UserError, match=r"l2p.selected is 11, the pool has 10 prompts"):
        method_of("l2p", **{"l2p.selected": 11}).check_run(0)
