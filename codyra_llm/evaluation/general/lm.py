"""The model interface of lm-evaluation-harness: passes its requests as questions to batched generation."""

from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import PreTrainedTokenizerBase

from codyra_llm.data.chat import ChatTemplate
from codyra_llm.errors import UserError
from codyra_llm.example import Example
from codyra_llm.generation.generate import Ask, Question

LONGEST_ANSWER = 256  # tokens, if a suite does not specify it


class BatchedLM(TemplateLM):
    """Answers the harness's three kinds of request as its own class for transformers does, batched by `ask`.

    The harness sees one process: where several ranks share the questions, every rank gets all the answers.

    Args:
        tokenizer: the model's tokenizer.
        ask: answers questions, in their order.
        max_length: context length of the model; longer contexts lose their beginning.
        template: chat template for prompts, with few-shot examples as separate turns; None: prompts are used unchanged.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, ask: Ask, max_length: int, template: ChatTemplate | None = None
    ) -> None:
        super().__init__()
        self.template = template
        self.tokenizer, self.ask, self.max_length = tokenizer, ask, max_length

    @property
    def eot_token_id(self) -> int:
        """The id of the EOS token."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The id of the token before a text without a context: BOS, or EOS if the tokenizer has no BOS token."""
        return self.eot_token_id if self.tokenizer.bos_token_id is None else self.tokenizer.bos_token_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Encodes a text; by default with the tokenizer's special tokens, unless it already starts with the BOS token.

        With a chat template no special tokens are added.
        """
        begin = self.tokenizer.bos_token
        if self.template:  # it contains all special tokens
            add_special_tokens = False
        if add_special_tokens is None:
            add_special_tokens = not (begin and string.startswith(begin))
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    @property
    def tokenizer_name(self) -> str:
        """The name under which the harness caches requests; no cache is used here."""
        return self.tokenizer.name_or_path

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Formats a chat as text; if the template fails, retries without system messages, as the harness does."""
        how = {"reply": add_generation_prompt, "unfinished": not add_generation_prompt}
        assert self.template
        try:
            return self.template.text(self.tokenizer, chat_history, **how)
        except UserError:
            user_and_assistant = [message for message in chat_history if message["role"] != "system"]
            return self.template.text(self.tokenizer, user_and_assistant, **how)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        questions = [self._choice(context, continuation) for _, context, continuation in requests]
        return [(-answer.loss, answer.greedy) for answer in self.ask(questions)]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Returns the log-likelihood of whole texts in nats; each token is predicted in exactly one window."""
        windows = [
            [
                make_disjoint_window(window)
                for window in get_rolling_token_windows(
                    token_list=self.tok_encode(request.args[0]),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length,
                    context_len=1,
                )
            ]
            for request in requests
        ]
        answers = iter(self.ask([self._choice(*window) for of_text in windows for window in of_text]))
        return [-sum(next(answers).loss for _ in of_text) for of_text in windows]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Returns greedy answers, up to the first of the request's stop strings."""
        asked = [normalize_gen_kwargs(dict(request.args[1]), LONGEST_ANSWER) for request in requests]
        questions = []
        for request, how in zip(requests, asked, strict=True):
            if how.get("do_sample"):
                raise ValueError("asks for sampled answers; general ability is measured on greedy ones")
            longest = min(how["max_gen_toks"], self.max_length // 2)
            prompt = self.tok_encode(request.args[0])[longest - self.max_length :]
            questions.append(Question(Example(prompt, []), longest, tuple(how["until"])))
        return [
            _cut(answer.text, question.stop) for answer, question in zip(self.ask(questions), questions, strict=True)
        ]

    def _choice(self, context: list[int], continuation: list[int]) -> Question:
        # the last token is a target, not an input
        room = max(1, self.max_length + 1 - len(continuation))
        return Question(Example(context[-room:], continuation), max_new_tokens=0)


def _cut(text: str, stop: Sequence[str]) -> str:
    """Returns the text before the first stop string; empty if the text starts with one."""
    for string in filter(None, stop):
        text = text.split(string)[0]
    return text
