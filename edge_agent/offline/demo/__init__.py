"""The demonstration: a rendered street, a broker of its own, and the score of the identities."""
