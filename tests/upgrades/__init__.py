"""Dumps of a namespace, one for each released key schema."""
