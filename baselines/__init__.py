"""Static rules and learned baselines."""
