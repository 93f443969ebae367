"""Emit: from rewritten definitions to formatted files, written whole or not at all."""
