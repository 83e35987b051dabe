"""The small CLIP's world: pictures of 32 x 32 pixels drawn with numpy, and the ten domains that are made of them.

Everything is drawn in batches and is a pure function of the seed. Unfinished pictures are float32 [n, 32, 32, 3] from 0
to 1. A cover is [n, 32, 32], from 0 (outside) to 1 (inside). Coordinates run from -1 to 1, down and to the right.
"""

from collections.abc import Callable, Sequence

import numpy as np

SIDE = 32
PIXEL = 2 / SIDE
SHAPES = ("circle", "square", "triangle", "diamond", "ring", "cross", "star", "heart", "moon", "bar")
TEXTURES = ("plain", "striped", "banded", "slanted", "checked", "dotted", "wavy", "grainy")
COLORS = {
    "red": (0.86, 0.12, 0.12), "orange": (0.96, 0.55, 0.10), "yellow": (0.95, 0.90, 0.20), "green": (0.15, 0.65, 0.20),
    "cyan": (0.15, 0.80, 0.82), "blue": (0.15, 0.25, 0.85), "purple": (0.52, 0.15, 0.65), "pink": (0.97, 0.58, 0.75),
    "brown": (0.45, 0.27, 0.12), "white": (0.97, 0.97, 0.97),
}  # fmt: skip
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# top, upper left, upper right, middle, lower left, lower right, bottom
SEGMENTS = (
    "1110111",
    "0010010",
    "1011101",
    "1011011",
    "0111010",
    "1101011",
    "1101111",
    "1010010",
    "1111111",
    "1111011",
)

_GRID = (np.arange(SIDE, dtype=np.float32) + 0.5) * PIXEL - 1
_Y, _X = np.meshgrid(_GRID, _GRID, indexing="ij")
_PALETTE = np.array(list(COLORS.values()), dtype=np.float32)
Array = np.ndarray


# ---- parts that pictures are drawn from ----


def _wide(values: Array | float) -> Array:
    """Returns values [n] as [n, 1, 1], which broadcast over coordinates [n, 32, 32]."""
    return np.asarray(values, dtype=np.float32).reshape(-1, 1, 1)


def placed(x: Array, y: Array, size: Array | float, angle: Array | float = 0.0) -> tuple[Array, Array]:
    """Returns the coordinates (u, v) [n, 32, 32] of every pixel in the frames of n things.

    A thing at (x, y), turned by `angle`, reaches from -1 to 1 in its frame.
    """
    dx, dy, angle = _X - _wide(x), _Y - _wide(y), _wide(angle)
    size = _wide(size)
    return (dx * np.cos(angle) + dy * np.sin(angle)) / size, (dy * np.cos(angle) - dx * np.sin(angle)) / size


def distance(shape: int, u: Array, v: Array) -> Array:
    """Returns the approximate signed distance of each point to a shape's outline: above 0 outside, below 0 inside."""
    r, a, b = np.hypot(u, v), np.abs(u), np.abs(v)
    match SHAPES[shape]:
        case "circle":
            return r - 0.95
        case "square":
            return np.maximum(a, b) - 0.85
        case "triangle":
            return np.maximum(v - 0.75, (1.9 * a - v - 1) / 2.1)
        case "diamond":
            return (1.5 * a + b - 1) / 1.6
        case "ring":
            return np.abs(r - 0.75) - 0.24
        case "cross":
            return np.minimum(np.maximum(a - 0.3, b - 1), np.maximum(b - 0.3, a - 1))
        case "star":
            return r - (0.65 + 0.35 * np.cos(5 * np.arctan2(u, -v)))
        case "heart":
            return np.hypot(u, 0.25 - 1.05 * v - 0.75 * np.sqrt(a)) - 0.9
        case "moon":
            return np.maximum(r - 0.95, 0.85 - np.hypot(u - 0.55, v))
        case _:
            return np.maximum(a - 1, b - 0.35)


def cover(far: Array, size: Array | float) -> Array:
    """Returns the cover of each pixel, from signed distances in units of the thing's size."""
    return np.clip(0.5 - far * _wide(size) / PIXEL, 0, 1)


def distances(shapes: Array, u: Array, v: Array) -> Array:
    """Returns the signed distances [n, 32, 32] to shapes [n], given by number."""
    out = np.empty_like(u)
    for shape in np.unique(shapes):
        rows = np.flatnonzero(shapes == shape)
        out[rows] = distance(int(shape), u[rows], v[rows])
    return out


def shapes_cover(shapes: Array, x: Array, y: Array, size: Array, angle: Array | float = 0.0) -> Array:
    """Returns the covers of shapes [n], given by number."""
    return cover(distances(shapes, *placed(x, y, size, angle)), size)


def textures_of(textures: Array, rng: np.random.Generator) -> Array:
    """Returns the brightness [n, 32, 32] from 0 to 1 of textures [n], with random widths and offsets."""
    n = len(textures)
    f, p, q = (_wide(rng.uniform(low, high, n)) for low, high in ((11, 17), (0, 6.28), (0, 6.28)))
    grains = np.repeat(np.repeat(rng.random((n, SIDE // 2, SIDE // 2), dtype=np.float32), 2, 1), 2, 2)
    out = np.ones((n, SIDE, SIDE), dtype=np.float32)
    for texture in np.unique(textures):
        rows = np.flatnonzero(textures == texture)
        across, down = f[rows] * _X + p[rows], f[rows] * _Y + q[rows]
        match TEXTURES[texture]:
            case "striped":
                wave = np.sin(across)
            case "banded":
                wave = np.sin(down)
            case "slanted":
                wave = np.sin(0.7 * (across + down))
            case "checked":
                wave = 2 * np.sin(across * 0.8) * np.sin(down * 0.8)
            case "dotted":
                wave = 2 * (np.cos(across) * np.cos(down) - 0.35)
            case "wavy":
                wave = np.sin(down + 2 * np.sin(5 * _X + p[rows]))
            case "grainy":
                wave = 2 * grains[rows] - 1
            case _:
                continue
        out[rows] = 0.5 + 0.5 * np.tanh(3 * wave)
    return out


def colors_of(colors: Array, rng: np.random.Generator) -> Array:
    """Returns slightly varied colors [n, 3] for color numbers [n]; a number below 0 is a random grey."""
    n = len(colors)
    grey = np.repeat(rng.uniform(0.2, 0.6, (n, 1)), 3, 1)
    chosen = np.where(np.asarray(colors)[:, None] < 0, grey, _PALETTE[colors])
    return np.clip(chosen + rng.uniform(-0.08, 0.08, (n, 3)), 0, 1).astype(np.float32)


def painted(under: Array, inside: Array, color: Array, texture: Array | float = 1.0) -> Array:
    """Returns pictures with a color [n, 3] painted over `under` inside a cover; a texture darkens the color."""
    shade = 0.3 + 0.7 * np.asarray(texture, dtype=np.float32)
    over = color[:, None, None, :] * (shade[..., None] if shade.ndim else shade)
    return under + inside[..., None] * (over - under)


def filled(color: Array, texture: Array | float = 1.0) -> Array:
    """Returns pictures filled with a color [n, 3] and a texture."""
    n = len(color)
    return painted(np.zeros((n, SIDE, SIDE, 3), dtype=np.float32), np.ones((n, SIDE, SIDE)), color, texture)


def digits_cover(digits: Array, x: Array, y: Array, size: Array, slant: Array | float = 0.0) -> Array:
    """Returns the covers of seven-segment digits [n]."""
    u, v = placed(x, y, size)
    u = u + _wide(slant) * v
    lit = np.array([[mark == "1" for mark in segments] for segments in SEGMENTS])[digits]
    places = ((0, -0.9, 1), (-0.5, -0.45, 0), (0.5, -0.45, 0), (0, 0, 1), (-0.5, 0.45, 0), (0.5, 0.45, 0), (0, 0.9, 1))
    out = np.zeros_like(u)
    for segment, (left, top, lies) in enumerate(places):
        a, b = np.abs(u - left), np.abs(v - top)
        far = np.maximum(a - (0.6 if lies else 0.14), b - (0.14 if lies else 0.55))
        out = np.maximum(out, cover(far, size) * _wide(lit[:, segment]))
    return out


def several_cover(shapes: Array, counts: Array, size: Array, spread: float, rng: np.random.Generator) -> Array:
    """Returns the covers of one to six equal shapes on random places of a loose grid."""
    n = len(shapes)
    places = np.array([(x, y) for y in (-1, 0, 1) for x in (-0.6, 0.6)], dtype=np.float32) * spread
    order = rng.permuted(np.tile(np.arange(len(places)), (n, 1)), axis=1)
    out = np.zeros((n, SIDE, SIDE), dtype=np.float32)
    for number in range(int(counts.max(initial=0))):
        x, y = (places[order[:, number]] + rng.uniform(-0.05, 0.05, (n, 2))).T
        out = np.maximum(out, shapes_cover(shapes, x, y, size) * _wide(number < counts))
    return out


def finished(pictures: Array, noise: float, rng: np.random.Generator) -> Array:
    """Returns pictures as uint8, with noise and uneven light added."""
    n = len(pictures)
    light = rng.uniform(0.85, 1.1, (n, 1, 1, 1)) + 0.1 * rng.uniform(-1, 1, (n, 1, 1, 1)) * _Y[None, :, :, None]
    noisy = pictures * light + rng.normal(0, noise, pictures.shape)
    return (np.clip(noisy, 0, 1) * 255).astype(np.uint8)


# ---- the ten domains: class names, and how pictures of classes [n] are drawn ----

_NAMES = list(COLORS)
_ENGINES, _WINGS = ("one", "two", "four"), ("straight", "swept", "delta")
_LAND = (
    "green grainy forest", "blue wavy sea", "yellow plain desert", "brown striped field", "white dotted snow",
    "red checked town", "orange banded canyon", "purple slanted heath",
)  # fmt: skip
_FLOWERS, _PETALS = ("red", "yellow", "purple", "pink", "white"), ("three", "six")
_FOODS = ("red circle", "green square", "orange triangle")
_PETS, _EARS = ("brown", "white", "orange"), ("pointed", "round", "floppy")
_CARS, _BODIES = ("red", "yellow", "green", "blue", "white"), ("sedan", "van")
_PAIRS = (("circle", "square"), ("square", "circle"), ("star", "cross"), ("cross", "star"), ("heart", "ring"))
_RELATIONS = ("above", "left of")

CLASSES: dict[str, tuple[str, ...]] = {
    "planes": tuple(f"{engines} engine {wings} wing" for engines in _ENGINES for wings in _WINGS),
    "outlines": SHAPES,
    "textures": TEXTURES,
    "land": _LAND,
    "flowers": tuple(f"{color} {petals} petal" for color in _FLOWERS for petals in _PETALS),
    "plates": tuple(f"{count} {food}{'s' * (count != 'one')}" for count in NUMBERS[1:5] for food in _FOODS),
    "digits": NUMBERS,
    "pets": tuple(f"{color} {ears} ear" for color in _PETS for ears in _EARS),
    "cars": tuple(f"{color} {body} car" for color in _CARS for body in _BODIES),
    "scenes": tuple(f"{first} {relation} a {second}" for first, second in _PAIRS for relation in _RELATIONS),
}


def _numbers(names: Sequence[str], of: Sequence[str], chosen: Array) -> Array:
    return np.array([of.index(name) for name in names])[chosen]


def _around(center: float, n: int, rng: np.random.Generator, by: float = 0.08) -> Array:
    return rng.uniform(center - by, center + by, n)


def _planes(classes: Array, rng: np.random.Generator) -> Array:
    n, engines, wings = len(classes), np.array([1, 2, 4])[classes // 3], classes % 3
    size = _around(0.8, n, rng)
    u, v = placed(_around(0, n, rng), _around(0, n, rng), size, _around(0, n, rng, 0.5))
    a = np.abs(u)
    sweep = _wide(np.array([0.0, 0.55, 0.0])[wings])
    depth = np.where(_wide(wings) == 2, 0.7 * (1 - a), 0.17)
    wing = np.maximum(np.abs(v - sweep * a + 0.1 - np.where(_wide(wings) == 2, 0.15, 0)) - depth, a - 0.95)
    body = np.maximum(a - 0.13, np.abs(v) - 0.95)
    tail = np.maximum(np.abs(v - 0.8) - 0.1, a - 0.35)
    sky = filled(np.array([0.55, 0.7, 0.85], dtype=np.float32) + _around(0, n, rng)[:, None])
    grey = np.repeat(_around(0.85, n, rng)[:, None], 3, 1)
    out = painted(sky, cover(np.minimum(np.minimum(wing, body), tail), size), grey)
    at = np.where(a > 0.5, np.abs(a - 0.68), np.abs(a - 0.36))
    far = np.where(_wide(engines) == 1, a, np.where(_wide(engines) == 2, np.abs(a - 0.5), at))
    along = np.where(_wide(engines) == 1, v + 0.75, v - sweep * a + 0.2)
    return painted(out, cover(np.hypot(far, along) - 0.12, size), np.zeros((n, 3)))


def _outlines(classes: Array, rng: np.random.Generator) -> Array:
    n = len(classes)
    size = _around(0.7, n, rng)
    u, v = placed(_around(0, n, rng, 0.2), _around(0, n, rng, 0.2), size)
    far = distances(classes, u, v)
    under = filled(colors_of(rng.integers(0, 9, n), rng), 0.5 + 0.5 * textures_of(rng.integers(0, 8, n), rng))
    ink = np.repeat(rng.choice([0.02, 0.98], (n, 1)), 3, 1)
    return painted(under, cover(np.abs(far) - 0.13, size), ink)


def _textures(classes: Array, rng: np.random.Generator) -> Array:
    return filled(np.repeat(_around(0.75, len(classes), rng, 0.2)[:, None], 3, 1), textures_of(classes, rng))


def _land(classes: Array, rng: np.random.Generator, colors: Array | None = None) -> Array:
    words = [name.split() for name in _LAND]
    colors = _numbers([word[0] for word in words], _NAMES, classes) if colors is None else colors
    textures = _numbers([word[1] for word in words], TEXTURES, classes)
    pale = 0.75 * colors_of(colors, rng) + 0.1
    return filled(pale, textures_of(textures, rng))


def _flowers(classes: Array, rng: np.random.Generator, colors: Array | None = None) -> Array:
    n, petals = len(classes), np.array([3, 6])[classes % 2]
    colors = _numbers(_FLOWERS, _NAMES, classes // 2) if colors is None else colors
    size, x, y = _around(0.75, n, rng), _around(0, n, rng, 0.15), _around(0, n, rng, 0.15)
    u, v = placed(x, y, size, rng.uniform(0, 6.28, n))
    r = np.hypot(u, v)
    leaves = filled(0.7 * colors_of(np.full(n, _NAMES.index("green")), rng), textures_of(np.full(n, 7), rng))
    blossom = cover(r - (0.62 + 0.36 * np.cos(_wide(petals) * np.arctan2(v, u))), size)
    out = painted(leaves, blossom, colors_of(colors, rng))
    return painted(out, cover(r - 0.22, size), colors_of(np.full(n, _NAMES.index("orange")), rng))


def _plates(classes: Array, rng: np.random.Generator, colors: Array | None = None) -> Array:
    n, foods = len(classes), [food.split() for food in _FOODS]
    colors = _numbers([food[0] for food in foods], _NAMES, classes % 3) if colors is None else colors
    table = filled(colors_of(np.full(n, _NAMES.index("brown")), rng), 0.6 + 0.4 * textures_of(np.full(n, 2), rng))
    plate = np.full(n, 0.95)
    out = painted(table, shapes_cover(np.zeros(n, int), 0 * plate, 0 * plate, plate), np.full((n, 3), 0.93))
    shapes = _numbers([food[1] for food in foods], SHAPES, classes % 3)
    inside = several_cover(shapes, classes // 3 + 1, _around(0.2, n, rng, 0.03), 0.5, rng)
    return painted(out, inside, colors_of(colors, rng))


def _digits(classes: Array, rng: np.random.Generator) -> Array:
    n = len(classes)
    x, y, size = _around(0, n, rng, 0.2), _around(0, n, rng, 0.15), _around(0.65, n, rng, 0.1)
    inside = digits_cover(classes, x, y, size, rng.uniform(0.1, 0.45, n))
    return painted(filled(np.full((n, 3), 0.06)), inside, np.repeat(_around(0.9, n, rng)[:, None], 3, 1))


def _pets(classes: Array, rng: np.random.Generator, colors: Array | None = None) -> Array:
    n, ears = len(classes), _wide(classes % 3)
    size = _around(0.55, n, rng)
    u, v = placed(_around(0, n, rng), _around(0.15, n, rng), size)
    a = np.abs(u)
    pointed = np.maximum(np.abs(a - 0.6) * 1.6 + (-v - 0.6) * 0.55 - 0.4, v + 0.3)
    hanging = np.hypot((a - 1.0) * 2.2, v - 0.1) - 0.75
    ear = np.where(ears == 0, pointed, np.where(ears == 1, np.hypot(a - 0.8, v + 0.8) - 0.42, hanging))
    fur = colors_of(_numbers(_PETS, _NAMES, classes // 3) if colors is None else colors, rng)
    room = filled(colors_of(np.full(n, -1), rng) * np.array([0.9, 1.1, 1.2], dtype=np.float32))
    out = painted(painted(room, cover(ear, size), 0.8 * fur), cover(np.hypot(u, v) - 0.95, size), fur)
    face = np.minimum(np.hypot(a - 0.38, v + 0.15) - 0.16, np.hypot(u, (v - 0.35) * 1.3) - 0.18)
    return painted(out, cover(face, size), np.full((n, 3), 0.05))


def _cars(classes: Array, rng: np.random.Generator, colors: Array | None = None) -> Array:
    n, van = len(classes), _wide(classes % 2) == 1
    colors = _numbers(_CARS, _NAMES, classes // 2) if colors is None else colors
    size = _around(0.8, n, rng)
    u, v = placed(_around(0, n, rng), _around(0.15, n, rng, 0.15), size)
    road = painted(filled(np.full((n, 3), 0.75) + _around(0, n, rng)[:, None]), np.broadcast_to(_Y > 0.35, u.shape),
                   np.full((n, 3), 0.3))  # fmt: skip
    low = np.maximum(np.abs(u) - 1, np.abs(v - 0.1) - 0.25)
    roof = np.where(van, np.maximum(np.abs(u + 0.15) - 0.85, np.abs(v + 0.45) - 0.4),
                    np.maximum(np.abs(u) - 0.55 - 0.5 * (v + 0.15), np.abs(v + 0.35) - 0.28))  # fmt: skip
    out = painted(road, cover(np.minimum(low, roof), size), colors_of(colors, rng))
    pane = np.maximum(np.abs(np.abs(u) - 0.26) - 0.18, np.abs(v + 0.35) - 0.15)
    out = painted(out, cover(pane, size), np.full((n, 3), [0.6, 0.8, 0.9]))
    return painted(out, cover(np.hypot(np.abs(u) - 0.55, v - 0.4) - 0.24, size), np.full((n, 3), 0.05))


def _scenes(classes: Array, rng: np.random.Generator) -> Array:
    n, beside = len(classes), classes % 2
    ground = filled(np.full((n, 3), [0.65, 0.8, 0.92]) + _around(0, n, rng)[:, None])
    out = painted(ground, np.broadcast_to(_Y > 0.1, (n, SIDE, SIDE)), np.full((n, 3), [0.5, 0.62, 0.38]))
    along, shift = _around(0.48, n, rng), _around(0, n, rng, 0.25)
    for place, sign in ((0, -1), (1, 1)):
        shapes = _numbers([pair[place] for pair in _PAIRS], SHAPES, classes // 2)
        x, y = np.where(beside, sign * along, shift), np.where(beside, shift, sign * along)
        out = painted(
            out, shapes_cover(shapes, x, y, _around(0.38, n, rng, 0.06)), colors_of(rng.integers(0, 9, n), rng)
        )
    return out


# five of them also accept colors [n], which replace the colors of the classes
DRAWN: dict[str, Callable[..., Array]] = {
    "planes": _planes, "outlines": _outlines, "textures": _textures, "land": _land, "flowers": _flowers,
    "plates": _plates, "digits": _digits, "pets": _pets, "cars": _cars, "scenes": _scenes,
}  # fmt: skip


def shapes_rows(domain: str, split: str, count_per_class: int, seed: int) -> tuple[Array, Array, tuple[str, ...]]:
    """Returns pictures uint8 [n, 32, 32, 3] of a domain, their labels int64 [n] and the names of its classes.

    A pure function of its arguments. Every class has `count_per_class` pictures; classes follow each other in turn.

    Args:
        domain: a key of CLASSES.
        split: "train" or "test".
        count_per_class: pictures of each class.
        seed: of the random numbers.

    Raises:
        KeyError: there is no such domain.
        ValueError: there is no such split.
    """
    names = CLASSES[domain]
    stream = np.random.default_rng([seed, list(CLASSES).index(domain), ("train", "test").index(split)])
    labels = np.tile(np.arange(len(names)), count_per_class)
    return finished(DRAWN[domain](labels, stream), 0.04, stream), labels, names
