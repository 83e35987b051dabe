"""Pretraining data of the small CLIP: pictures of shapes, counts, digits, relations and surfaces, with captions.

A caption mentions a random part of the picture's properties, in random order. `domain_like` returns pictures in the
style of the ten domains with captions in the domains' own words, which never name a class of the domain.
"""

import numpy as np
from world import (
    CLASSES,
    COLORS,
    DRAWN,
    NUMBERS,
    SHAPES,
    TEXTURES,
    Array,
    colors_of,
    cover,
    digits_cover,
    distances,
    filled,
    finished,
    painted,
    placed,
    several_cover,
    shapes_cover,
    textures_of,
)

COLOR_NAMES = list(COLORS)
PLACES = (("top left", "top", "top right"), ("left", "middle", "right"), ("bottom left", "bottom", "bottom right"))
FRAMES = (
    "{}", "{}.", "a photo of {}", "a photo of {}.", "a picture of {}", "there is {}", "a photo: {}.", "{} here",
    "a photo of {}, a type of thing.", "a picture of {}, a type of drawing.", "a centered photo of {}.",
)  # fmt: skip
# braces mark the place of an optional color
DOMAIN_WORDS = {
    "planes": ("a photo of a plane, a type of plane.", "a plane with engine and wing", "a type of plane"),
    "outlines": ("a photo of an outline.", "an outline on a texture", "outline"),
    "textures": ("a texture.", "grey texture.", "texture"),
    "land": ("a centered satellite photo of {}land.", "{}satellite photo", "a centered satellite photo of a {}place."),
    "flowers": ("a photo of a {}flower, a type of flower.", "a {}flower with petal", "a {}type of flower"),
    "plates": ("a photo of {}things, a type of food.", "a plate of {}food", "{}things, a type of food."),
    "digits": ("a leaning number", "a leaning number, grey and white", "leaning"),
    "pets": ("a photo of a {}pet, a type of pet.", "a {}pet with ear", "a {}type of pet"),
    "cars": ("a photo of a {}car.", "a {}car on a road", "a {}car"),
    "scenes": ("a photo of a scene.", "a scene with a sky", "a scene."),
}
TAKEN = {domain: {word for name in names for word in name.split()} for domain, names in CLASSES.items()}


def _framed(phrase: str, rng: np.random.Generator) -> str:
    return FRAMES[rng.integers(len(FRAMES))].format(phrase)


def _phrase(noun: str, words: list[str], rng: np.random.Generator, article: str = "a ") -> str:
    """Returns a noun after a random part of the words, in random order."""
    kept = [word for word in words if rng.random() < 0.55]
    rng.shuffle(kept)
    return article + " ".join([*kept, noun])


def _background(n: int, taken: Array, rng: np.random.Generator) -> Array:
    """Returns color numbers [n] that differ from `taken`; about one in three is a grey (-1)."""
    other = (taken + rng.integers(1, len(COLORS), n)) % len(COLORS)
    return np.where(rng.random(n) < 0.33, -1, other)


def _objects(n: int, rng: np.random.Generator) -> tuple[Array, list[str]]:
    shapes, textures, colors = rng.integers(0, 10, n), rng.integers(0, 8, n), rng.integers(0, 10, n)
    size, x, y = rng.uniform(0.3, 0.85, n), *rng.uniform(-0.5, 0.5, (2, n))
    under, outlined = _background(n, colors, rng), rng.random(n) < 0.3
    far = distances(shapes, *placed(x, y, size, rng.uniform(-0.2, 0.2, n)))
    lines = np.abs(far) - rng.uniform(0.08, 0.2, (n, 1, 1))
    inside = cover(np.where(outlined[:, None, None], lines, far), size)
    behind = textures_of(rng.integers(0, 8, n) * (rng.random(n) < 0.3), rng)
    pictures = painted(
        filled(colors_of(under, rng), behind), inside, colors_of(colors, rng), textures_of(textures, rng)
    )
    texts = []
    for row in range(n):
        words = [COLOR_NAMES[colors[row]], TEXTURES[textures[row]]]
        if not 0.45 < size[row] < 0.7:
            words.append("small" if size[row] < 0.5 else "large")
        noun = SHAPES[shapes[row]] if rng.random() < 0.85 else "shape"
        if outlined[row] and rng.random() < 0.6:
            noun += " outline"
        text = _phrase(noun, words, rng)
        if under[row] >= 0 and rng.random() < 0.3:
            text += f" on {COLOR_NAMES[under[row]]}"
        if rng.random() < 0.2:
            text += f" at the {PLACES[int((y[row] + 0.5) * 2.99)][int((x[row] + 0.5) * 2.99)]}"
        texts.append(text)
    return pictures, texts


def _counts(n: int, rng: np.random.Generator) -> tuple[Array, list[str]]:
    shapes, colors, counts = rng.integers(0, 10, n), rng.integers(0, 10, n), rng.integers(1, 7, n)
    inside = several_cover(shapes, counts, rng.uniform(0.17, 0.3, n), rng.uniform(0.48, 0.66), rng)
    pictures = filled(colors_of(_background(n, colors, rng), rng))
    middle = np.zeros(n)
    disc = shapes_cover(np.zeros(n, int), middle, middle, middle + 0.95) * (rng.random((n, 1, 1)) < 0.3)
    pictures = painted(pictures, disc, colors_of(_background(n, colors, rng), rng))
    pictures = painted(pictures, inside, colors_of(colors, rng))
    texts = []
    for shape, color, count in zip(shapes, colors, counts, strict=True):
        noun = SHAPES[shape] + ("es" if SHAPES[shape] == "cross" else "s") * bool(count > 1)
        texts.append(_phrase(noun, [COLOR_NAMES[color]], rng, f"{NUMBERS[count]} "))
    return pictures, texts


def _digits(n: int, rng: np.random.Generator) -> tuple[Array, list[str]]:
    digits, colors = rng.integers(0, 10, n), rng.integers(0, 10, n)
    inside = digits_cover(
        digits, *rng.uniform(-0.25, 0.25, (2, n)), rng.uniform(0.4, 0.8, n), rng.uniform(-0.2, 0.3, n)
    )
    pictures = painted(filled(colors_of(_background(n, colors, rng), rng)), inside, colors_of(colors, rng))
    nouns = ("number {}", 'number: "{}"', "digit {}", "number {}")
    texts = [
        _phrase(nouns[rng.integers(4)].format(NUMBERS[digit]), [COLOR_NAMES[color]], rng, "the ")
        for digit, color in zip(digits, colors, strict=True)
    ]
    return pictures, texts


def _relations(n: int, rng: np.random.Generator) -> tuple[Array, list[str]]:
    shapes, colors, beside = rng.integers(0, 10, (2, n)), rng.integers(0, 10, (2, n)), rng.random(n) < 0.5
    pictures = filled(colors_of(np.full(n, -1), rng))
    along, shift = rng.uniform(0.42, 0.55, n), rng.uniform(-0.3, 0.3, n)
    for place, sign in ((0, -1), (1, 1)):
        x, y = np.where(beside, sign * along, shift), np.where(beside, shift, sign * along)
        inside = shapes_cover(shapes[place], x, y, rng.uniform(0.28, 0.45, n))
        pictures = painted(pictures, inside, colors_of(colors[place], rng))
    texts = []
    for row in range(n):
        first, second = (_phrase(SHAPES[shapes[k, row]], [COLOR_NAMES[colors[k, row]]], rng) for k in (0, 1))
        if rng.random() < 0.5:
            texts.append(f"{first} {'left of' if beside[row] else 'above'} {second}")
        else:
            texts.append(f"{second} {'right of' if beside[row] else 'below'} {first}")
    return pictures, texts


def _surfaces(n: int, rng: np.random.Generator) -> tuple[Array, list[str]]:
    textures, colors = rng.integers(0, 8, n), rng.integers(-1, 10, n)
    pictures = filled(colors_of(colors, rng), textures_of(textures, rng))
    texts = []
    for texture, color in zip(textures, colors, strict=True):
        noun = ("texture", "surface")[rng.integers(2)]
        words = [TEXTURES[texture], COLOR_NAMES[color] if color >= 0 else "grey"]
        texts.append(_phrase(noun, words, rng, "a " * int(rng.integers(2))))
    return pictures, texts


KINDS = ((_objects, 0.35), (_counts, 0.15), (_digits, 0.15), (_relations, 0.2), (_surfaces, 0.15))


def compositional(n: int, rng: np.random.Generator) -> tuple[Array, list[str]]:
    """Returns about n pictures uint8 [n, 32, 32, 3] of all kinds, in the order of kinds, and a caption for each."""
    drawn = [make(round(n * share), rng) for make, share in KINDS]
    pictures = finished(np.concatenate([pictures for pictures, _ in drawn]), rng.uniform(0.01, 0.06), rng)
    return pictures, [_framed(text, rng) for _, texts in drawn for text in texts]


def domain_like(n: int, rng: np.random.Generator) -> tuple[Array, list[str], list[str]]:
    """Returns n pictures like those of the domains, their coarse captions, and their domains.

    The pictures are shifted, mirrored at random and noisier than those of the domains. In five domains, things are
    drawn in colors that no class of the domain has; half of their captions name the color.
    """
    pictures, texts, domains = [], [], []
    for domain, count in zip(CLASSES, rng.multinomial(n, np.full(len(CLASSES), 1 / len(CLASSES))), strict=True):
        classes, words = rng.integers(0, len(CLASSES[domain]), count), DOMAIN_WORDS[domain]
        free = [number for number, color in enumerate(COLOR_NAMES) if color not in TAKEN[domain]]
        colored = [rng.choice(free, count)] if "{}" in words[0] else []
        moved = [np.roll(picture, rng.integers(-3, 4, 2), (0, 1)) for picture in DRAWN[domain](classes, rng, *colored)]
        pictures += [picture[:, ::-1] if rng.random() < 0.5 else picture for picture in moved]
        for row in range(count):
            told = f"{COLOR_NAMES[colored[0][row]]} " if colored and rng.random() < 0.5 else ""
            texts.append(words[rng.integers(len(words))].format(told))
        domains += [domain] * count
    return finished(np.stack(pictures), 0.08, rng), texts, domains
