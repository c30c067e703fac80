"""Appearance of a rendered person: body, hair and clothes, drawn from one seed.

The distributions imitate those of a street: most outer clothes are black, navy, grey or brown, most people
wear jeans or dark trousers, and people differ by cut, details and combinations.
Lengths are fractions of the stature; colours are `(blue, green, red)` in 0..255 under neutral light.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Colour = tuple[float, float, float]

# fmt: off
# Compact tables: colours by name, then the frequency of each (any unit).
_COLOURS: dict[str, Colour] = {
    "black": (30, 28, 27), "charcoal": (54, 51, 49), "dark grey": (78, 75, 73), "grey": (122, 119, 116),
    "light grey": (178, 175, 172), "white": (226, 225, 223), "cream": (192, 212, 224),
    "beige": (142, 172, 192), "tan": (88, 130, 168), "brown": (48, 68, 98), "dark brown": (34, 42, 58),
    "olive": (52, 78, 84), "green": (62, 98, 52), "navy": (62, 40, 31), "dark blue": (98, 62, 42),
    "blue": (158, 98, 52), "light blue": (208, 172, 138), "indigo denim": (84, 64, 54),
    "denim": (134, 110, 92), "light denim": (180, 164, 150), "maroon": (46, 30, 88), "red": (48, 40, 168),
    "orange": (42, 104, 208), "yellow": (60, 176, 214), "pink": (172, 148, 214), "purple": (112, 58, 98),
    "turquoise": (160, 142, 58), "khaki": (98, 128, 142), "high-visibility": (58, 232, 208)
}
_OUTER = {
    "black": 26, "charcoal": 9, "dark grey": 7, "grey": 5, "light grey": 2, "white": 3, "cream": 2,
    "beige": 4, "tan": 3, "brown": 4, "dark brown": 4, "olive": 5, "green": 3, "navy": 11, "dark blue": 5,
    "blue": 4, "light blue": 1, "maroon": 4, "red": 4, "orange": 1, "yellow": 1, "pink": 2, "purple": 2,
    "turquoise": 1, "high-visibility": 1, "indigo denim": 2
}
_SHIRT = {
    "black": 15, "charcoal": 5, "dark grey": 6, "grey": 8, "light grey": 8, "white": 17, "cream": 4,
    "beige": 4, "brown": 2, "olive": 3, "green": 4, "navy": 8, "dark blue": 6, "blue": 6, "light blue": 6,
    "maroon": 4, "red": 6, "orange": 2, "yellow": 3, "pink": 5, "purple": 3, "turquoise": 3
}
_LEGS = {
    "black": 28, "charcoal": 7, "dark grey": 5, "grey": 4, "navy": 8, "indigo denim": 16, "denim": 14,
    "light denim": 6, "beige": 4, "khaki": 5, "brown": 3, "olive": 3, "white": 2, "light grey": 2,
    "maroon": 1, "red": 1, "pink": 1
}
_SHOES = {
    "black": 42, "dark brown": 12, "brown": 8, "white": 16, "grey": 8, "navy": 5, "tan": 4, "red": 2,
    "light grey": 3
}
_BAGS = {
    "black": 40, "dark brown": 8, "brown": 8, "navy": 8, "grey": 8, "tan": 6, "red": 5, "beige": 4,
    "blue": 4, "olive": 4, "white": 4, "pink": 2, "green": 2
}
_HAIR: dict[Colour, float] = {
    (20, 20, 22): 30, (26, 34, 46): 26, (38, 54, 78): 18, (72, 104, 138): 8, (120, 168, 198): 8,
    (140, 140, 142): 7, (198, 198, 200): 3, (36, 62, 124): 3
}
_SKIN: dict[Colour, float] = {
    (168, 188, 224): 30, (142, 168, 210): 28, (112, 142, 190): 18, (78, 108, 158): 12, (54, 76, 116): 8,
    (38, 50, 78): 6
}
# fmt: on


@dataclass(frozen=True, slots=True)
class Body:
    """Shape of the body. Factors are 1 for an average adult."""

    stature: float  # metres
    shoulders: float  # factor of the shoulder width
    hips: float  # factor of the hip width
    girth: float  # factor of trunk and limb thickness
    belly: float  # size of the belly, 0..1
    head: float  # factor of the head size (larger for small people)
    stoop: float  # forward lean of the trunk, radians
    stride: float  # factor of the step length
    skin: Colour


@dataclass(frozen=True, slots=True)
class Head:
    """Hair, headwear, face."""

    hair: str  # `bald`, `cropped`, `short`, `bob`, `long`, `ponytail`, `bun` or `curly`
    hair_colour: Colour
    hat: str  # `none`, `cap`, `beanie`, `brim`, `hood` or `scarf`
    hat_colour: Colour
    beard: bool  # whether a beard darkens the lower face
    glasses: bool  # whether the person wears dark glasses


@dataclass(frozen=True, slots=True)
class Top:
    """Clothes of the trunk and arms."""

    # `tshirt`, `shirt`, `sweater`, `hoodie`, `jacket`, `puffer`, `blazer`, `coat`, `gilet`, `dress`
    kind: str
    colour: Colour
    second: Colour  # colour of pattern, panels or sleeves
    third: Colour  # colour of the print, zip or trim
    # `plain`, `bands`, `stripes`, `check`, `blotch`, `yoke`, `half`, `chest`, `sides` or `pinstripe`
    pattern: str
    period: float  # length of one repeat of the pattern
    sleeves: float  # 0 none, about .5 short, 1 long
    sleeve_colour: Colour  # colour of the sleeves (differs for raglans and gilets)
    hem: float  # height of the hem above the ground
    loose: float  # thickness added around the trunk
    open: float  # half angle in radians of the opening of an open front, 0 for closed
    inner: Colour  # colour of the layer below
    logo: str  # `none`, `chest`, `left`, `back` or `both`
    logo_size: tuple[float, float]  # `(half angle, share of the trunk's length)`
    scarf: Colour | None
    gloss: float  # gloss of the cloth, 0..1, above 0 for leather and coated jackets


@dataclass(frozen=True, slots=True)
class Bottom:
    """Clothes of the legs."""

    kind: str  # `jeans`, `trousers`, `leggings`, `joggers`, `shorts`, `skirt` or `none` (below a dress)
    colour: Colour
    second: Colour
    pattern: str  # `plain`, `check`, `blotch` or `stripes`
    period: float  # length of one repeat of the pattern
    width: float  # factor of the leg's thickness
    flare: float  # thickness added at the ankle (or at a skirt's hem)
    hem: float  # height of the hem above the ground
    stripe: Colour | None  # colour of a stripe down the outer side, or None
    fade: float  # how much lighter worn denim is on the thighs, 0..1
    legs: Colour  # colour of the legs below a short hem: skin or tights
    belt: Colour | None


@dataclass(frozen=True, slots=True)
class Footwear:
    """Shoes: `colour` above, `sole` below, `shaft` is the height of a boot above the ground."""

    colour: Colour
    sole: Colour
    shaft: float


@dataclass(frozen=True, slots=True)
class Bag:
    """The bag: `none`, `backpack`, `crossbody`, `shoulder`, `handbag`, `carrier` or `suitcase`."""

    kind: str
    colour: Colour
    second: Colour  # colour of its pocket or print
    size: float  # factor of the size
    side: int  # 1 for the person's left, -1 for the right


@dataclass(frozen=True, slots=True)
class Identity:
    """Full description of one person: equal identities look the same in the same pose and light."""

    seed: int
    body: Body
    head: Head
    top: Top
    bottom: Bottom
    shoes: Footwear
    bag: Bag


def _pick(rng: np.random.Generator, weights: dict[str, float] | dict[str, int]) -> str:
    names = list(weights)
    share = np.array([weights[name] for name in names], float)
    return names[int(rng.choice(len(names), p=share / share.sum()))]


def _pick_colour(rng: np.random.Generator, weights: dict[Colour, float], spread: float) -> Colour:
    colours = list(weights)
    share = np.array([weights[colour] for colour in colours])
    return _vary(rng, colours[int(rng.choice(len(colours), p=share / share.sum()))], spread)


def _vary(rng: np.random.Generator, colour: Colour, spread: float = 0.2) -> Colour:
    """A colour with small random changes of brightness, saturation and tint."""
    base = np.array(colour)
    grey = base.mean()
    varied = grey + (base - grey) * rng.uniform(0.55, 1.2)
    varied = varied * np.exp(rng.normal(0, spread)) * (1 + rng.normal(0, 0.06, 3))
    blue, green, red = np.clip(varied, 14, 240)
    return float(blue), float(green), float(red)


def _colour(rng: np.random.Generator, weights: dict[str, int]) -> Colour:
    return _vary(rng, _COLOURS[_pick(rng, weights)])


def _body(rng: np.random.Generator, feminine: bool) -> Body:
    stature = float(np.clip(rng.normal(1.65 if feminine else 1.77, 0.075), 1.45, 2.0))
    girth = float(np.clip(rng.normal(0.97 if feminine else 1.03, 0.12), 0.78, 1.4))
    return Body(
        stature=stature,
        shoulders=float(rng.normal(0.93 if feminine else 1.05, 0.05)),
        hips=float(rng.normal(1.07 if feminine else 0.97, 0.06)),
        girth=girth,
        belly=float(np.clip(rng.normal(0.2 + (girth - 1), 0.25), 0, 1)),
        head=float(1 + (1.72 - stature) * 0.35 + rng.normal(0, 0.03)),
        stoop=float(abs(rng.normal(0.05, 0.05))),
        stride=float(np.clip(rng.normal(1, 0.12), 0.65, 1.3)),
        skin=_pick_colour(rng, _SKIN, 0.08),
    )


def _head(rng: np.random.Generator, feminine: bool, top: Top) -> Head:
    styles = (
        {"short": 8, "bob": 20, "long": 34, "ponytail": 20, "bun": 12, "curly": 6}
        if feminine
        else {"bald": 12, "cropped": 30, "short": 44, "bob": 5, "curly": 6, "long": 2, "ponytail": 1}
    )
    hats = {"none": 78, "cap": 7, "beanie": 7, "brim": 2, "hood": 4, "scarf": 3 if feminine else 0}
    if top.kind not in {"hoodie", "coat", "puffer"}:
        hats["hood"] = 0
    hat = _pick(rng, hats)
    return Head(
        hair=_pick(rng, styles),
        hair_colour=_pick_colour(rng, _HAIR, 0.15),
        hat=hat,
        hat_colour=top.colour if hat == "hood" else _colour(rng, _OUTER),
        beard=not feminine and bool(rng.random() < 0.3),
        glasses=bool(rng.random() < 0.12),
    )


class _TopKind(NamedTuple):
    """Frequency of a kind of top, ranges of hem and looseness, share of open fronts, and its patterns."""

    weight: int
    hem: tuple[float, float]
    loose: tuple[float, float]
    openable: float
    patterns: dict[str, int]


# fmt: off
_TOPS = {
    "tshirt": _TopKind(15, (0.46, 0.50), (0.003, 0.012), 0.0, {
        "plain": 58, "bands": 14, "chest": 6, "half": 4, "blotch": 4, "yoke": 6, "sides": 4}),
    "shirt": _TopKind(9, (0.45, 0.50), (0.003, 0.012), 0.12, {
        "plain": 45, "check": 28, "stripes": 16, "blotch": 6}),
    "sweater": _TopKind(12, (0.45, 0.49), (0.006, 0.016), 0.0, {
        "plain": 62, "bands": 16, "chest": 8, "half": 5, "check": 4}),
    "hoodie": _TopKind(13, (0.44, 0.49), (0.010, 0.020), 0.25, {
        "plain": 66, "yoke": 8, "half": 6, "chest": 7, "blotch": 4, "sides": 4}),
    "jacket": _TopKind(23, (0.42, 0.50), (0.008, 0.020), 0.4, {
        "plain": 66, "yoke": 10, "half": 6, "sides": 8, "chest": 5, "blotch": 2}),
    "puffer": _TopKind(10, (0.40, 0.50), (0.016, 0.032), 0.35, {
        "plain": 76, "yoke": 14, "half": 6, "chest": 4}),
    "blazer": _TopKind(5, (0.42, 0.46), (0.007, 0.014), 0.65, {"plain": 80, "pinstripe": 12, "check": 8}),
    "coat": _TopKind(10, (0.22, 0.40), (0.009, 0.022), 0.35, {
        "plain": 84, "check": 10, "half": 2, "blotch": 2}),
    "gilet": _TopKind(3, (0.45, 0.49), (0.010, 0.020), 0.6, {"plain": 90, "yoke": 10}),
    "dress": _TopKind(0, (0.20, 0.36), (0.002, 0.010), 0.0, {
        "plain": 46, "blotch": 24, "stripes": 8, "bands": 12, "check": 8})
}
# fmt: on


def _sleeves(rng: np.random.Generator, kind: str) -> float:
    if kind in {"tshirt", "dress"}:
        return float(rng.choice([0.0, rng.uniform(0.35, 0.6), 1.0], p=[0.15, 0.7, 0.15]))
    if kind == "shirt":
        return float(rng.choice([rng.uniform(0.4, 0.6), 0.75, 1.0], p=[0.2, 0.15, 0.65]))
    return 1.0


def _top(rng: np.random.Generator, feminine: bool) -> Top:
    dress = feminine and rng.random() < 0.1
    kind = "dress" if dress else _pick(rng, {name: top.weight for name, top in _TOPS.items() if top.weight})
    usual = _TOPS[kind]
    palette = _SHIRT if kind in {"tshirt", "shirt", "dress"} else _OUTER
    colour, second = _colour(rng, palette), _colour(rng, _SHIRT)
    open_front = rng.random() < usual.openable
    inner = _colour(rng, _SHIRT)
    plain_front = kind in {"tshirt", "sweater", "hoodie", "jacket"}
    raglan = plain_front and rng.random() < 0.1
    sleeve = inner if kind == "gilet" else second if raglan else colour
    logos = {"none": 50, "chest": 18, "left": 12, "back": 10, "both": 10}
    coated = kind in {"jacket", "puffer", "gilet"}
    return Top(
        kind=kind,
        colour=colour,
        second=second,
        third=_colour(rng, _SHIRT),
        pattern=_pick(rng, usual.patterns),
        period=float(rng.uniform(0.02, 0.075)),
        sleeves=_sleeves(rng, kind),
        sleeve_colour=sleeve,
        hem=float(rng.uniform(*usual.hem)),
        loose=float(rng.uniform(*usual.loose)),
        open=float(rng.uniform(0.18, 0.7)) if open_front else 0.0,
        inner=inner,
        logo=_pick(rng, logos) if plain_front else "none",
        logo_size=(float(rng.uniform(0.15, 0.6)), float(rng.uniform(0.06, 0.3))),
        scarf=_colour(rng, _OUTER) if kind not in {"tshirt", "dress"} and rng.random() < 0.09 else None,
        gloss=float(rng.uniform(0.2, 1.0)) if coated and rng.random() < 0.5 else 0.0,
    )


_LEG_PATTERNS = {
    "trousers": {"plain": 92, "check": 4, "blotch": 2, "stripes": 2},
    "leggings": {"plain": 84, "blotch": 16},
    "shorts": {"plain": 80, "check": 10, "blotch": 10},
    "skirt": {"plain": 60, "check": 18, "blotch": 14, "stripes": 8},
}


def _bottom(rng: np.random.Generator, feminine: bool, top: Top, skin: Colour) -> Bottom:
    warm = top.kind in {"tshirt", "shirt", "dress"}
    kinds = {"jeans": 42, "trousers": 32, "joggers": 8, "shorts": 12 if warm else 1}
    kinds |= {"leggings": 14, "skirt": 9} if feminine else {"leggings": 1}
    kind = "none" if top.kind == "dress" else _pick(rng, kinds)
    denim = {name: weight for name, weight in _LEGS.items() if "denim" in name} | {"black": 8, "grey": 3}
    tights = _vary(rng, _COLOURS["black"]) if rng.random() < (0.25 if warm else 0.75) else skin
    hems = {"shorts": rng.uniform(0.26, 0.38), "skirt": rng.uniform(0.1, 0.38)}
    widths = {"jeans": (0.95, 1.25), "trousers": (1.0, 1.4), "joggers": (1.05, 1.35)}
    widths |= {"shorts": (1.1, 1.45), "leggings": (0.88, 1.0)}
    return Bottom(
        kind=kind,
        colour=_colour(rng, denim if kind == "jeans" else _LEGS),
        second=_colour(rng, _SHIRT),
        pattern=_pick(rng, _LEG_PATTERNS.get(kind, {"plain": 1})),
        period=float(rng.uniform(0.02, 0.06)),
        width=float(rng.uniform(*widths.get(kind, (0.9, 1.0)))),
        flare=float(rng.choice([0.0, rng.uniform(0, 0.012), rng.uniform(0.012, 0.03)], p=[0.5, 0.35, 0.15])),
        hem=float(hems.get(kind, rng.choice([0.02, 0.07], p=[0.85, 0.15]))),
        stripe=_colour(rng, _SHIRT) if kind in {"joggers", "trousers"} and rng.random() < 0.12 else None,
        fade=float(rng.uniform(0, 0.55)) if kind == "jeans" else 0.0,
        legs=tights if kind in {"skirt", "none"} else skin,
        belt=_vary(rng, _COLOURS["black"]) if rng.random() < 0.3 else None,
    )


def _footwear(rng: np.random.Generator, feminine: bool, bottom: Bottom) -> Footwear:
    colour = _colour(rng, _SHOES)
    white_sole = rng.random() < 0.3
    slim = bottom.kind in {"leggings", "skirt", "none"} or (bottom.kind == "jeans" and bottom.width < 1.05)
    booted = slim and rng.random() < (0.35 if feminine else 0.05)
    return Footwear(
        colour=colour,
        sole=_vary(rng, _COLOURS["white"], 0.1) if white_sole else _vary(rng, _COLOURS["black"]),
        shaft=float(rng.uniform(0.08, 0.27)) if booted else 0.045,
    )


def _bag(rng: np.random.Generator, feminine: bool) -> Bag:
    names = ("none", "backpack", "crossbody", "shoulder", "handbag", "carrier", "suitcase")
    weights = (42, 12, 12, 16, 10, 6, 3) if feminine else (58, 16, 8, 5, 2, 6, 3)
    return Bag(
        kind=_pick(rng, dict(zip(names, weights, strict=True))),
        colour=_colour(rng, _BAGS),
        second=_colour(rng, _BAGS),
        size=float(rng.uniform(0.75, 1.25)),
        side=int(rng.choice([-1, 1])),
    )


def identity(seed: int) -> Identity:
    """Return the person of this seed; the same on every machine."""
    rng = np.random.default_rng([seed, 0x1D])
    feminine = bool(rng.random() < 0.47)
    body = _body(rng, feminine)
    top = _top(rng, feminine)
    bottom = _bottom(rng, feminine, top, body.skin)
    return Identity(
        seed=seed,
        body=body,
        head=_head(rng, feminine, top),
        top=top,
        bottom=bottom,
        shoes=_footwear(rng, feminine, bottom),
        bag=_bag(rng, feminine),
    )
