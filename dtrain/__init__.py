"""dtrain: from a YAML file to a trained language model, on local, shared or rented GPUs."""

__version__ = "0.1.0"
