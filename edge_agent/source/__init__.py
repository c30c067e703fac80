"""Sources of pictures: cameras, streams, files, crop folders, and boxes of an upstream detector.

`address` parses what is typed after `--source`, `opening` makes the sources of the settings; `reader` runs
one source in threads of its own.
"""
