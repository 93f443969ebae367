"""Write docs/json.md: what ``--json`` prints, from the models that print it.

python tools/json_page.py [--check]
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from porter.cli.schema import outputs

PAGE = Path(__file__).resolve().parent.parent / "docs" / "json.md"
HEAD = """# Machine output

Made by `python tools/json_page.py` from the models that print it.

Every command of this list takes `--json` and then prints one JSON object on stdout (`porter parity --all`: a list of
them) and nothing else; progress and errors go to stderr. `schema_version` is 1 everywhere: it rises when a field goes
or changes its meaning, and stays when one is added. Exit codes are the same as without `--json`: 0 good, 1 the answer
is no, 2 the question was bad; with 2, stdout may be empty and stderr ends in a line that begins with `porter: error: `.
"""


def page() -> str:
    """The page: a section a command, with the parts that its output is made of."""
    parts = [HEAD]
    for command, model in outputs().items():
        schema = TypeAdapter(model).json_schema(mode="serialization")
        parts.append(f"\n## porter {command}\n")
        parts.append(_table(model, schema))
        for name, part in schema.get("$defs", {}).items():
            parts.append(f"\n### {name} ({command})\n\n{_first_line(part.get('description', ''))}\n")
            parts.append(_table(part.get("description", ""), part))
    return "\n".join(parts).replace("\n\n\n", "\n\n")


def _table(source: Any, schema: dict[str, Any]) -> str:
    said = _attributes(source if isinstance(source, str) else inspect.getdoc(source) or "")
    rows = ["| field | type | |", "|---|---|---|"]
    for name, field in schema.get("properties", {}).items():
        words = said.get(name) or _first_line(field.get("description", ""))
        rows.append(f"| `{name}` | {_type(field)} | {words.replace('|', chr(92) + '|').replace('``', '`')} |")
    return "\n".join(rows) + "\n"


def _attributes(text: str) -> dict[str, str]:
    """What an ``Attributes:`` section says of each name; ``a: …; ``b``: …`` names several."""
    found: dict[str, str] = {}
    name = ""
    for line in inspect.cleandoc(text).partition("Attributes:")[2].splitlines():
        entry = re.match(r"^    (\w+): (.*)$", line)
        if entry:
            name, found[entry[1]] = entry[1], entry[2]
        elif name and line.strip():
            found[name] += f" {line.strip()}"
    for words in list(found.values()):
        for also, said in re.findall(r"; ``(\w+)``: ([^;]*)", words):
            found.setdefault(also, said)
    return {name: re.sub(r"; ``\w+``: .*", "", words) for name, words in found.items()}


def _first_line(text: str) -> str:
    return text.strip().split("\n")[0]


def _type(field: dict[str, Any]) -> str:
    if "$ref" in field:
        return field["$ref"].rpartition("/")[2]
    if "anyOf" in field:
        return " or ".join(_type(option) for option in field["anyOf"])
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    kind = str(field.get("type", "any"))
    if kind == "array":
        return f"list of {_type(field.get('items', {}))}"
    if kind == "object" and isinstance(field.get("additionalProperties"), dict):
        return f"name to {_type(field['additionalProperties'])}"
    return kind


def main() -> int:
    """Write the page, or say whether it is what it would be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit 1 if the page is not up to date")
    if parser.parse_args().check:
        return int(not PAGE.is_file() or PAGE.read_text("utf-8") != page())
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
