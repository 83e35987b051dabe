"""Tasks of labelled pictures, and the examples made of them: a picture is learned by the number of its class."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from codyra_llm.data.stream import Task
from codyra_llm.domains.images.pictures import Picture, digest
from codyra_llm.domains.images.pixels import Pixels
from codyra_llm.example import Example


@dataclass(frozen=True)
class ImageTask(Task):
    """A domain of pictures as a task; `train` and `test` are its rows as reports show them.

    Attributes:
        classes: names, by label. prompts: the text that stands for each class.
        pictures: of each split; those of train are the few that are learned.
        published: scores of the model before it is taught, by scoring variant, in percent.
    """

    classes: Sequence[str] = ()
    prompts: Sequence[str] = ()
    pictures: Mapping[str, Sequence[Picture]] = field(default_factory=dict)
    published: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Space:
    """The classes of all tasks of a stream, one after another: what a picture is told among.

    Attributes:
        tasks: their names. first: the number of each one's first class, and the number of all classes.
        classes: names. texts: the prompt of each class. prompts: its token ids, the end mark included.
        end: the id of the end mark, which also fills prompts up.
        pixels: how pictures become pixels.
    """

    tasks: Sequence[str]
    first: Sequence[int]
    classes: Sequence[str]
    texts: Sequence[str]
    prompts: Sequence[Sequence[int]]
    end: int
    pixels: Pixels

    def of_task(self, task: str) -> range:
        """The numbers of a task's classes."""
        at = list(self.tasks).index(task)
        return range(self.first[at], self.first[at + 1])

    def told(self, number: int, own: range) -> str:
        """A class by name, with its task where that is another than that of the classes `own`."""
        if number in own:
            return self.classes[number]
        task = next(name for name in self.tasks if number in self.of_task(name))
        return f"{self.classes[number]} ({task})"

    @cached_property
    def digest(self) -> bytes:
        """Of all that an answer depends on beside picture and model."""
        content = [list(self.first), list(map(list, self.prompts)), self.pixels.content]
        return hashlib.sha256(json.dumps(content).encode()).digest()


@dataclass(frozen=True)
class ImageExample(Example):
    """A picture; `answer` is the number of its class among all, `own` are those of its task."""

    picture: Picture = field(kw_only=True)
    space: Space = field(kw_only=True)
    own: range = field(kw_only=True)

    @cached_property
    def _bytes(self) -> bytes:
        label = f"{self.answer[0]} {self.own.start} {self.own.stop}".encode()
        return self.space.digest + digest(self.picture) + label

    def to_bytes(self) -> bytes:
        """What no other example has, for a hash; the picture's file is read once."""
        return self._bytes


def examples_of(task: ImageTask, split: str, space: Space) -> list[Example]:
    """The pictures of a split as examples."""
    own = space.of_task(task.name)
    return [
        ImageExample([], [own.start + picture.label], picture=picture, space=space, own=own)
        for picture in task.pictures[split]
    ]


def shown_rows(pictures: Sequence[Picture], classes: Sequence[str]) -> list[dict[str, str]]:
    """Pictures as rows of text: the file, or its number, and the class."""
    return [
        {"prompt": str(each.source) if isinstance(each.source, Path) else f"picture {number}",
         "answer": classes[each.label]}
        for number, each in enumerate(pictures, 1)
    ]  # fmt: skip
