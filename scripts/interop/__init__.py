"""Minimal scripts that train with other libraries on this environment; docs/interop.md explains them."""
