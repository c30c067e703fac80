"""Identity quality of the whole agent over clips and sets of crops; see `__main__`."""
