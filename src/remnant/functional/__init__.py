"""Tensors in, tensors out: the arithmetic that Remnant exists for.

Imports torch (or nothing) and no other part of it.
"""
