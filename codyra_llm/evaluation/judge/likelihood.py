"""A causal language model as a judge: its verdict is the most likely of the three that a template asks for."""

import math
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from codyra_llm.data.chat import ChatTemplate
from codyra_llm.data.encode import encode_request
from codyra_llm.evaluation.judge.verdict import Reply
from codyra_llm.example import Example
from codyra_llm.generation.generate import Ask, Question

VERDICTS = ("A", "B", "C")


class LikelihoodJudge:
    """Compares log P([[A]]), log P([[B]]) and log P([[C]]) as replies to a filled template.

    Args:
        tokenizer: the judge's tokenizer.
        ask: answers questions with the judge's model.
        template: the judge's chat template, if any.
        positions: context length of the model; longer prompts are not judged.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, ask: Ask, template: ChatTemplate | None, positions: int
    ) -> None:
        self.tokenizer, self.ask, self.template, self.positions = tokenizer, ask, template, positions
        self.verdicts = [tokenizer(f"[[{verdict}]]", add_special_tokens=False)["input_ids"] for verdict in VERDICTS]

    def __call__(self, texts: Sequence[str]) -> list[Reply]:
        """Returns the replies to filled templates, in their order; their text is the three log-likelihoods in nats."""
        prompts = [encode_request(self.tokenizer, text, self.template) for text in texts]
        fits = [len(prompt) + max(map(len, self.verdicts)) <= self.positions for prompt in prompts]
        questions = [
            Question(Example(prompt, verdict), max_new_tokens=0)
            for prompt, fit in zip(prompts, fits, strict=True)
            if fit
            for verdict in self.verdicts
        ]
        losses = iter([answer.loss for answer in self.ask(questions)])
        return [
            self._reply([next(losses) for _ in VERDICTS])
            if fit
            else Reply(None, f"{len(prompt)} tokens to judge, the context length is {self.positions}")
            for prompt, fit in zip(prompts, fits, strict=True)
        ]

    def _reply(self, losses: list[float]) -> Reply:
        text = ", ".join(f"{verdict} {-loss:.4f}" for verdict, loss in zip(VERDICTS, losses, strict=True))
        best = min(zip(losses, VERDICTS, strict=True))[1] if all(map(math.isfinite, losses)) else None
        return Reply(best, text)
