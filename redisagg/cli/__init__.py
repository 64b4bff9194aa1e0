"""The command line: one module for each family of commands, built with click and rich.

Data goes to standard output, everything else to standard error. Texts from outside are untrusted:
`output` shows their control characters as escapes and reads no markup in them.
"""
