"""What is measured, whoever exports it."""
