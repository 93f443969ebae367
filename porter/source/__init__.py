"""Source: finds a diffusers class and what it needs. Reads text, parses it, and never imports it."""

from porter.source.module import Definition, Imported, SourceModule
from porter.source.tree import SourceError, SourceTree

__all__ = ["Definition", "Imported", "SourceError", "SourceModule", "SourceTree"]
