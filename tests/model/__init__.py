"""The scripts against a model of one partition: whatever is done, both are in the same state."""
