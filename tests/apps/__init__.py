"""The applications in examples/apps, started as a user starts them."""
