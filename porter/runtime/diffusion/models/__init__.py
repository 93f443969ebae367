"""Interfaces and mixins that pipelines inherit."""
