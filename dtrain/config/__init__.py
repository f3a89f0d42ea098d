"""What the person said: a YAML file as a frozen, closed, typed object."""
