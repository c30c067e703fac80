"""Appearance of a rendered person: body, hair and clothes, drawn from one seed.

The distributions (`appearance.json`) imitate those of a street: most outer clothes are black, navy, grey or
brown, most people wear jeans or dark trousers, and people differ by cut, details and combinations.
Lengths are fractions of the stature; colours are `(blue, green, red)` in 0..255 under neutral light.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Colour = tuple[float, float, float]

_TABLES = json.loads(Path(__file__).with_name("appearance.json").read_text(encoding="utf-8"))
# Colours by name, then the frequency of each (any unit) in a kind of clothing.
_COLOURS: dict[str, list[int]] = _TABLES["colours"]
_OUTER, _SHIRT, _LEGS = _TABLES["outer"], _TABLES["shirt"], _TABLES["legs"]


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


def _pick(rng: np.random.Generator, weights: Mapping[str, int]) -> str:
    share = np.array(list(weights.values()), float)
    return list(weights)[int(rng.choice(len(weights), p=share / share.sum()))]


def _vary(rng: np.random.Generator, colour: Sequence[int], spread: float = 0.2) -> Colour:
    """A colour with small random changes of brightness, saturation and tint."""
    base = np.array(colour)
    grey = base.mean()
    varied = grey + (base - grey) * rng.uniform(0.55, 1.2)
    varied = varied * np.exp(rng.normal(0, spread)) * (1 + rng.normal(0, 0.06, 3))
    blue, green, red = np.clip(varied, 14, 240)
    return float(blue), float(green), float(red)


def _colour(rng: np.random.Generator, weights: Mapping[str, int]) -> Colour:
    return _vary(rng, _COLOURS[_pick(rng, weights)])


def _natural_colour(rng: np.random.Generator, table: str, spread: float) -> Colour:
    """A colour of the table `hair` or `skin`, whose rows are a colour and its frequency."""
    colours, weights = zip(*_TABLES[table], strict=True)
    share = np.array(weights)
    return _vary(rng, colours[int(rng.choice(len(colours), p=share / share.sum()))], spread)


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
        skin=_natural_colour(rng, "skin", 0.08),
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
        hair_colour=_natural_colour(rng, "hair", 0.15),
        hat=hat,
        hat_colour=top.colour if hat == "hood" else _colour(rng, _OUTER),
        beard=not feminine and bool(rng.random() < 0.3),
        glasses=bool(rng.random() < 0.12),
    )


def _sleeves(rng: np.random.Generator, kind: str) -> float:
    if kind in {"tshirt", "dress"}:
        return float(rng.choice([0.0, rng.uniform(0.35, 0.6), 1.0], p=[0.15, 0.7, 0.15]))
    if kind == "shirt":
        return float(rng.choice([rng.uniform(0.4, 0.6), 0.75, 1.0], p=[0.2, 0.15, 0.65]))
    return 1.0


def _top(rng: np.random.Generator, feminine: bool) -> Top:
    tops = _TABLES["tops"]
    dress = feminine and rng.random() < 0.1
    usual_kinds = {name: row["weight"] for name, row in tops.items() if name != "dress"}
    kind = "dress" if dress else _pick(rng, usual_kinds)
    usual = tops[kind]
    palette = _SHIRT if kind in {"tshirt", "shirt", "dress"} else _OUTER
    colour, second = _colour(rng, palette), _colour(rng, _SHIRT)
    open_front = rng.random() < usual["openable"]
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
        pattern=_pick(rng, usual["patterns"]),
        period=float(rng.uniform(0.02, 0.075)),
        sleeves=_sleeves(rng, kind),
        sleeve_colour=sleeve,
        hem=float(rng.uniform(*usual["hem"])),
        loose=float(rng.uniform(*usual["loose"])),
        open=float(rng.uniform(0.18, 0.7)) if open_front else 0.0,
        inner=inner,
        logo=_pick(rng, logos) if plain_front else "none",
        logo_size=(float(rng.uniform(0.15, 0.6)), float(rng.uniform(0.06, 0.3))),
        scarf=_colour(rng, _OUTER) if kind not in {"tshirt", "dress"} and rng.random() < 0.09 else None,
        gloss=float(rng.uniform(0.2, 1.0)) if coated and rng.random() < 0.5 else 0.0,
    )


def _bottom(rng: np.random.Generator, feminine: bool, top: Top, skin: Colour) -> Bottom:
    warm = top.kind in {"tshirt", "shirt", "dress"}
    kinds = {"jeans": 42, "trousers": 32, "joggers": 8, "shorts": 12 if warm else 1}
    kinds |= {"leggings": 14, "skirt": 9} if feminine else {"leggings": 1}
    kind = "none" if top.kind == "dress" else _pick(rng, kinds)
    denim = {name: weight for name, weight in _LEGS.items() if "denim" in name} | {"black": 8, "grey": 3}
    tights = _vary(rng, _COLOURS["black"]) if rng.random() < (0.25 if warm else 0.75) else skin
    hems = {"shorts": rng.uniform(0.26, 0.38), "skirt": rng.uniform(0.1, 0.38)}
    return Bottom(
        kind=kind,
        colour=_colour(rng, denim if kind == "jeans" else _LEGS),
        second=_colour(rng, _SHIRT),
        pattern=_pick(rng, _TABLES["leg_patterns"].get(kind, {"plain": 1})),
        period=float(rng.uniform(0.02, 0.06)),
        width=float(rng.uniform(*_TABLES["leg_widths"].get(kind, (0.9, 1.0)))),
        flare=float(rng.choice([0.0, rng.uniform(0, 0.012), rng.uniform(0.012, 0.03)], p=[0.5, 0.35, 0.15])),
        hem=float(hems.get(kind, rng.choice([0.02, 0.07], p=[0.85, 0.15]))),
        stripe=_colour(rng, _SHIRT) if kind in {"joggers", "trousers"} and rng.random() < 0.12 else None,
        fade=float(rng.uniform(0, 0.55)) if kind == "jeans" else 0.0,
        legs=tights if kind in {"skirt", "none"} else skin,
        belt=_vary(rng, _COLOURS["black"]) if rng.random() < 0.3 else None,
    )


def _footwear(rng: np.random.Generator, feminine: bool, bottom: Bottom) -> Footwear:
    colour = _colour(rng, _TABLES["shoes"])
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
        colour=_colour(rng, _TABLES["bags"]),
        second=_colour(rng, _TABLES["bags"]),
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
