"""`edge-agent gallery`: show and change the identities of the gallery, also while the agent runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from edge_agent.cli.arguments import (
    ConfigOption,
    JsonOption,
    ModelOption,
    PreprocessOption,
    StateOption,
    YesOption,
    load_settings,
)
from edge_agent.cli.gallery_access import BY, Who, called, clock_of, open_existing, operations_on
from edge_agent.cli.gallery_corrections import crops, reject, split, suggestions
from edge_agent.cli.gallery_reembed import reembed
from edge_agent.cli.output import confirm, moment, print_result, table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edge_agent.core.config import Settings
    from edge_agent.gallery import Erased, Gallery, Identity

app = typer.Typer(
    no_args_is_help=True,
    help="Show and change the people in the gallery, also while the agent runs. WHO is a number, id or name.",
)


@app.command("list")
def list_people(state: StateOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List all identities."""
    settings = load_settings(config, state=state)
    with open_existing(settings) as gallery:
        people = gallery.identities()
    empty = [f"the gallery in {settings.state_dir} is empty; name another state folder with --state"]
    print_result([asdict(one) for one in people], lambda: people_table(people) or empty, as_json=as_json)


@app.command()
def show(
    who: Who, state: StateOption = None, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Show one identity: the origin of its exemplars, and how similar they are."""
    with open_existing(load_settings(config, state=state)) as gallery:
        person = gallery.get(who)
        shown = asdict(person) | {
            "former_ids": gallery.former_ids(person.number),
            "embeddings": _embeddings(gallery, person.number),
        }
    own = {None: "as others", 0.0: "for ever"}
    texts = shown | {"ttl_s": own.get(person.ttl_s, person.ttl_s)}
    lines = [f"{key:<11} {_shown(key, value)}" for key, value in texts.items() if key != "embeddings"]
    for entry in shown["embeddings"]:
        nearest = "-" if entry["nearest"] is None else f"{entry['nearest']:.3f}"
        lines.append(f"  quality {entry['quality']:.2f}  nearest other {nearest}  {entry['origin']}")
    print_result(shown, lines, as_json=as_json)


@app.command()
def name(
    who: Who,
    new_name: Annotated[str | None, Argument(metavar="[NAME]", help="What to call the person.")] = None,
    clear: Annotated[bool, Option("--clear", help="Remove the name.")] = False,
    state: StateOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Name a person. A named identity is enrolled, and kept as long as gallery.enrolled_ttl_hours says."""
    if (new_name is None) != clear:
        raise typer.BadParameter("give either NAME or --clear")
    settings = load_settings(config, state=state)
    with open_existing(settings) as gallery:
        person = operations_on(settings, gallery).name(who, new_name)
    text = f"{person.number} ({person.id}): {'no name' if person.name is None else person.name}"
    print_result(asdict(person), text, as_json=as_json)


@app.command()
def merge(
    keep: Annotated[str, Argument(metavar="KEEP", help="Who stays: number, id or name.")],
    absorb: Annotated[str, Argument(metavar="ABSORB", help="Who is merged into KEEP.")],
    state: StateOption = None,
    config: ConfigOption = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Combine two identities that are one person. This cannot be undone."""
    settings = load_settings(config, state=state)
    with open_existing(settings) as gallery:
        kept, absorbed = gallery.get(keep), gallery.get(absorb)
        confirm(f"Merge {called(absorbed)} into {called(kept)}?", yes)
        person = operations_on(settings, gallery).merge(kept.number, absorbed.number)
    text = f"{called(absorbed)} is now part of {called(person)}, which has {person.exemplars} exemplar(s)"
    print_result(asdict(person), text, as_json=as_json)


@app.command()
def keep(
    who: Who,
    hours: Annotated[
        float | None,
        Option(min=0.001, max=8_760_000, help="Erase this many hours after the person was last seen."),
    ] = None,
    forever: Annotated[bool, Option("--forever", help="Never erase automatically.")] = False,
    as_others: Annotated[
        bool, Option("--as-others", help="As others: gallery.ttl_hours or gallery.enrolled_ttl_hours.")
    ] = False,
    state: StateOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set how long one person is kept, regardless of the settings."""
    if (hours is not None) + forever + as_others != 1:
        raise typer.BadParameter("give one of --hours, --forever and --as-others")
    ttl_s = 0.0 if forever else None if hours is None else hours * 3600
    settings = load_settings(config, state=state)
    with open_existing(settings) as gallery:
        person = operations_on(settings, gallery).keep(who, ttl_s)
    text = f"{called(person)} expires: {_shown('expires', person.expires)}"
    print_result(asdict(person), text, as_json=as_json)


@app.command()
def forget(
    who: Annotated[list[str] | None, Argument(metavar="WHO...", help="Numbers, ids or names.")] = None,
    everyone: Annotated[
        bool, Option("--all", help="All identities; the gallery then accepts any model.")
    ] = False,
    state: StateOption = None,
    config: ConfigOption = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Erase people, their waiting events, and their pictures in crop folders. This cannot be undone."""
    if bool(who) == everyone:
        raise typer.BadParameter("give WHO or --all")
    settings = load_settings(config, state=state)
    with open_existing(settings) as gallery:
        people = [gallery.get(key) for key in dict.fromkeys(who or ())]
        whom = "everyone" if everyone else ", ".join(map(called, people))
        confirm(f"Erase {whom}{_reach(settings, gallery)}?", yes)
        operations = operations_on(settings, gallery)
        erased, removed = (
            operations.forget_all() if everyone else operations.forget([person.number for person in people])
        )
    lines = [_erased_line(one) for one in erased]
    if not erased:
        lines.append("the gallery was empty")
    elif removed is None:
        lines.append("the running agent removes their waiting events and pictures within a few seconds")
    else:
        lines.append(f"{removed.events} waiting event(s) and {removed.pictures} picture(s) removed")
    print_result([asdict(one) for one in erased], lines, as_json=as_json)


def _reach(settings: Settings, gallery: Gallery) -> str:
    """Return where else people are erased; "": nowhere."""
    with gallery.file.reading() as rows:
        shares = rows.fleet.device is not None
    return f", here and on all devices of the site {settings.mqtt.site}" if shares else ""


@app.command("export")
def export_people(
    file: Annotated[Path, Argument(help="Archive to write, e.g. people.zip.")],
    state: StateOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write all identities to an archive. It contains biometric data: protect it like the gallery."""
    from edge_agent.gallery.archive import export_gallery

    with open_existing(load_settings(config, state=state)) as gallery:
        written = export_gallery(gallery, file)
    size = file.stat().st_size
    text = f"{file}: {written} identities, {size} bytes, readable only by its owner"
    result = {"file": str(file), "identities": written, "bytes": size}
    print_result(result, text, as_json=as_json, indent=None)


@app.command("import")
def import_people(
    file: Annotated[Path, Argument(help="Archive that `export` wrote.")],
    state: StateOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add the identities of an archive whose ids are not in the gallery yet."""
    from edge_agent.core.encryption import database_key
    from edge_agent.core.errors import InputError
    from edge_agent.gallery.archive import import_archive, read_archive
    from edge_agent.gallery.gallery import GALLERY_FILE, Gallery

    settings = load_settings(config, state=state)
    path, key = settings.state_dir / GALLERY_FILE, database_key(settings.storage)
    found = read_archive(file)  # all of it, before a gallery is made
    space, dimension, people = found.space, found.dimension, len(found.people)
    del found
    clock = clock_of(settings)
    if path.is_file():
        gallery = Gallery.existing(path, key=key, clock=clock)
    elif people > settings.gallery.capacity:
        raise InputError(
            f"{file} has {people} identities; set gallery.capacity, {settings.gallery.capacity}, higher"
        )
    else:
        gallery = Gallery(path, settings.gallery, space=space, dimension=dimension, key=key, clock=clock)
    with gallery:
        done = import_archive(gallery, file)
    text = f"{done.added} added, {done.skipped} already in the gallery"
    print_result(asdict(done), text, as_json=as_json, indent=None)


@app.command()
def stats(state: StateOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show size, capacity and embedding space."""
    with open_existing(load_settings(config, state=state)) as gallery:
        stats = asdict(gallery.stats())
    lines = [f"{key:<13} {_shown(key, value)}" for key, value in stats.items()]
    print_result(stats, lines, as_json=as_json)


@app.command()
def enrol(
    person_name: Annotated[str, Argument(metavar="NAME", help="What to call the person.")],
    images: Annotated[list[Path], Argument(metavar="IMAGES...", help="Pictures cut to this one person.")],
    model: ModelOption = None,
    preprocess: PreprocessOption = None,
    force: Annotated[bool, Option("--force", help="Accept pictures that the quality gate refuses.")] = False,
    state: StateOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Enrol a person from pictures; if the name exists already, add the pictures to it.

    A picture that was enrolled before is replaced, so repeating the command changes nothing.
    """
    from edge_agent.core.clock import Clock
    from edge_agent.core.loading import state_folder
    from edge_agent.embed.opening import open_embedder
    from edge_agent.engine.precision.calibration import current_calibration
    from edge_agent.gallery.gallery import open_gallery

    settings = load_settings(config, state=state, model=model, preprocess=preprocess)
    pictures, qualities = _graded(settings, images, force=force)
    folder = state_folder(settings.state_dir)
    calibration = current_calibration(settings.engine, folder)
    clock = clock_of(settings)
    with (
        open_embedder(settings.engine, settings.quality, folder, calibration) as embedder,
        open_gallery(settings, embedder.info, clock) as gallery,
    ):
        vectors = embedder.embed_images(pictures)
        now = (clock or Clock()).label()
        person = _enrol(gallery, person_name, images, pictures, vectors, qualities, now)
        _audit(gallery, "enrol", exemplars=person.exemplars)
    graded = [{"file": str(path), "quality": round(q, 3)} for path, q in zip(images, qualities, strict=True)]
    text = f"{called(person)} ({person.id}): {person.exemplars} exemplar(s)"
    print_result(asdict(person) | {"pictures": graded}, text, as_json=as_json)


def _audit(gallery: Gallery, action: str, **counts: int) -> None:
    from edge_agent.gallery import audit

    audit.record(Path(gallery.file.where).parent, action, BY, **counts)


def _graded(
    settings: Settings, paths: Sequence[Path], *, force: bool
) -> tuple[list[NDArray[np.uint8]], list[float]]:
    """Return the pictures, BGR, and their qualities, 0..1; refuse those that do not show one person."""
    from edge_agent.core.errors import InputError
    from edge_agent.core.pictures import read_picture
    from edge_agent.embed.quality import QualityGate, grade_picture

    gate, pictures, grades = QualityGate(settings.quality), [], []
    for path in paths:
        picture = read_picture(path)
        quality, reason = grade_picture(gate, picture)
        if reason and not force:
            height, width = picture.shape[:2]
            raise InputError(
                f"{path} ({width}x{height}) is not a usable picture of one person: {reason}; "
                "crop it to the person from head to feet, or accept it with --force"
            )
        pictures.append(picture)
        grades.append(quality)
    return pictures, grades


def _enrol(
    gallery: Gallery,
    label: str,
    paths: Sequence[Path],
    pictures: Sequence[NDArray[np.uint8]],
    vectors: NDArray[np.float32],
    qualities: Sequence[float],
    time: float,
) -> Identity:
    """Enrol a new person, or add exemplars to the one of that name; each picture is its own origin."""
    import numpy as np

    from edge_agent.core.files import sha256_file
    from edge_agent.core.pictures import encode_kept
    from edge_agent.gallery.crop_rows import Shot

    number = next((one.number for one in gallery.identities() if one.name == label.strip()), None)
    for path, picture, vector, quality in zip(paths, pictures, vectors, qualities, strict=True):
        row, grade, origin = vector[None], np.array([quality]), f"enrol:{sha256_file(path)[:16]}"
        seen: dict[str, Any] = {"origin": origin, "camera": "", "time": time}
        if number is None:
            number = gallery.enrol(row, grade, name=label, kind="enrolled", **seen).number
        else:
            gallery.remove_origin(number, origin)
            gallery.crops.remove_origin(number, origin)
            gallery.add_exemplars(number, row, grade, **seen)
        gallery.crops.add(number, [Shot(origin, "", time, quality, vector, encode_kept(picture))])
    assert number is not None  # there is at least one picture
    return gallery.rename(number, label)


def _embeddings(gallery: Gallery, number: int) -> list[dict[str, Any]]:
    """Return quality and origin of each exemplar, and its cosine to the nearest other one."""
    import numpy as np

    vectors, qualities, origins = gallery.exemplars(number)
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -np.inf)
    nearest = cosines.max(axis=1, initial=-np.inf).tolist() if len(origins) > 1 else [None]
    return [
        {"quality": round(quality, 3), "origin": origin, "nearest": best and round(best, 3)}
        for quality, origin, best in zip(qualities.tolist(), origins, nearest[: len(origins)], strict=True)
    ]


def _erased_line(one: Erased) -> str:
    former = f" and {len(one.former_ids)} former id(s)" if one.former_ids else ""
    label = "" if one.name is None else f" {one.name}"
    return f"erased {one.number} ({one.id}){label}: {one.exemplars} exemplar(s), {one.bytes} bytes{former}"


def people_table(people: Sequence[Identity]) -> list[str]:
    """Return the table of `gallery list`; nothing without people."""
    if not people:
        return []
    rows = []
    for one in people:
        expires = "never" if one.expires is None else moment(one.expires)
        counts = str(one.exemplars), str(one.sightings)
        rows.append((str(one.number), one.id, one.name, one.kind, *counts, moment(one.last_seen), expires))
    titles = ("no.", "id", "name", "kind", "kept", "seen", "last seen (UTC)", "expires (UTC)")
    return table(titles, rows, right=("no.", "kept", "seen"), wrap="name")


_MOMENTS = {"created", "last_seen", "expires", "oldest_seen", "newest_seen"}


def _shown(key: str, value: object) -> str:
    if value is None:
        return "never" if key in {"expires", "ttl_s", "enrolled_ttl_s"} else "-"
    if key in _MOMENTS and isinstance(value, float):
        return f"{moment(value)} UTC"
    return " ".join(value) or "-" if isinstance(value, tuple) else str(value)


for _command in (split, reject, suggestions, crops, reembed):
    app.command()(_command)
