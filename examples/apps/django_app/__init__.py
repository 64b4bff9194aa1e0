"""A Django project: users get one mail for all of their notices."""
