"""What ports tell caches about themselves; none runs here."""
