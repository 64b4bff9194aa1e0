"""The code of a user, and its tests."""
