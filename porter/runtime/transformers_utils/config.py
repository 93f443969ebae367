"""Reading a model's JSON files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from porter.runtime.errors import ModelNotFoundError
from porter.runtime.transformers_utils.repo_utils import find_repo_file


def get_hf_file_to_dict(file_name: str, model: str | Path, revision: str | None = "main") -> dict[str, Any] | None:
    """Content of the JSON file ``file_name`` of a folder or hub model; None if the model has no such file.

    Raises:
        ModelNotFoundError: the model cannot be reached, or the file is not a JSON object.
    """
    path = find_repo_file(model, file_name, revision)
    if path is None:
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelNotFoundError(f"{file_name} of model {str(model)!r} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelNotFoundError(f"{file_name} of model {str(model)!r} holds no JSON object")
    return content
