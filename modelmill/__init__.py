"""modelmill: a trained vision model in, verified low-bit artifacts on real engines out."""

__version__ = "0.1.0"
