"""Workflows for real: prompts from templates, what to do with an output, tools, and grades."""
