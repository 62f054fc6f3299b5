"""What a model says about many inputs, in as few passes as there are distinct ones."""
