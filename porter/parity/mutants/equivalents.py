"""Faults that change no result, each with the reason: a reviewer can check it, and the run checks that values agree."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

from pydantic import BaseModel

from porter.parity.mutants.edits import Mutant
from porter.parity.spec import DATA

FILE = DATA / "equivalents.json"


class Equivalent(BaseModel):
    """A change of source text that is known to change nothing."""

    module: str
    function: str
    before: str
    after: str
    reason: str


@lru_cache
def known(file: Path = FILE) -> tuple[Equivalent, ...]:
    """All that were looked into."""
    return tuple(Equivalent.model_validate(entry) for entry in json.loads(file.read_text(encoding="utf-8")))


def reason_for(mutant: Mutant) -> str:
    """Why a fault changes nothing; empty if nobody looked into it."""
    for entry in known():
        if (entry.module, entry.function) == (mutant.module, mutant.function):
            if (entry.before, entry.after) == (mutant.before, mutant.after):
                return entry.reason
    return ""
