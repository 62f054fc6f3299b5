"""What a piece of work will need, from configurations alone: memory, disk, time. No torch."""
