"""The scores of the site, which an agent has collected in its gallery."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge_agent.core.errors import InputError
from edge_agent.gallery.gallery import GALLERY_FILE, open_gallery
from edge_agent.identify.threshold import SITE_FACT

if TYPE_CHECKING:
    from edge_agent.core.config import Settings
    from edge_agent.engine.graph.prepared import PreparedGraph

__all__ = ["site_scores"]


def site_scores(settings: Settings, prepared: PreparedGraph) -> dict[str, Any]:
    """Return the scores that the agent has collected with this network, from the gallery of the state folder.

    Raises:
        InputError: there is no gallery, or it has no such scores.
        SpaceMismatch: the gallery is of another network.
    """
    path = settings.state_dir / GALLERY_FILE
    found = None
    if path.is_file():
        info = prepared.info(backend="onnxruntime", device="cpu", max_batch=1)
        with open_gallery(settings, info) as gallery:
            found = gallery.facts.get(SITE_FACT)
    if not isinstance(found, dict) or not found.get("pairs"):
        raise InputError(
            f"{path} has no scores of this site yet: the agent collects them from people who are seen at the "
            "same time; let it run for a while, or leave --site-pairs out"
        )
    return found
