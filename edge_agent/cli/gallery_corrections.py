"""`edge-agent gallery split|reject|suggestions|crops`: what an operator corrects, and the kept pictures."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from edge_agent.cli.arguments import ConfigOption, JsonOption, StateOption, YesOption, load_settings
from edge_agent.cli.gallery_access import Who, called, open_existing, operations_on
from edge_agent.cli.output import confirm, moment, print_result, table

if TYPE_CHECKING:
    from edge_agent.gallery.crop_rows import Crop
    from edge_agent.gallery.suggestions import Suggestion


def split(
    who: Who,
    origin: Annotated[str, Argument(metavar="ORIGIN", help="Track or file, as `gallery show` lists it.")],
    new_name: Annotated[str | None, Option("--name", help="What to call the new person.")] = None,
    state: StateOption = None,
    config: ConfigOption = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a new person of what one track contributed to another; the two are kept apart from then on."""
    settings = load_settings(config, state=state)
    with open_existing(settings) as gallery:
        person = gallery.get(who)
        confirm(f"Take {origin} out of {called(person)}?", yes)
        new = operations_on(settings, gallery).split(person.number, origin, new_name)
    text = f"{called(new)} ({new.id}) is new, with {new.exemplars} exemplar(s) of {called(person)}"
    print_result(asdict(new), text, as_json=as_json)


def reject(
    one: Who,
    other: Annotated[str, Argument(metavar="OTHER", help="The other person: number, id or name.")],
    state: StateOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Note that two identities are two people: they are never joined by a guess, nor suggested again."""
    settings = load_settings(config, state=state)
    with open_existing(settings) as gallery:
        pair = operations_on(settings, gallery).reject(one, other)
    text = f"{called(pair[0])} and {called(pair[1])} are two people; `gallery merge` would still combine them"
    print_result([asdict(person) for person in pair], text, as_json=as_json)


def suggestions(
    most: Annotated[int, Option("--most", min=1, max=200, help="Greatest number of pairs.")] = 20,
    state: StateOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List pairs of identities that are probably one person, best first: merge or reject them."""
    settings = load_settings(config, state=state)
    with open_existing(settings) as gallery:
        pairs = operations_on(settings, gallery).suggestions(most)
    found = [{"one": asdict(one.one), "other": asdict(one.other), "score": one.score} for one in pairs]
    print_result(found, lambda: _pairs_table(pairs), as_json=as_json)


def _pairs_table(pairs: list[Suggestion]) -> list[str]:
    if not pairs:
        return ["no pair of identities is probably one person"]
    rows = [
        (f"{pair.score:.3f}", *(text for one in (pair.one, pair.other) for text in (str(one.number), one.name,
         moment(one.last_seen))))
        for pair in pairs
    ]  # fmt: skip
    titles = ("score", "no.", "name", "last seen (UTC)", "other", "its name", "last seen")
    return table(titles, rows, right=("score", "no.", "other"), wrap="name")


def crops(
    who: Who,
    folder: Annotated[Path, Argument(metavar="FOLDER", help="Folder for the pictures; made if missing.")],
    state: StateOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the kept pictures of a person to a folder. Protect them like the gallery."""
    from edge_agent.core.errors import InputError
    from edge_agent.core.manifest import write_atomic
    from edge_agent.core.private import private_folder

    settings = load_settings(config, state=state)
    with open_existing(settings) as gallery:
        person = gallery.get(who)
        kept = operations_on(settings, gallery).crops(person.number)
        most = gallery.crops.most
    if not kept:
        reason = "its first good crops will be" if most else "set gallery.keep_crops (docs/gallery.md)"
        raise InputError(f"no pictures of {called(person)} are kept; {reason}")
    private_folder(folder)
    for crop in kept:
        write_atomic(folder / _file_name(crop), crop.jpeg, mode=0o600)
    files = [
        {"file": _file_name(one), "camera": one.camera, "time": one.time, "origin": one.origin,
         "quality": round(one.quality, 3), "bytes": len(one.jpeg)}
        for one in kept
    ]  # fmt: skip
    print_result(files, f"{folder}: {len(kept)} picture(s) of {called(person)}", as_json=as_json)


def _file_name(crop: Crop) -> str:
    return f"{crop.number:04d}_{crop.row:06d}.jpg"
