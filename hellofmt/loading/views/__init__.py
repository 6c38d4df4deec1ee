"""Views: the integers that define each one, and its pixels."""
