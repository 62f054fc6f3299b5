"""The table of planted failures: models that know, models that are destroyed, and rows made by
hand.
"""
