"""What one runs by hand from the repository root: `python -m scripts.NAME`."""
