"""The command line: one module for each family of commands, on click and rich.

What it shows comes from outside: `output` makes control characters visible and never reads markup.
Data goes to standard output, everything else to standard error.
"""
