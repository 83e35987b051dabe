"""Loads a stream of picture domains: a task file joined with a data folder, and the few pictures that are learned."""

from collections.abc import Mapping, Sequence

from codyra_llm.config import RunConfig, resolve_path
from codyra_llm.data.stream import TaskSpec, TaskStream, resolve_order
from codyra_llm.domains.facts import UNION, WITHIN_TASK
from codyra_llm.domains.images.draws import draw
from codyra_llm.domains.images.pictures import Picture
from codyra_llm.domains.images.readers import ImageDomain, read_domain
from codyra_llm.domains.images.rows import ImageTask, shown_rows
from codyra_llm.domains.images.tasks import ImageStreamSpec, read_image_tasks
from codyra_llm.files import expand


def load_stream(config: RunConfig) -> TaskStream:
    """Loads the tasks of a configuration.

    Raises:
        UserError: a file is missing or malformed, or a task or order is unknown.
    """
    file = resolve_path(config.task_file)
    known = read_image_tasks(file, config.data.allow_code)
    names = resolve_order(config.order, known.orders, known.specs, str(file))
    folder = expand(config.data_dir)
    published = _published(config, known, names)
    tasks: list[ImageTask] = []
    notes: list[str] = []
    for name in names:
        spec = known.specs[name]
        domain = read_domain(spec, folder)
        of_task = {variant: scores[name] for variant, scores in published.items() if name in scores}
        how = TaskSpec("accuracy", epochs=spec.epochs, steps=spec.steps)
        tasks.append(image_task(domain, how, spec.shots, config.seed, of_task))
        notes += domain.notes
    return TaskStream(tuple(tasks), known.label, folder.resolve().name, tuple(notes))


def _published(config: RunConfig, known: ImageStreamSpec, names: Sequence[str]) -> dict[str, Mapping[str, float]]:
    """{scoring variant: {task: percent}} of the pretrained model, for variants that are scored on the same classes."""
    rows = {variant: known.zero_shot(variant) for variant in (UNION, WITHIN_TASK)}
    if config.data.max_test_examples is not None:
        return {}
    return {
        variant: row.scores
        for variant, row in rows.items()
        if row and (variant == WITHIN_TASK or set(row.scores) == set(names))
    }


def image_task(
    domain: ImageDomain, spec: TaskSpec, shots: int | None, seed: int, published: Mapping[str, float] | None = None
) -> ImageTask:
    """Makes a task of a domain.

    Args:
        spec: how long it is learned.
        shots: number of pictures of each class that are learned; None for all.
        seed: decides which pictures are drawn.
        published: scores of the model before training, by scoring variant.
    """
    learned: Sequence[Picture] = draw(domain.train, shots, seed, domain.name) if shots else domain.train
    return ImageTask(
        domain.name,
        spec,
        shown_rows(learned, domain.classes),
        shown_rows(domain.test, domain.classes),
        classes=domain.classes,
        prompts=domain.prompts,
        pictures={"train": learned, "test": domain.test},
        published=published or {},
    )
