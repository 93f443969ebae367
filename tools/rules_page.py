"""Write docs/rules.md: the manual of every rule and step, from the rules themselves.

python tools/rules_page.py [--check]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from porter.review.explain import explain_rule
from porter.review.steps import OTHERS, rules, summary
from porter.rules.history import STEPS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "rules.md"


def page() -> str:
    """The page: an overview, then each rule with its examples."""
    head = "# Rules\n\nMade by `python tools/rules_page.py` from the rules; `porter explain NAME` prints one of them.\n"
    table = ["| rule | class | what it does |", "|---|---|---|"]
    table += [f"| [{name}](#{name}) | {rules()[name].safety} | {summary(name)} |" for name in sorted(rules())]
    steps = ["| step | what it does |", "|---|---|"]
    steps += [f"| {name} | {summary(name)} |" for name in sorted({**STEPS, **OTHERS})]
    manuals = [f"#{explain_rule(name)}" for name in sorted(rules())]
    overview = "\n".join(table)
    others = "\n".join(steps)
    return f"{head}\n{overview}\n\nSteps that are no rules:\n\n{others}\n\n" + "\n".join(manuals)


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
