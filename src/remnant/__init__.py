"""Remnant: make a language model forget, and prove that it stays forgotten after quantization."""

__version__ = "0.1.0"
