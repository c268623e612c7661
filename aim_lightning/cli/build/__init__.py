"""Construction of the objects that a configuration names."""
