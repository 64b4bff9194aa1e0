"""A collector of measurements: many lines by TCP, few writes."""
