"""Notices, and the mails that are made of them."""
