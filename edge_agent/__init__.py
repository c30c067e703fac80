"""Person re-identification at the edge: camera frames in, identity events out.

Importing this package imports nothing heavy; each command loads what it needs.
"""

__version__ = "0.1.0"
