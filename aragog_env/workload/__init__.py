"""Seeded traffic, independent of what policies do: arrivals, traces, and the tape of an episode."""
