"""Puts the folders that stand beside the package in a checkout inside it in a wheel."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

INSIDE = {"templates": "porter/templates", "generated_models": "porter/generated_models"}


class Folders(BuildHookInterface):
    """Adds each folder that is there; an editable installation reads them from the checkout."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before a wheel is built; `version` is its kind."""
        if version == "editable":
            return
        for folder, inside in INSIDE.items():
            if (Path(self.root) / folder).is_dir():
                build_data["force_include"][folder] = inside
