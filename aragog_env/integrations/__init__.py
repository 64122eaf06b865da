"""Bridges to other libraries: a module imports the library it is named after, nothing imports the module."""
