"""What is made, under which key, in which order: store, plan, run. No torch."""
