"""What the bodies of all endpoints share."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

INT64 = 2**63
_SIZE = re.compile(r"\s*(\d{1,9})\s*[xX]\s*(\d{1,9})\s*")


class Body(BaseModel):
    """A body; fields that it does not know are an error that names them."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


def _object(value: Any) -> Any:
    """Forms have objects as text."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"not JSON ({error.msg})") from error
    return value


Steps = Annotated[int | None, Field(ge=1, le=200)]
Guidance = Annotated[float | None, Field(ge=0.0, le=20.0, allow_inf_nan=False)]
Number = Annotated[float | None, Field(allow_inf_nan=False)]
Seed = Annotated[int | None, Field(ge=-INT64, lt=INT64)]
Count = Annotated[int, Field(ge=1, le=10)]
Side = Annotated[int | None, Field(ge=1, lt=INT64)]
JsonObject = Annotated[dict[str, Any] | None, BeforeValidator(_object)]


def parse_size(text: str) -> tuple[int, int]:
    """Width and height of ``WIDTHxHEIGHT``.

    Raises:
        ValueError: it is not written so.
    """
    match = _SIZE.fullmatch(text)
    if match is None or "0" in (match[1].lstrip("0") or "0", match[2].lstrip("0") or "0"):
        raise ValueError("write the size as WIDTHxHEIGHT, 1024x1024 for example")
    return int(match[1]), int(match[2])


def checked_size(text: str | None) -> str | None:
    """A size that can be parsed, or none."""
    if text is not None:
        parse_size(text)
    return text
