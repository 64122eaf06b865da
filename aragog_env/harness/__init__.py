"""Running policies, measuring them, and reporting: everything above the backends and below the command line."""
