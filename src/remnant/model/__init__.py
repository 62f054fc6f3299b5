"""Things that hold weights: checkpoints, batches, the training loop, cached references,
generation.
"""
