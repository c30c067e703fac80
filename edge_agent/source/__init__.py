"""Where pictures come from: cameras, streams, files, crop folders, external boxes."""
