"""What ports tell Cache-DiT about their blocks; it does not run here."""
