"""The model card (README.md) of a finished model: tasks, data, scores and usage."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from codyra_llm.methods import METHODS
from codyra_llm.methods.hooks import overrides
from codyra_llm.report.tables import (
    general_table,
    markdown,
    matrix_table,
    metrics_table,
    nll_table,
    rank_table,
    text_table,
)
from codyra_llm.results.schema import RunResults


def model_card(results: RunResults, base_card: Mapping[str, Any]) -> str:
    """Returns a model card in Markdown, from the run's results.

    Args:
        results: of the run.
        base_card: what is known about the base model, by the keys of ModelCardData: base_model, license, language.
    """
    config, name = results.config, results.model.name
    adapter, train = config["adapter"], config["train"]
    base = Path(name).name if Path(name).exists() else name
    method = METHODS[config["method"]]
    prompts, usage = HOW_TO_USE[results.data.facts.name]
    threshold = f"threshold mode {adapter['threshold_mode']}" if method.trains_gates else "fixed"
    quantization = config["model"].get("quantization")
    quantized = f"\nIts projections were in {quantization} while it learned and was scored.\n" if quantization else ""
    live = "Nothing but transformers is needed to use it. "
    if overrides(method, "serving"):
        live = "What the method has live at inference is not part of it: these are the merged weights alone. "
    tasks = "\n".join(
        f"{number}. {task.task}: {task.train_rows} rows, {task.steps} steps; scored on {task.test_rows}"
        for number, task in enumerate(results.data.tasks, 1)
    )
    data = ModelCardData(
        **{"base_model": base, **base_card},
        library_name="transformers",
        pipeline_tag=results.data.facts.task,
        tags=["continual-learning", "codyra"],
    )
    card = f"""---
{data.to_yaml()}
---
# {base} after {len(results.tasks)} tasks

An ordinary {results.model.architecture} of {results.model.parameters:,} parameters, as many as the base
model has. It learned the tasks below one after another by low-rank updates that were merged into its weights
(codyra_llm {results.versions["codyra_llm"]}, method `{method.name}`: {method.summary}).
{live}The terms of the base model and of the data apply.

{prompts(results)}

```python
{usage(results)}
```

Data: {results.data.stream}, version {results.data.version}.

{tasks}

Rank {adapter["rank"]} on {", ".join(adapter["target_modules"])}, {threshold}; learning
rate {train["learning_rate"]:g}, global batch {train["global_batch_size"]}, seed {config["seed"]}, merged at
{config["merge"]["scale"]:g} of the update.
{quantized}
## Scores
Scoring variant `{config["evaluate"]["scorer_variant"]}`, 0 to 100. A row is the model at that point, [..] the task
just learned.

{markdown(matrix_table(results))}

{markdown(metrics_table(results))}
{_of_text(results)}
Negative log-likelihood of the true answers, nats per {results.data.facts.per} (lower is better):

{markdown(nll_table(results))}
{_of_general_ability(results)}
## Ranks
Mean surviving rank by kind of projection, norm of the task's update, and norm of all updates so far.

{markdown(rank_table(results))}
"""
    return str(ModelCard(card))


def _of_text(results: RunResults) -> str:
    table = text_table(results)
    return (
        f"\nBits per byte of raw text (lower is better; a score is 100 x 2^-bits):\n\n{markdown(table)}\n"
        if table
        else ""
    )


def _of_general_ability(results: RunResults) -> str:
    if not results.general.scores:
        return ""
    head = "General ability, measured beside the tasks (0 to 100 unless a unit stands there; change: against the base)"
    return f"\n{head}:\n\n{markdown(general_table(results.general))}\n"


def _prompts(results: RunResults) -> str:
    """Returns a text on how to format prompts: as in training."""
    used = {task.task: task.chat_template and task.chat_template.setting for task in results.data.tasks}
    plain = [task for task, setting in used.items() if setting is None]
    if not plain:
        return "Put prompts into its chat template, as they were while it learned (`tokenizer.apply_chat_template`)."
    if len(plain) == len(used):
        return "Give it prompts as they are, without a chat template, as they were while it learned."
    return f"Put prompts into its chat template, but for {', '.join(plain)}, which it learned without."


def _usage(results: RunResults) -> str:
    """Returns a program that answers a prompt with the model in FOLDER."""
    templates = [task.chat_template for task in results.data.tasks]
    prompt = 'tokenizer("PROMPT", return_tensors="pt").input_ids'
    if any(templates):
        prompt = 'tokenizer.apply_chat_template([{"role": "user", "content": "PROMPT"}], add_generation_prompt=True,\n'
        prompt += '                                       return_tensors="pt", return_dict=True)["input_ids"]'
    return f"""from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForCausalLM.from_pretrained("FOLDER")
ids = {prompt}
answer = model.generate(ids, do_sample=False, max_new_tokens=64)[0, ids.shape[1]:]
print(tokenizer.decode(answer, skip_special_tokens=True))"""


def _classes(results: RunResults) -> str:
    """Returns a text on how the model classifies a picture."""
    return (
        "It tells the class of a picture by the prompt whose features lie nearest, among those that it is given.\n"
        "The ones it learned with are templates of its tasks, as `a photo of a {}.`"
    )


def _usage_of_clip(results: RunResults) -> str:
    """Returns a program that classifies a picture with the model in FOLDER."""
    return """from PIL import Image
from transformers import CLIPModel, CLIPProcessor

processor = CLIPProcessor.from_pretrained("FOLDER")
model = CLIPModel.from_pretrained("FOLDER")
prompts = ["a photo of a cat.", "a photo of a dog."]
inputs = processor(text=prompts, images=Image.open("PICTURE"), padding=True, return_tensors="pt")
print(dict(zip(prompts, model(**inputs).logits_per_image.softmax(-1)[0].tolist())))"""


HOW_TO_USE = {"text": (_prompts, _usage), "images": (_classes, _usage_of_clip)}
