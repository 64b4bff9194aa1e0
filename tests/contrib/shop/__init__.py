"""A Django application with aggregators, which `tests.contrib.test_django` installs."""
