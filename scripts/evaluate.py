"""Scores a saved model on the tasks of a configuration, in every scoring variant, without training.

    deepspeed scripts/evaluate.py --config configs/trace500_llama2_7b.yaml --data_dir DATA \\
        --model.name_or_path runs/x/model --output_dir runs/x-scores
    torchrun --nproc_per_node 2 scripts/evaluate.py --config configs/smoke.yaml --output_dir runs/smoke-scores
    python scripts/evaluate.py --config configs/smoke.yaml --output_dir runs/smoke-scores

--model.name_or_path is a folder that a run saved, or whatever a run can start from. Takes what train_trace.py takes;
what only training needs is checked and not used.
"""

import sys

from codyra_llm.command import main
from codyra_llm.config import parse_command_line


def evaluate() -> None:
    """Reads the command line and scores."""
    config = parse_command_line(sys.argv[1:], __doc__)
    from codyra_llm.scoring import score_model  # after the command line, so that --help and mistakes answer at once

    score_model(config)


if __name__ == "__main__":
    main(evaluate)
