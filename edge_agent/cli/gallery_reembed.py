"""`edge-agent gallery reembed`: moves the gallery to another network, by the pictures that it keeps."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from edge_agent.cli.arguments import (
    ConfigOption,
    JsonOption,
    PreprocessOption,
    StateOption,
    YesOption,
    load_settings,
)
from edge_agent.cli.gallery_access import BY, called
from edge_agent.cli.output import confirm as ask
from edge_agent.cli.output import print_result, say

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edge_agent.core.config import Settings
    from edge_agent.gallery.reembedding import Moved, Reembedding

_LISTED = 20
"""People who are listed one by one."""


def reembed(
    model: Annotated[
        Path | None, Option("--model", metavar="ONNX", help="The network that the agent will use.")
    ] = None,
    preprocess: PreprocessOption = None,
    restore: Annotated[bool, Option("--restore", help="Put the former embeddings in force again.")] = False,
    confirm: Annotated[
        bool, Option("--confirm", help="Erase the former embeddings: the new network is good.")
    ] = False,
    state: StateOption = None,
    config: ConfigOption = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Move the gallery to another network by its kept pictures; the agent must not run.

    All or nothing; after a kill, the command goes on where it was. Ids and names stay. People without
    pictures are listed: they must be seen again. The former embeddings can be restored until they are
    confirmed, which may be done while the agent runs.
    """
    from edge_agent.core.encryption import database_key
    from edge_agent.gallery import audit
    from edge_agent.gallery.gallery import GALLERY_FILE
    from edge_agent.gallery.reembedding import Reembedding

    if (model is not None) + restore + confirm != 1:
        raise typer.BadParameter("give one of --model, --restore and --confirm")
    settings = load_settings(config, state=state, model=model, preprocess=preprocess)
    path, key = settings.state_dir / GALLERY_FILE, database_key(settings.storage)
    with Reembedding(path, key, alone=not confirm) as gallery:
        if confirm:
            ask("Erase the embeddings of the former network?", yes)
            past = gallery.confirm()
            audit.record(settings.state_dir, "reembed-confirm", BY)
            text = f"the embeddings of the former {past} are erased"
            print_result({"space": gallery.space.space, "erased": past.space}, text, as_json=as_json)
            return
        moved = gallery.restore() if restore else _embed(settings, gallery)
        audit.record(
            settings.state_dir,
            "reembed-restore" if restore else "reembed",
            BY,
            people=moved.people,
            unseen=len(moved.unseen),
        )
    print_result(asdict(moved), _lines(moved, model), as_json=as_json)


def _embed(settings: Settings, gallery: Reembedding) -> Moved:
    from edge_agent.core.errors import ConfigError
    from edge_agent.core.loading import state_folder
    from edge_agent.core.pictures import UnreadablePicture, decode_picture
    from edge_agent.embed.opening import open_embedder
    from edge_agent.engine import is_simulated
    from edge_agent.engine.precision.calibration import current_calibration
    from edge_agent.gallery.sync import Space

    if is_simulated(settings.engine.backend):
        raise ConfigError("a simulated engine makes no embeddings; choose another engine.backend")
    folder = state_folder(settings.state_dir)
    calibration = current_calibration(settings.engine, folder)
    with open_embedder(settings.engine, settings.quality, folder, calibration) as embedder:
        left = gallery.begin(Space(embedder.info.space, embedder.info.dimension))
        say(f"{left} picture(s) to embed", err=True)
        for batch in gallery.batches(embedder.info.max_batch):
            pictures: dict[int, NDArray[np.uint8]] = {}
            for row, jpeg in batch:
                with suppress(UnreadablePicture):  # damaged: its person may have others
                    pictures[row] = decode_picture(jpeg, "a kept picture")
            vectors = dict(zip(pictures, embedder.embed_images(list(pictures.values())), strict=True))
            gallery.store([row for row, _ in batch], [vectors.get(row) for row, _ in batch])
        return gallery.finish()


def _lines(moved: Moved, model: Path | None) -> list[str]:
    lines = [
        f"{moved.people} person(s) with {moved.exemplars} exemplar(s) in space {moved.space}"
        f" ({moved.dimension} numbers)"
    ]
    if moved.unseen:
        names = ", ".join(map(called, moved.unseen[:_LISTED]))
        more = f" and {len(moved.unseen) - _LISTED} more" if len(moved.unseen) > _LISTED else ""
        lines.append(f"{len(moved.unseen)} must be seen again, since no picture is kept: {names}{more}")
    if model is None:
        return [*lines, "run the agent with the former network"]
    return [
        *lines,
        f'run the agent with this network: engine.model = "{model}"',
        "then: edge-agent gallery reembed --confirm, or --restore to go back",
    ]
