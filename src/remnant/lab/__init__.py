"""The embedded default: a seeded fictional corpus, a tokenizer trained on it and a small model
shape.
"""
