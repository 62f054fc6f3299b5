"""What may move in a model while it is trained: one file per way, one record that all of them give.

``attach`` finds the way that a spec names.
"""
