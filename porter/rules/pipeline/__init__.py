"""Rules for pipeline files."""
