"""How much of an update will survive quantization, from two checkpoints alone. No torch."""
