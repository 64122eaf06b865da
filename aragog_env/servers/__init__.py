"""Real vLLM servers: starting and stopping them, calling them, reading their metrics."""
