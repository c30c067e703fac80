"""The demonstration: a rendered street, a local broker, and the score of the identities."""
