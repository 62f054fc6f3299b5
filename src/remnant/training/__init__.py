"""The training loop, and how it takes a step."""
