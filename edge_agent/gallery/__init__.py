"""Local gallery of identities: an SQLite file, and an index in memory for searching."""

from edge_agent.gallery.gallery import Gallery
from edge_agent.gallery.rows import Erased, GalleryStats, Identity, Imported, Kind

__all__ = ["Erased", "Gallery", "GalleryStats", "Identity", "Imported", "Kind"]
