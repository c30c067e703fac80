"""Training and export of ReIdentificationNet by TAO's recipe."""
