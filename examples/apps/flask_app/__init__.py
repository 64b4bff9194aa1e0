"""Views of pages: many small counts become few inserts."""
