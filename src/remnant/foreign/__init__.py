"""Evaluation logs that other tools wrote -> the same cells as a measured model: one file per tool.

No torch.
"""
