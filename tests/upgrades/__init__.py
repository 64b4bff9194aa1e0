"""A namespace as each released key schema left it, and the present code on top of it."""
