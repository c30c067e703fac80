"""Local gallery: who is known, SQLite as the truth and an exact numpy index beside it."""

from edge_agent.gallery.archive import read_archive
from edge_agent.gallery.gallery import Gallery
from edge_agent.gallery.identity import Erased, GalleryStats, Identity, Imported, Kind

__all__ = ["Erased", "Gallery", "GalleryStats", "Identity", "Imported", "Kind", "read_archive"]
