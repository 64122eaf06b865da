"""Data, models and training of the arithmetic workflow."""
