"""A verdict that can be checked later: who vouches for it, by which policy, on which files."""
