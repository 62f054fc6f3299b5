"""One file per library that people quantize with: a thin door, the library does the work."""
