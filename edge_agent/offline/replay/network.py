"""Another network for a replay, which embeds the crops of the recording."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_agent.core.config import EngineSettings, Settings
from edge_agent.core.errors import InputError
from edge_agent.core.loading import state_folder
from edge_agent.embed.opening import open_embedder
from edge_agent.embed.prior import load_or_measure
from edge_agent.offline.replay.recording import Recording
from edge_agent.offline.replay.run import Network


@contextmanager
def open_network(
    settings: Settings, recording: Recording, model: Path, preprocess: str | None
) -> Iterator[Network]:
    """Open a network; InputError where the recording has no pictures."""
    if not recording.has_pictures():
        raise InputError(
            f"{recording.files[0].path} has no pictures, which another network needs; they are recorded with"
            " gallery.keep_crops above 0"
        )
    changed = {"model": model, "preprocess": preprocess, "precision": "fp32"}
    engine = EngineSettings.model_validate({**settings.engine.model_dump(), **changed})
    state = state_folder(settings.state_dir)
    with open_embedder(engine, settings.quality, state) as embedder:
        prior = load_or_measure(embedder, state, lambda _: None)
        info = embedder.info
        scores = None if prior is None else prior.scores
        yield Network(info.model, info.space, info.dimension, scores, embedder.embed_images)
