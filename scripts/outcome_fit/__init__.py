"""How `scripts.fit_outcomes` reads the public per-query results, what it estimates and what it checks."""
