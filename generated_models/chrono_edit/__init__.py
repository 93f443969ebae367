"""Ported pipelines of the chrono_edit family."""
