"""Orders of a shop: one mail for all that a customer orders within a minute."""
