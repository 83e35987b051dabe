"""Tasks of labelled pictures and the examples made of them; the target of a picture is the number of its class."""

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
        classes: class names, by label.
        prompts: the prompt of each class.
        pictures: the pictures of each split; those of train are the few that are learned.
        published: scores of the model before training, by scoring variant, in percent.
    """

    classes: Sequence[str] = ()
    prompts: Sequence[str] = ()
    pictures: Mapping[str, Sequence[Picture]] = field(default_factory=dict)
    published: Mapping[str, float] = field(default_factory=dict)

    def keys(self, split: Split) -> list[str]:
        """Returns the SHA-256 of each picture."""
        return [picture.sha256.hex() for picture in self.pictures[split]]

    def parted(self, left: Sequence[int], validation: Sequence[int]) -> "ImageTask":
        """Splits off validation rows, with their pictures; see `Task.parted`."""
        learned = self.pictures["train"]
        of_splits = {"train": [learned[number] for number in left], "eval": [learned[number] for number in validation]}
        found = super().parted(left, validation)
        assert isinstance(found, ImageTask)
        return dataclasses.replace(found, pictures={**self.pictures, **of_splits})

    def tested_on_validation(self) -> "ImageTask":
        """Returns the task with its validation pictures as test pictures; see `Task.tested_on_validation`."""
        found = super().tested_on_validation()
        assert isinstance(found, ImageTask)
        return dataclasses.replace(found, pictures={"train": self.pictures["train"], "test": self.pictures["eval"]})

    def hashes(self) -> dict[str, str]:
        """Returns the SHA-256 of each split's pictures with their classes, in order, and of the classes and prompts."""
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
    """The classes of all tasks of a stream, one task after another, which a picture is classified among.

    Attributes:
        tasks: names of the tasks.
        first: the number of each task's first class, then the number of all classes.
        classes: class names.
        texts: the prompt of each class.
        prompts: the token ids of each prompt, with the EOS token.
        end: the id of the EOS token, which is also the padding.
        pixels: how pictures are converted to pixels.
    """

    tasks: Sequence[str]
    first: Sequence[int]
    classes: Sequence[str]
    texts: Sequence[str]
    prompts: Sequence[Sequence[int]]
    end: int
    pixels: Pixels

    def of_task(self, task: str) -> range:
        """Returns the numbers of a task's classes."""
        at = list(self.tasks).index(task)
        return range(self.first[at], self.first[at + 1])

    def told(self, number: int, own: range) -> str:
        """Returns a class's name, followed by its task if the class is not among `own`."""
        if number in own:
            return self.classes[number]
        task = next(name for name in self.tasks if number in self.of_task(name))
        return f"{self.classes[number]} ({task})"

    @cached_property
    def digest(self) -> bytes:
        """A hash of all that an answer depends on, apart from picture and model."""
        content = [list(self.first), list(map(list, self.prompts)), self.pixels.content]
        return hashlib.sha256(json.dumps(content).encode()).digest()


@dataclass(frozen=True)
class ImageExample(Example):
    """A picture; `answer` is the number of its class among all classes, `own` are the numbers of its task's classes."""

    picture: Picture = field(kw_only=True)
    space: Space = field(kw_only=True)
    own: range = field(kw_only=True)

    @cached_property
    def _bytes(self) -> bytes:
        label = f"{self.answer[0]} {self.own.start} {self.own.stop}".encode()
        return self.space.digest + self.picture.sha256 + label

    def to_bytes(self) -> bytes:
        """Returns bytes that identify the example, for a hash; the picture's file is read once."""
        return self._bytes


def examples_of(task: ImageTask, split: str, space: Space) -> list[Example]:
    """Returns the pictures of a split as examples."""
    own = space.of_task(task.name)
    return [
        ImageExample([], [own.start + picture.label], picture=picture, space=space, own=own)
        for picture in task.pictures[split]
    ]


def shown_rows(pictures: Sequence[Picture], classes: Sequence[str]) -> list[dict[str, str]]:
    """Returns pictures as rows of text: the file name or the picture's number, and the class."""
    return [
        {"prompt": str(each.source) if isinstance(each.source, Path) else f"picture {number}",
         "answer": classes[each.label]}
        for number, each in enumerate(pictures, 1)
    ]  # fmt: skip
