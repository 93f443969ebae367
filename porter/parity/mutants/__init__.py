"""Faults to plant into a port: what they change, and where they apply."""

from __future__ import annotations

from porter.parity.mutants.edits import Edit, Mutant, apply
from porter.parity.mutants.sites import KNOWN_BUGS, MUTATORS, find_mutants

__all__ = ["KNOWN_BUGS", "MUTATORS", "Edit", "Mutant", "apply", "find_mutants"]
