"""Train, evaluate and study sparse vision models from YAML recipes."""

__version__ = "0.2.0"
