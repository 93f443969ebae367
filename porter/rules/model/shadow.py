"""Name the base of a class that carries its base's name."""

from __future__ import annotations

import libcst as cst

from porter.rules.engine import SURFACE, Context, Rule
from porter.rules.fold import dotted


class ShadowedBase(Rule):
    """Import the base of a class under another name where the class takes over its name.

    diffusers keeps a moved class importable from its old place by a subclass of the same name. In a port definitions
    are put in order by name, so the two need different ones.
    """

    name = "shadowed-base"
    safety = SURFACE
    VALID = (
        """
        from ..modeling_outputs import ExampleOutput


        class OtherOutput(ExampleOutput):
            pass
        """,
    )
    INVALID = (
        (
            """
            from ..modeling_outputs import ExampleOutput


            class ExampleOutput(ExampleOutput):
                pass
            """,
            """
            from ..modeling_outputs import ExampleOutput


            class ExampleOutput(DiffusersExampleOutput):
                pass
            """,
        ),
    )

    def leave_ClassDef(self, ctx: Context, original: cst.ClassDef, updated: cst.ClassDef) -> cst.ClassDef:
        name = updated.name.value
        bound = ctx.module.imports.get(name)
        if bound is None or bound.name is None or all(dotted(base.value) != name for base in updated.bases):
            return updated
        alias = f"Diffusers{name}"
        ctx.imports[alias] = (bound.module, bound.name)
        bases = [b.with_changes(value=cst.Name(alias)) if dotted(b.value) == name else b for b in updated.bases]
        return updated.with_changes(bases=bases)
