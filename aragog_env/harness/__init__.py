"""Running policies, measuring them, reporting: above the backends, below the command line."""
