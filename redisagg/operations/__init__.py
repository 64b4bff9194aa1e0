"""The operations of an aggregator: `inspecting` reads a namespace, `steering` changes it."""
