"""Networks run here: the prepared graph and the backends that execute it."""
