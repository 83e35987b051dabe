"""Tasks of labelled pictures, and the examples made of them: a picture is learned by the number of its class."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from codyra_llm.data.stream import Split, Task
from codyra_llm.domains.images.pictures import Picture
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

    def keys(self, split: Split) -> list[str]:
        """The SHA-256 of each picture."""
        return [picture.sha256.hex() for picture in self.pictures[split]]

    def parted(self, left: Sequence[int], validation: Sequence[int]) -> "ImageTask":
        """As `Task.parted`, with the pictures."""
        learned = self.pictures["train"]
        of_splits = {"train": [learned[number] for number in left], "eval": [learned[number] for number in validation]}
        found = super().parted(left, validation)
        assert isinstance(found, ImageTask)
        return dataclasses.replace(found, pictures={**self.pictures, **of_splits})

    def tested_on_validation(self) -> "ImageTask":
        """As `Task.tested_on_validation`, with the pictures."""
        found = super().tested_on_validation()
        assert isinstance(found, ImageTask)
        return dataclasses.replace(found, pictures={"train": self.pictures["train"], "test": self.pictures["eval"]})

    def hashes(self) -> dict[str, str]:
        """SHA-256 of the pictures of each split with their classes, in order, and of the classes and their prompts."""
        found = {}
        for split, pictures in self.pictures.items():
            digest = hashlib.sha256()
            for picture in pictures:
                digest.update(f"{picture.label} ".encode() + picture.sha256)
            found[split] = digest.hexdigest()
        content = json.dumps([list(self.classes), list(self.prompts)]).encode()
        return {**found, "classes": hashlib.sha256(content).hexdigest()}


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
        return self.space.digest + self.picture.sha256 + label

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
