"""Where workflows are served: simulated, and later replayed or live."""
