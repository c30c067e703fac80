"""From crops to embeddings: quality, selection, packing, the engine."""
