"""The small world that nano is pretrained on: its facts, and texts about them (statements, questions, sums, stories).

Everything is drawn from fixed seeds, so the facts and texts are the same on every machine.
"""

import random
from collections.abc import Callable, Iterator
from itertools import product

SEED = "nano world"
_draw = random.Random(SEED)


def _names(first: str, second: str, count: int) -> list[str]:
    names = [a + b for a, b in product(first.split(), second.split())]
    _draw.shuffle(names)
    return sorted(names[:count])


TOWNS = _names("Bram Tor Mel Kes Lun Var Hol Pel", "field wick ford ham stead by", 40)
PEOPLE = _names("An Bo Cla Do El Fri Gre Han", "ra sel ta dric lin mo na", 40)
RIVERS = _names("Os Tam Wey Ard", "el are une en", 12)
COLORS = {"red": "rot", "green": "grün", "blue": "blau", "white": "weiß", "black": "schwarz", "yellow": "gelb"}
GOODS = {
    "bread": "Brot", "wool": "Wolle", "glass": "Glas", "salt": "Salz", "paper": "Papier", "honey": "Honig",
    "iron": "Eisen", "wine": "Wein", "cloth": "Stoff", "fish": "Fisch",
}  # fmt: skip
ANIMALS = {"cow": "Kuh", "dog": "Hund", "cat": "Katze", "horse": "Pferd", "goat": "Ziege", "hen": "Henne"}
TRADES = {
    "baker": "Bäcker", "smith": "Schmied", "weaver": "Weber", "miller": "Müller", "teacher": "Lehrer",
    "farmer": "Bauer", "painter": "Maler", "sailor": "Seemann",
}  # fmt: skip
THINGS = ["apple", "cup", "book", "ball", "lamp", "key", "boat", "chair", "hat", "drum"]
FEELINGS = ["glad", "tired", "proud", "calm", "angry", "curious"]

RIVER = {town: _draw.choice(RIVERS) for town in TOWNS}
FLAG = {town: _draw.choice(list(COLORS)) for town in TOWNS}
MAKES = {town: _draw.choice(list(GOODS)) for town in TOWNS}
TRADE = {name: _draw.choice(list(TRADES)) for name in PEOPLE}
HOME = {name: _draw.choice(TOWNS) for name in PEOPLE}
PET = {name: _draw.choice(list(ANIMALS)) for name in PEOPLE}


def _about_town(r: random.Random) -> str:
    town = r.choice(TOWNS)
    lines = [
        r.choice([f"The river of {town} is the {RIVER[town]}.", f"{town} lies on the river {RIVER[town]}."]),
        r.choice([f"The flag of {town} is {FLAG[town]}.", f"{town} has a {FLAG[town]} flag."]),
        r.choice([f"The people of {town} make {MAKES[town]}.", f"{town} is known for its {MAKES[town]}."]),
    ]
    r.shuffle(lines)
    return " ".join(lines)


def _about_town_in_german(r: random.Random) -> str:
    town = r.choice(TOWNS)
    lines = [
        f"Der Fluss von {town} heißt {RIVER[town]}.",
        f"Die Fahne von {town} ist {COLORS[FLAG[town]]}.",
        f"In {town} macht man {GOODS[MAKES[town]]}.",
    ]
    r.shuffle(lines)
    return " ".join(lines)


def _about_person(r: random.Random) -> str:
    name = r.choice(PEOPLE)
    lines = [
        r.choice([f"{name} is a {TRADE[name]}.", f"{name} works as a {TRADE[name]}."]),
        r.choice([f"{name} lives in {HOME[name]}.", f"The home of {name} is {HOME[name]}."]),
        r.choice([f"{name} has a {PET[name]}.", f"The pet of {name} is a {PET[name]}."]),
    ]
    r.shuffle(lines)
    return " ".join(lines)


def questions(r: random.Random) -> tuple[str, str, list[str]]:
    """Returns a question about a fact, its answer, and the possible answers of questions of its kind."""
    town, name = r.choice(TOWNS), r.choice(PEOPLE)
    return r.choice(
        [
            (f"What is the river of {town}?", RIVER[town], RIVERS),
            (f"What color is the flag of {town}?", FLAG[town], list(COLORS)),
            (f"What do the people of {town} make?", MAKES[town], list(GOODS)),
            (f"What is the trade of {name}?", TRADE[name], list(TRADES)),
            (f"Where does {name} live?", HOME[name], TOWNS),
            (f"What is the pet of {name}?", PET[name], list(ANIMALS)),
        ]
    )


def _asked(r: random.Random) -> str:
    question, answer, _ = questions(r)
    return f"Question: {question}\nAnswer: {answer}"


def _asked_with_choices(r: random.Random) -> str:
    question, answer, others = questions(r)
    choices = [answer, *r.sample([other for other in others if other != answer], 2)]
    r.shuffle(choices)
    letter = "ABC"[choices.index(answer)]
    listed = " ".join(f"({mark}) {choice}" for mark, choice in zip("ABC", choices, strict=True))
    return f"Question: {question}\nChoices: {listed}\nAnswer: {letter} {answer}"


def _asked_in_german(r: random.Random) -> str:
    town, name = r.choice(TOWNS), r.choice(PEOPLE)
    question, answer = r.choice(
        [
            (f"Wie heißt der Fluss von {town}?", RIVER[town]),
            (f"Welche Farbe hat die Fahne von {town}?", COLORS[FLAG[town]]),
            (f"Was macht man in {town}?", GOODS[MAKES[town]]),
            (f"Was ist {name} von Beruf?", TRADES[TRADE[name]]),
            (f"Wo wohnt {name}?", HOME[name]),
            (f"Welches Tier hat {name}?", ANIMALS[PET[name]]),
        ]
    )
    return f"Frage: {question}\nAntwort: {answer}"


def sums(r: random.Random) -> tuple[str, int]:
    """Returns a sum or difference of small numbers as text, and its value."""
    a, b = r.randint(0, 12), r.randint(0, 12)
    return r.choice([(f"{a} + {b} =", a + b), (f"{max(a, b)} - {min(a, b)} =", abs(a - b))])


def _computed(r: random.Random) -> str:
    return "\n".join(f"{question} {value}" for question, value in (sums(r) for _ in range(5)))


def _counted(r: random.Random) -> str:
    a, b, thing, name = r.randint(1, 9), r.randint(1, 9), r.choice(THINGS), r.choice(PEOPLE)
    return f"{name} has {a} {thing}s and gets {b} more. Now {name} has {a + b} {thing}s."


def story(r: random.Random) -> str:
    """Returns a few sentences about somebody who lost a thing."""
    name, friend = r.sample(PEOPLE, 2)
    thing, feeling, town = r.choice(THINGS), r.choice(FEELINGS), r.choice(TOWNS)
    place = r.choice(["the market", "the bridge", "the mill", "the harbor", "the school"])
    return " ".join(
        [
            r.choice([f"One morning {name} went to {place} of {town}.", f"{name} walked to {place} in {town}."]),
            r.choice([f"There {name} lost a {thing}.", f"A {thing} fell from the bag."]),
            r.choice([f"{friend}, the {TRADE[friend]}, found the {thing}.", f"The {PET[name]} of {name} found it."]),
            r.choice([f"{name} was {feeling} and went home.", f"In the evening {name} was {feeling}."]),
        ]
    )


def _talk(r: random.Random) -> str:
    name, friend = r.sample(PEOPLE, 2)
    question, answer, _ = questions(r)
    return (
        f"{name}: Good day, {friend}.\n{friend}: Good day, {name}.\n{name}: {question}\n{friend}: It is {answer}.\n"
        f"{name}: Thank you."
    )


def _talk_in_german(r: random.Random) -> str:
    name, friend = r.sample(PEOPLE, 2)
    return f"{name}: Guten Tag.\n{friend}: Guten Tag, {name}. {_about_town_in_german(r)}\n{name}: Danke."


def _code(r: random.Random) -> str:
    a, b = r.sample("abcdefgh", 2)
    name, sign = r.choice([("add", "+"), ("sub", "-"), ("mul", "*")])
    thing = r.choice(THINGS)
    return r.choice(
        [
            f"def {name}({a}, {b}):\n    return {a} {sign} {b}",
            f"for {a} in range({r.randint(2, 9)}):\n    print({a})",
            f"{thing}s = []\nfor {a} in data:\n    {thing}s.append({a})\nreturn {thing}s",
            f"if {a} == {b}:\n    return True\nreturn False",
            f"class {thing.title()}:\n    def __init__(self, {a}):\n        self.{a} = {a}",
        ]
    )


def _layout(r: random.Random) -> str:
    """Returns a text of the world in the layout of a task; a label or simplified sentence in it is random."""
    text, name = story(r), r.choice(PEOPLE)
    return r.choice(
        [
            f"Text: {text}\nTopic: {name}\nLabel: {r.choice('ABC')}",
            f"Meeting: {text}\nSummary: {text.split('.')[0]}.",
            f"Satz: {_about_town_in_german(r)}\nEinfach: {_about_town_in_german(r)}",
        ]
    )


KINDS: list[tuple[Callable[[random.Random], str], int]] = [
    (_about_town, 3), (_about_town_in_german, 2), (_about_person, 3), (_asked, 4), (_asked_with_choices, 4),
    (_asked_in_german, 3), (_computed, 3), (_counted, 2), (story, 4), (_talk, 2), (_talk_in_german, 1), (_code, 3),
    (_layout, 2),
]  # fmt: skip


def texts(seed: str) -> Iterator[str]:
    """Yields an endless sequence of texts of all kinds, determined by the seed."""
    r = random.Random(f"{SEED}/{seed}")
    makers, weights = zip(*KINDS, strict=True)
    while True:
        yield r.choices(makers, weights)[0](r)
