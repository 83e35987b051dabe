"""The README.md beside a finished model: what it learned, from what, and how well."""

from pathlib import Path
from typing import Any

from codyra_llm.methods import METHODS
from codyra_llm.report.tables import markdown, matrix_table, metrics_table, nll_table, rank_table


def model_card(results: dict[str, Any]) -> str:
    """A model card in Markdown, from the run's results."""
    config, data = results["config"], results["data"]
    adapter, train = config["adapter"], config["train"]
    base = Path(results["model"]["name"]).name if Path(results["model"]["name"]).exists() else results["model"]["name"]
    method = METHODS[config["method"]]
    gated = method.name == "codyra"
    threshold = f"threshold mode {adapter['threshold_mode']}" if gated else "fixed"
    quantization = config["model"].get("quantization")
    held = f"\nIts projections were in {quantization} while it learned and was scored.\n" if quantization else ""
    tasks = "\n".join(
        f"{i}. {entry['task']}: {entry['train_rows']} rows, {entry['steps']} steps"
        for i, entry in enumerate(data["tasks"], 1)
    )
    return f"""---
base_model: {base}
library_name: transformers
pipeline_tag: text-generation
tags: [continual-learning, codyra]
---
# {base} after {len(results["tasks"])} tasks

An ordinary {results["model"]["architecture"]} of {results["model"]["parameters"]:,} parameters, as many as the base
model has. It learned the tasks below one after another by low-rank updates that were merged into its weights
(codyra_llm {results["versions"]["codyra_llm"]}, method `{method.name}`: {method.summary}).
Nothing but transformers is needed to use it. The terms of the base model and of the data apply.

Data: {data["stream"]}, version {data["version"]}.

{tasks}

Rank {adapter["rank"]} on {", ".join(adapter["target_modules"])}, {threshold}; learning
rate {train["learning_rate"]:g}, global batch {train["global_batch_size"]}, seed {config["seed"]}, merged at
{config["merge"]["scale"]:g} of the update.
{held}
## Scores
Scoring variant `{config["evaluate"]["scorer_variant"]}`, 0 to 100. A row is the model at that point, [..] the task
just learned.

{markdown(matrix_table(results))}

{markdown(metrics_table(results))}

Negative log-likelihood of the true answers, nats per token (lower is better):

{markdown(nll_table(results))}

## Ranks
Mean surviving rank by kind of projection, norm of the task's update, and norm of all updates so far.

{markdown(rank_table(results))}
"""
