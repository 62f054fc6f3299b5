"""What weights are rounded to: one file per family of formats, listed in `table.py`. No torch."""
