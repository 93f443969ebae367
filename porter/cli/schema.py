"""What ``--json`` prints, command by command; docs/json.md is made from it."""

from __future__ import annotations

import sys
from typing import Any

from pydantic import BaseModel, ConfigDict

from porter.emit.edits import Conflict
from porter.listing import Row


class Output(BaseModel):
    """What every output has.

    Attributes:
        schema_version: of this form; a field that goes or changes its meaning raises it, a new one does not.
    """

    model_config = ConfigDict(extra="forbid")
    schema_version: int = 1


class Part(BaseModel):
    """A part of an output."""

    model_config = ConfigDict(extra="forbid")


class ListOutput(Output):
    """``porter list --json``

    Attributes:
        diffusers: version of the sources.
        pipelines: those with a transformer.
        models: transformers, converted by themselves.
        others: pipelines without a transformer.
    """

    diffusers: str
    pipelines: list[Row]
    models: list[Row]
    others: list[Row]


class Residue(Part):
    """A construct that no rule translated.

    Attributes:
        file: of diffusers.
        line: in it.
        reason: why it was left.
        affects_results: whether results can depend on it.
    """

    file: str
    line: int
    reason: str
    affects_results: bool


class Converted(Part):
    """What became of a pipeline.

    Attributes:
        name: class name.
        error: why it does not convert; empty if it does.
        family: folder of the port.
        files: of the port, relative to the output folder.
        residue: what was left as it was.
        features: what the port supports.
        dropped: arguments and features that the port does not have.
    """

    name: str
    error: str = ""
    family: str = ""
    files: list[str] = []
    residue: list[Residue] = []
    features: dict[str, str] = {}
    dropped: list[str] = []


class KeptEdit(Part):
    """An edit by hand that is kept.

    Attributes:
        path: of the edited file.
        added: lines that it adds; ``removed``: lines that it takes away.
        recorded: whether it was known before this command.
    """

    path: str
    added: int
    removed: int
    recorded: bool


class ConvertOutput(Output):
    """``porter convert --json``

    Attributes:
        target: of the ports.
        tier: of the ports: A to D.
        diffusers: version of the sources.
        output: folder of the ports.
        pipelines: in the order that was asked for.
        edits: by hand, kept in files that were written.
    """

    target: str
    tier: str
    diffusers: str
    output: str
    pipelines: list[Converted]
    edits: list[KeptEdit]


class Differing(Part):
    """A file that is not what porter writes.

    Attributes:
        path: of the file.
        kind: ``missing``, ``left over`` or ``differs``.
        edited: it differs by an edit alone that is not recorded yet.
    """

    path: str
    kind: str
    edited: bool


class CheckOutput(Output):
    """``porter check --json``

    Attributes:
        same: nothing differs, but for edits that are recorded.
        pipelines: how many were compared.
        files: how many were compared.
        differences: files that differ; with ``--fix``, that differed.
        edits: by hand.
        conflicts: edits and override files that cannot be kept as they are.
        errors: pipelines that do not convert any more, with the reason.
    """

    same: bool
    pipelines: int
    files: int
    differences: list[Differing]
    edits: list[KeptEdit]
    conflicts: list[Conflict]
    errors: dict[str, str]


class ExplainOutput(Output):
    """``porter explain --json``

    Attributes:
        subject: as it was given.
        verbose: whether the details were asked for.
        text: Markdown.
    """

    subject: str
    verbose: bool
    text: str


class RequestResult(Part):
    """What became of a request.

    Attributes:
        files: written for it.
        arguments: what it gave the pipeline, but for pictures.
        seed: of its noise; null if none was asked for.
        error: why nothing was written; empty if something was.
    """

    files: list[str] = []
    arguments: dict[str, Any] = {}
    seed: int | None = None
    error: str = ""


class RunOutput(Output):
    """``porter run --json``

    Attributes:
        model: as it was asked for.
        pipeline: class name.
        requests: in the order of the prompts, or of the lines of the batch file.
    """

    model: str
    pipeline: str
    requests: list[RequestResult]


class ExportedModel(Part):
    """A model in the source tree of vLLM-Omni.

    Attributes:
        name: class name.
        folder: below ``vllm_omni/diffusion/models``.
        replaces: file of vLLM-Omni's own model of this pipeline; empty if it had none.
        extra_arguments: that a request's body may have because the model says so.
        features: what the port supports.
        dropped: arguments and features that the port does not have.
    """

    name: str
    folder: str
    replaces: str
    extra_arguments: list[str]
    features: dict[str, str]
    dropped: list[str]


class ExportOutput(Output):
    """``porter export --json``

    Attributes:
        checkout: the source tree.
        vllm_omni: its version.
        written: files that were written, relative to it; with ``--dry-run``, that would be.
        backups: where what was replaced is kept.
        dry_run: nothing was written.
        models: in the order that was asked for.
    """

    checkout: str
    vllm_omni: str
    written: list[str]
    backups: list[str]
    dry_run: bool
    models: list[ExportedModel]


def print_model(model: BaseModel) -> None:
    """A model as indented JSON on stdout."""
    sys.stdout.write(model.model_dump_json(indent=2) + "\n")


def outputs() -> dict[str, Any]:
    """The form of each command's output."""
    from porter.bench.results import BenchReport
    from porter.parity.results import ParityReport
    from porter.review.diff import PortDiff
    from porter.upgrade import Upgrade

    return {
        "list": ListOutput,
        "convert": ConvertOutput,
        "check": CheckOutput,
        "diff": PortDiff,
        "explain": ExplainOutput,
        "export": ExportOutput,
        "parity": ParityReport,
        "upgrade": Upgrade,
        "run": RunOutput,
        "bench": BenchReport,
    }
