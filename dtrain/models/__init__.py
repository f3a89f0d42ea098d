"""What a model is made of, in numbers: from a config.json or by name, without torch and without network."""
