"""Parts of `python -m scripts.train_baselines`: what is run, training, tables, pictures."""
