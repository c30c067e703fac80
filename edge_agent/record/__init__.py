"""Recordings of tracks, embeddings and decisions, from which decisions can be made again."""
