"""The planted models of `verdict_check.py`: how each is made, what is true of it, and the rule of
before.
"""
