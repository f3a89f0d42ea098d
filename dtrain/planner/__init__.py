"""Every number that follows from a config, a model and a machine. Pure functions on frozen facts."""
