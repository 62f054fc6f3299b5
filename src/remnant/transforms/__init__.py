"""What makes a model of a model, one kind in each file, as values. No torch."""
