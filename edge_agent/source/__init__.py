"""Sources of pictures: cameras, streams, files, crop folders, and boxes of an upstream detector.

`address` parses what is typed after `--source`, `opening` makes the sources of the settings; `file`,
`stream`, `usb`, `csi` and `crops` are the kinds. `reader` runs one source in threads of its own.
"""

from __future__ import annotations

from edge_agent.source.address import SourceKind, source_id, source_kind

__all__ = ["SourceKind", "source_id", "source_kind"]
