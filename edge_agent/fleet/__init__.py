"""The fleet: identities that many devices share through one store."""
