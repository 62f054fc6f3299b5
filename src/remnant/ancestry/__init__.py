"""Which files of weights descend from which, told by the weights themselves."""
