"""Compares two models on the user's prompts: their answers, a judge's verdicts in both orders, and proxies."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from codyra_llm.config import RunConfig, load_config
from codyra_llm.data.chat import ChatTemplate, end_ids, template_of
from codyra_llm.data.encode import check_tokenizer, encode_request
from codyra_llm.distributed.ranks import broadcast, check_same, start
from codyra_llm.engine.ds_config import read_deepspeed_json
from codyra_llm.engine.malloc import return_freed_memory
from codyra_llm.engine.zero import gathered_for_inference
from codyra_llm.errors import Stopped, UserError
from codyra_llm.evaluation.judge.config import JudgeConfig, decisive
from codyra_llm.evaluation.judge.endpoint import EndpointJudge, read_address, read_key
from codyra_llm.evaluation.judge.likelihood import LikelihoodJudge
from codyra_llm.evaluation.judge.prompts import PromptFile, read_prompt_files
from codyra_llm.evaluation.judge.proxies import proxies
from codyra_llm.evaluation.judge.verdict import Judge, Pair, Reply, fill, tally
from codyra_llm.example import Example
from codyra_llm.files import expand, sha256
from codyra_llm.generation.generate import Answered, Question, answer_questions
from codyra_llm.models.source import Source, open_source
from codyra_llm.report.judge_folder import JudgeFolder
from codyra_llm.report.progress import progress_bar
from codyra_llm.report.tables import judged_table, proxies_table
from codyra_llm.results.provenance import command, plain, versions
from codyra_llm.results.schema import SCHEMA_VERSION, JudgeResults, PromptFileResults
from codyra_llm.workflows.asking import asking
from codyra_llm.workflows.session import Session, open_session

SIDES = ("model", "against")


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One of the two models: its configuration as a run's, and the prompts as questions to it."""

    run: RunConfig
    source: Source
    template: ChatTemplate | None
    questions: list[Question]

    @property
    def row_name(self) -> str:
        """Identifies its answers by the model and the model's settings."""
        return hashlib.sha256(f"{self.run.model} {self.source.sha256}".encode()).hexdigest()[:8]


@dataclasses.dataclass(frozen=True)
class Asked:
    """One question to the judge: number of its prompt, side whose answer comes first, text, and key of its reply."""

    number: int
    first: str
    text: str
    key: str


def judge_models(config: JudgeConfig) -> JudgeResults:
    """Compares config.model with config.against on the prompts.

    Writes to config.output_dir: judge.yaml, answers.jsonl, verdicts.jsonl, results.json. A second start does not ask
    again for existing answers and verdicts.

    Returns:
        The content of results.json.

    Raises:
        UserError: settings, prompts or a model are invalid, the judge does not answer, or output_dir contains other
            files.
        Stopped: it was asked to stop; started again, it resumes.
    """
    ranks = start(config.rendezvous_seconds)
    read_deepspeed_json(config.deepspeed)
    if config.has_endpoint:
        read_address(config.judge)
        read_key(config.api_key_variable)
    files = read_prompt_files(config.prompts, config.criteria)
    model = _contestant(config, config.model, files)
    is_base = config.against == "base"
    other = _contestant(config, _base(config.model) if is_base else config.against, files, model if is_base else None)
    contestants = {"model": model, "against": other}
    local_judge = None if config.has_endpoint or config.judge == "none" else open_source(config.judge)
    if local_judge:
        check_tokenizer(local_judge.tokenizer)
    check_same(ranks, {name: repr(value) for name, value in vars(config).items() if name != "output_dir"})
    with open_session(ranks, lambda: JudgeFolder(config), "judge.log") as session:
        session.open()
        answers = {side: _answers(session, each, side) for side, each in contestants.items()}
        session.on_rank_0(lambda: session.folder.write_answers(_answer_rows(files, answers)))
        asked = [] if config.judge == "none" else _questions_to_judge(config, local_judge, files, answers)
        replies = _replies(session, config, local_judge, asked)
        results = _results(config, contestants, files, answers, asked, replies, ranks.size)

        def write() -> None:
            session.folder.write_results(results)
            print(f"{_table(results)}\n\nall results are in {session.folder.path}")

        session.on_rank_0(write)
    return results


def _contestant(
    config: JudgeConfig, name: str, files: Sequence[PromptFile], like: Contestant | None = None
) -> Contestant:
    """Opens one of the models; its prompts are in the chat template of `like`, if given."""
    run = _run_config(config, name)
    source = open_source(name)
    check_tokenizer(source.tokenizer)
    template = like.template if like else template_of(source.tokenizer, name, config.chat_template)
    questions = []
    for prompt in (prompt for file in files for prompt in file.prompts):
        ids = encode_request(source.tokenizer, prompt.text, template)
        if len(ids) + config.max_new_tokens > source.context_length:
            raise UserError(
                f"{prompt.where}: {len(ids)} tokens and {config.max_new_tokens} of an answer, {name} knows "
                f"{source.context_length} positions; lower max_new_tokens or shorten the prompt"
            )
        questions.append(Question(Example(ids, []), config.max_new_tokens))
    return Contestant(run, source, template, questions)


def _run_config(config: JudgeConfig, name: str) -> RunConfig:
    return load_config(
        None,
        {
            "model.name_or_path": name,
            "model.dtype": config.dtype,
            "evaluate.batch_size": config.batch_size,
            "deepspeed": config.deepspeed,
        },
    )


def _base(model: str) -> str:
    """Returns the base model of the run that saved a model."""
    saved = expand(model).absolute().parent / "config.yaml"
    if not saved.is_file():
        raise UserError(f"against base: {model} is not the model folder of a run ({saved} is not there); name the base")
    return load_config(saved).model.name_or_path


def _answers(session: Session, each: Contestant, side: str) -> list[Answered]:
    """Returns a model's answers to all prompts; the model is loaded only if one is missing."""
    known: dict[str, Answered] = broadcast(session.on_rank_0(lambda: session.folder.read_answers(each.row_name)))
    keys = [question.key for question in each.questions]
    if all(key in known for key in keys):
        return [known[key] for key in keys]
    ends = end_ids(each.source.tokenizer, each.template)
    model = session.load(each.source, each.run, read_deepspeed_json(each.run.deepspeed), ends)
    doing, total = f"answering ({side})", len(each.questions)
    with asking(session, model, each.source.tokenizer, each.run.evaluate, each.row_name, doing, total) as ask:
        answers = list(ask(each.questions))
    del model, ask
    return_freed_memory()
    return answers


def _questions_to_judge(
    config: JudgeConfig, local_judge: Source | None, files: Sequence[PromptFile], answers: dict[str, list[Answered]]
) -> list[Asked]:
    """Returns two questions for each prompt whose answers differ: with the model's answer first, and last."""
    judge = [config.judge, local_judge.sha256 if local_judge else config.judge_model]
    prompts = [(file.template, prompt.text) for file in files for prompt in file.prompts]
    asked = []
    for number, ((template, prompt), ours, theirs) in enumerate(
        zip(prompts, answers["model"], answers["against"], strict=True)
    ):
        if ours.text == theirs.text:
            continue
        for first, of_a, of_b in (("model", ours, theirs), ("against", theirs, ours)):
            text = fill(template, prompt, of_a.text, of_b.text)
            asked.append(Asked(number, first, text, hashlib.sha256(json.dumps([judge, text]).encode()).hexdigest()))
    return asked


def _replies(
    session: Session,
    config: JudgeConfig,
    local_judge: Source | None,
    asked: Sequence[Asked],
) -> dict[str, Reply]:
    """Returns replies by key of the question; replies in the folder are not asked for again, unless they failed.

    Raises:
        UserError: no question of a round got a reply, or there is no verdict at all.
        Stopped: it was asked to stop.
    """
    ranks = session.ranks
    lines: list[dict[str, Any]] = broadcast(session.on_rank_0(lambda: session.folder.read_verdicts()))
    kept = {line["key"]: Reply(line["verdict"], line["reply"]) for line in lines if line["problem"] is None}
    wanted = list({each.key: each for each in asked if each.key not in kept}.values())
    replies = {each.key: kept[each.key] for each in asked if each.key in kept}
    size = config.batch_size * ranks.size if local_judge else 2 * config.concurrency
    bar = progress_bar("judging", "question", len(asked), len(asked) - len(wanted), shown=ranks.is_main, leave=False)
    with bar as progress, _judge(session, config, local_judge if wanted else None) as judge:
        for first in range(0, len(wanted), size):
            fresh = _ask_judge(session, judge, wanted[first : first + size])
            replies |= fresh
            progress.update(len(fresh))
            problems = [reply.problem for reply in fresh.values() if reply.problem]
            if len(problems) == size:
                raise UserError(
                    f"judge {config.judge}: {problems[-1]}; the verdicts until now are kept, and the same command "
                    "resumes from them"
                )
            if session.stop.agreed():
                raise Stopped(f"while judging, after {progress.n} of {len(asked)} questions")
    if asked and not any(reply.verdict for reply in replies.values()):
        last = replies[asked[-1].key]
        why = last.problem or f"no [[A]], [[B]] or [[C]] in its replies, such as {' '.join(last.text.split())[:100]!r}"
        raise UserError(f"judge {config.judge}: not one of {len(asked)} questions got a verdict: {why}")
    return replies


def _ask_judge(session: Session, judge: Judge, asked: Sequence[Asked]) -> dict[str, Reply]:
    """Returns replies by key of the question, after saving them in the folder."""
    replies = judge([each.text for each in asked])
    lines = [_line(each, reply) for each, reply in zip(asked, replies, strict=True)]
    session.on_rank_0(lambda: session.folder.append_verdicts(lines))
    return {each.key: reply for each, reply in zip(asked, replies, strict=True)}


@contextmanager
def _judge(session: Session, config: JudgeConfig, local_judge: Source | None) -> Iterator[Judge]:
    """A context with the judge, which every rank calls and which returns the same replies on every rank."""
    if config.has_endpoint:
        endpoint = EndpointJudge(config)
        yield lambda texts: broadcast(session.on_rank_0(lambda: endpoint(texts)))
    elif not local_judge:  # no question is left
        yield lambda texts: []
    else:
        tokenizer, run = local_judge.tokenizer, _run_config(config, local_judge.name)
        template = template_of(tokenizer, local_judge.name, config.chat_template)
        model = session.load(local_judge, run, read_deepspeed_json(run.deepspeed))
        with gathered_for_inference(model, run.evaluate.gather, session.ranks) as synced:

            def ask(questions: Sequence[Question]) -> list[Answered]:
                return answer_questions(model, tokenizer, questions, config.batch_size, session.ranks, synced=synced)

            yield LikelihoodJudge(tokenizer, ask, template, local_judge.context_length)


def _line(asked: Asked, reply: Reply) -> dict[str, Any]:
    """Returns a line of verdicts.jsonl."""
    return {
        "key": asked.key,
        "number": asked.number,
        "first": asked.first,
        "verdict": reply.verdict,
        "reply": reply.text,
        "problem": reply.problem,
    }


def _answer_rows(files: Sequence[PromptFile], answers: dict[str, list[Answered]]) -> Iterator[dict[str, Any]]:
    prompts = [(file.name, prompt) for file in files for prompt in file.prompts]
    for number, (name, prompt) in enumerate(prompts):
        of_sides = {side: answers[side][number].text for side in SIDES}
        yield {
            "number": number,
            "file": name,
            "id": prompt.id,
            "category": prompt.category,
            "prompt": prompt.text,
            **of_sides,
        }


def _results(
    config: JudgeConfig,
    contestants: dict[str, Contestant],
    files: Sequence[PromptFile],
    answers: dict[str, list[Answered]],
    asked: Sequence[Asked],
    replies: dict[str, Reply],
    world_size: int,
) -> JudgeResults:
    verdicts = {(each.number, each.first): replies[each.key].verdict for each in asked}
    settings = json.dumps([decisive(config), [(file.template, sha256(file.path)) for file in files]])
    by_file, begin = {}, 0
    for file in files:
        numbers = range(begin, begin + len(file.prompts))
        begin = numbers.stop
        pairs = [
            Pair(
                answers["model"][number].text == answers["against"][number].text,
                (verdicts.get((number, "model")), verdicts.get((number, "against"))),
            )
            for number in numbers
        ]
        by_file[file.name] = PromptFileResults(
            sha256=sha256(file.path),
            prompts=len(file.prompts),
            criterion=file.criterion,
            judged=None if config.judge == "none" else tally(pairs),
            proxies={side: proxies(file.prompts, answers[side][numbers.start : numbers.stop]) for side in SIDES},
        )
    return JudgeResults(
        schema_version=SCHEMA_VERSION,
        command=command(),
        versions=versions(),
        config=plain(config),
        config_sha256=hashlib.sha256(settings.encode()).hexdigest(),
        world_size=world_size,
        models={side: each.run.model.name_or_path for side, each in contestants.items()},
        files=by_file,
    )


def _table(results: JudgeResults) -> str:
    parts = [f"model: {results.models['model']}, against: {results.models['against']}"]
    judge = results.config["judge"]
    if judge != "none":
        parts.append(f"Judged by {judge}, each pair in both orders\n{judged_table(results.files)}")
    parts.append(f"Proxies, counted without a judge\n{proxies_table(results.files)}")
    return "\n\n".join(parts)
