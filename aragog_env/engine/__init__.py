"""vLLM's scheduler: a plain reference, and a compiled twin over flat arrays."""
