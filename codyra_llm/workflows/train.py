"""The continual run: trains, merges and evaluates each task, then saves. It can be interrupted anywhere and resumed."""

import contextlib
import dataclasses
import logging
from itertools import pairwise
from pathlib import Path

from codyra_llm.config import RunConfig, load_config
from codyra_llm.data.stream import TaskStream
from codyra_llm.distributed.ranks import broadcast, start
from codyra_llm.domains.find import find_domain
from codyra_llm.engine.checkpoint import Checkpoint, Checkpoints
from codyra_llm.planning.run_plan import check_ranks_agree, plan_run
from codyra_llm.report.folder import RunFolder
from codyra_llm.report.tracking import check_tracking
from codyra_llm.results.schema import RunResults
from codyra_llm.workflows import stages
from codyra_llm.workflows.run_state import open_run
from codyra_llm.workflows.session import Session, open_session

LOG = logging.getLogger(__name__)
PHASES = {"train": stages.train, "merge": stages.merge, "evaluate": stages.evaluate, "save": stages.save}


def run(config: RunConfig | str | Path, stream: TaskStream | None = None, shares_base: bool = False) -> RunResults:
    """Trains a model on the tasks of a stream, one after another, and writes the run folder.

    A run folder that contains the same run is resumed (`config.resume`); a finished one is not changed.

    Args:
        config: a configuration, or the path of its YAML file.
        stream: the tasks; by default those that the configuration names.
        shares_base: share the base model's answers with other runs that begin with the same model, as in a comparison.

    Returns:
        The content of results.json.

    Raises:
        UserError: the configuration, data, model or run folder is invalid; or a file cannot be written.
        Stopped: the run was asked to stop (SIGTERM, SIGUSR1, Ctrl-C, or a file `stop` in the run folder).
    """
    config = config if isinstance(config, RunConfig) else load_config(config)
    if stream is not None:  # the saved configuration must not name tasks that were not run
        config = dataclasses.replace(config, order=tuple(stream.names), data_dir="(in memory)")
    config = find_domain(config, stream).settled(config)
    check_tracking(config)
    ranks = start(config.rendezvous_seconds, config.collective_seconds)
    plan = plan_run(config, ranks, stream)
    check_ranks_agree(config, ranks, plan.source, plan)
    with open_session(ranks, lambda: RunFolder(config), "train.log") as session:
        folder = session.folder
        checkpoints = Checkpoints(folder.path / "checkpoints", plan.name(config)) if folder else None
        found = _last_checkpoint(session, checkpoints) if config.resume == "auto" else None
        if found and found.progress.phase == "done":
            results: RunResults | None = broadcast(session.on_rank_0(lambda: folder.finished()))
            if results:
                session.on_rank_0(lambda: print(f"this run is finished: {folder.path}; `--resume never` starts over"))
                return results
            found = dataclasses.replace(found, progress=dataclasses.replace(found.progress, phase="save"))
            session.note("the finished run lacks its model or its results; they are made again from ledger and base")
        state = open_run(config, plan, session, checkpoints, found)
        state.shares_base = shares_base
        with contextlib.closing(state.report):
            for (stage, phase), following in pairwise(state.remaining):
                PHASES[phase](state, stage)
                state.checkpoint(following)
            state.report.summary(state.results)
    return state.results


def _last_checkpoint(session: Session, checkpoints: Checkpoints | None) -> Checkpoint | None:
    found: Checkpoint | None
    found, unfit = broadcast(session.on_rank_0(lambda: checkpoints.latest()))  # type: ignore[union-attr]
    for problem in unfit:
        session.note(f"skipped a checkpoint: {problem}")
    return found
