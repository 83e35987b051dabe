"""Text: rows of prompt and answer as token ids, learned and written by a causal language model."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from codyra_llm.config import EvaluateConfig, RunConfig, resolve_path
from codyra_llm.data.batches import GlobalBatches
from codyra_llm.data.cache import TokenCache
from codyra_llm.data.chat import ChatTemplate, find_chat_template
from codyra_llm.data.demonstrations import with_demonstrations
from codyra_llm.data.encode import notes_on_tokens
from codyra_llm.data.stream import SPLITS, Split, Task, TaskStream
from codyra_llm.data.validation import with_validation
from codyra_llm.domains.base import Answer, Rows, Suite
from codyra_llm.domains.facts import FACTS, Facts, check_learns
from codyra_llm.domains.text.encoding import check_examples, encode_split
from codyra_llm.engine.learning import ANSWERS, Learning
from codyra_llm.engine.probe import check_forward
from codyra_llm.errors import UserError
from codyra_llm.evaluation.evaluate import TaskScores, evaluate_tasks, new_tokens
from codyra_llm.evaluation.general.scores import SuiteFailure, SuiteScore
from codyra_llm.evaluation.scorers import check_scorer
from codyra_llm.example import Example
from codyra_llm.generation.generate import Ask, answer_questions
from codyra_llm.methods import METHODS
from codyra_llm.methods.base import Method
from codyra_llm.models.source import Source, open_source


class Text:
    """`domains.base.Domain` of causal models."""

    facts: Facts = FACTS["text"]
    learning: Learning = ANSWERS
    answer: Answer = staticmethod(answer_questions)

    def settled(self, config: RunConfig) -> RunConfig:
        """As it is."""
        if (variant := config.evaluate.scorer_variant) not in self.facts.variants:
            raise UserError(
                f"evaluate.scorer_variant {variant} is one of images; text has {', '.join(self.facts.variants)}"
            )
        check_learns(self.facts.name, config.method)
        return config

    def open(self, config: RunConfig) -> Source:
        """A causal language model."""
        return open_source(config.model.name_or_path, config.model.accept_gemma_terms)

    def stream(self, config: RunConfig, stream: TaskStream | None, to_train: bool) -> TaskStream:
        """Tasks of a task file and a data folder."""
        if stream is None:
            limits = config.data.max_train_examples, config.data.max_test_examples
            task_file, data_dir = resolve_path(config.task_file), resolve_path(config.data_dir)
            learned: tuple[Split, ...] = ("train", "test", "eval") if config.train.validation == "eval" else SPLITS
            splits: tuple[Split, ...] = (
                learned if to_train else ("train", "test") if config.evaluate.demonstrations else ("test",)
            )
            stream = TaskStream.load(task_file, data_dir, config.order, *limits, splits)
        if not stream.tasks:
            raise UserError("the stream has no task; give it at least one")
        for task in stream:
            if task.spec.is_text:
                continue
            try:
                for scorer in task.spec.scorers:
                    check_scorer(scorer, config.data.allow_code, "data.allow_code true")
            except UserError as error:
                raise UserError(f"task {task.name}: {error}") from None
        setting, seed = config.train.validation if to_train else None, config.seed
        return dataclasses.replace(stream, tasks=tuple(with_validation(task, setting, seed) for task in stream))

    def check_method(self, config: RunConfig, source: Source, method: Method) -> None:
        """Whether texts of retention fit the context."""
        if config.retention.text_length > source.context_length:
            raise UserError(
                f"retention.text_length is {config.retention.text_length}, the context length is "
                f"{source.context_length}; lower it"
            )

    def rows(self, config: RunConfig, source: Source, stream: TaskStream) -> Rows:
        """Token ids, in chat templates where these are asked for."""
        tokenizer = source.tokenizer
        tokens, found = TokenCache(tokenizer), Rows()
        added = METHODS[config.method](config).added_tokens
        found.templates.extend(
            _template(tokenizer, task.spec.chat_template or config.data.chat_template, task) for task in stream
        )
        for task, template in zip(stream, found.templates, strict=True):
            splits = {split: encode_split(config, task, split, tokens, template) for split in ("train", "test", "eval")}
            if config.evaluate.demonstrations and not task.spec.is_text:
                answers = max(new_tokens(task.spec, config.evaluate), *map(len, (row.answer for row in splits["test"])))
                how = (config.seed, tokenizer, template, source.context_length - added - answers)
                splits["test"], note = with_demonstrations(task, splits["test"], config.evaluate.demonstrations, *how)
                found.notes.extend([note] if note else [])
            check_examples(task, splits, source, added)
            found.train.append(splits["train"])
            found.test.append(splits["test"])
            found.validation.append(splits["eval"])
            found.notes.extend(notes_on_tokens(task, tokenizer, splits["train"], splits["test"]))
        found.notes.extend(tokens.notes)
        return found

    def hashes(self, task: Task) -> dict[str, str]:
        """Of its files."""
        return task.files

    def suites(self, config: RunConfig, source: Source, learned: Sequence[str]) -> Sequence[Suite]:
        """Those of lm-evaluation-harness."""
        if not config.general.suites:
            return []
        from codyra_llm.evaluation.general.suites import load_suites  # the harness takes seconds to import

        return load_suites(config.general)

    def score_suites(
        self, suites: Sequence[Any], source: Source, template: ChatTemplate | None, ask: Ask
    ) -> tuple[dict[str, SuiteScore | SuiteFailure], dict[str, list[dict[str, Any]]]]:
        """As `score_suite`."""
        from codyra_llm.evaluation.general.lm import BatchedLM  # the harness takes seconds to import
        from codyra_llm.evaluation.general.score import score_suite

        scores: dict[str, SuiteScore | SuiteFailure] = {}
        rows = {}
        lm = BatchedLM(source.tokenizer, ask, source.context_length, template)
        for suite in suites:
            scores[suite.name], rows[suite.label] = score_suite(suite, lm, in_turns=template is not None)
        return scores, rows

    def check_model(self, model: PreTrainedModel, name: str) -> None:
        """As `check_forward`."""
        check_forward(model, name)

    def scored(
        self, tasks: Sequence[Task], examples: Sequence[Sequence[Example]], config: EvaluateConfig, ask: Ask
    ) -> list[TaskScores]:
        """As `evaluate_tasks`."""
        return evaluate_tasks(tasks, examples, config, ask)

    def remarks(self, tasks: Sequence[Task], scored: Sequence[TaskScores], variant: str) -> tuple[list[str], list[str]]:
        """None."""
        return [], []

    def table(self, config: RunConfig, stream: TaskStream, batches: Sequence[GlobalBatches]) -> list[list[str]] | None:
        """That with tokens."""
        return None

    def described(self, source: Source, example: Any) -> str | None:
        """Its tokens."""
        return None


TEXT = Text()


def _template(tokenizer: PreTrainedTokenizerBase, setting: str, task: Task) -> ChatTemplate | None:
    if task.spec.is_text:
        return None
    try:
        template = find_chat_template(tokenizer, setting)
        if template:
            template.closing(tokenizer)
    except UserError as error:
        raise UserError(f"task {task.name}: {error}") from None
    return template
