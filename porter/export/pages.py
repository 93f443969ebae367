"""What comes with a model: tests, examples, documentation, a recipe, and the text of the pull request."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import porter
from porter.emit.templates import fill
from porter.export.checkout import Checkout
from porter.export.style import styled
from porter.omni.card import Card
from porter.port import Port

MODELS_PAGE = "docs/models/supported_models.md"
# What the repository calls a task, by what comes out and whether pictures go in.
_TASKS = {
    ("image", False): "text_to_image",
    ("image", True): "image_to_image",
    ("video", False): "text_to_video",
    ("video", True): "image_to_video",
    ("audio", False): "text_to_audio",
    ("audio", True): "text_to_audio",
}
_ENDPOINTS = {"image": "/v1/images/generations", "video": "/v1/videos/sync", "audio": "/v1/audio/generate"}
_CHECKPOINT = re.compile(r"""from_pretrained\(\s*["']([\w.-]+/[\w.-]+)["']""")


@dataclass(frozen=True)
class Exported:
    """A port and where it goes.

    Attributes:
        port: for the target ``vllm-omni``.
        card: of the port.
        folder: of models that it goes into.
        checkpoint: the hub id that diffusers' own example names; empty if it names none.
        replaces: file of vLLM-Omni's own model of this pipeline; empty if it had none.
        extra_arguments: that a request's body may have because the model says so.
        warm_up: why the pipeline does not take the engine's warm-up request; empty if it does.
        in_process: measured parity in one process.
        in_engine: measured parity in vLLM-Omni's worker.
    """

    port: Port
    card: Card
    folder: str
    checkpoint: str = ""
    replaces: str = ""
    extra_arguments: list[str] = field(default_factory=list)
    warm_up: str = ""
    in_process: dict[str, Any] = field(default_factory=dict)
    in_engine: dict[str, Any] = field(default_factory=dict)

    @property
    def task(self) -> str:
        """What the repository calls what the model does."""
        return _TASKS[self.card.kind, self.card.image_input]

    @property
    def endpoint(self) -> str:
        """Where the server takes requests for it."""
        return "/v1/images/edits" if self.task == "image_to_image" else _ENDPOINTS[self.card.kind]

    @property
    def hooks(self) -> list[str]:
        """Names of the factories of its hooks."""
        text = self.port.texts[f"{self.port.family}/pipeline_{self.port.stem}.py"]
        names = [f"get_{self.port.stem}_{kind}_process_func" for kind in ("pre", "post")]
        return [name for name in names if f"def {name}(" in text]


def checkpoint_of(source: str) -> str:
    """The hub id that the example in a pipeline's source loads; empty if there is none."""
    found = _CHECKPOINT.search(source)
    return found[1] if found else ""


def page_texts(exported: Exported, checkout: Checkout, read: Callable[[str], str]) -> tuple[dict[str, str], list[str]]:
    """Files beside the package, and names of those among them that were there and get a row.

    Args:
        exported: the model.
        checkout: what is exported into.
        read: the text of a file as it is to be so far.
    """
    port, stem = exported.port, exported.port.stem
    values = {"e": exported, "port": port, "card": exported.card, "model": exported.checkpoint or "CHECKPOINT"}
    scripts = {
        f"tests/diffusion/models/{exported.folder}/test_{stem}.py": fill("export/test_model.py.j2", **values),
        f"tests/e2e/offline_inference/test_{stem}.py": fill("export/test_e2e.py.j2", **values),
        f"examples/offline_inference/{stem}/{stem}.py": port.texts[f"examples/{stem}.py"],
    }
    if not exported.checkpoint or exported.card.image_input:  # what such a test would load, or show it, is not known
        del scripts[f"tests/e2e/offline_inference/test_{stem}.py"]
    files = styled(scripts)
    files[f"examples/online_serving/{stem}/run_server.sh"] = fill("export/run_server.sh.j2", **values)
    files[f"examples/online_serving/{stem}/README.md"] = fill("export/online.md.j2", **values)
    vendor = exported.checkpoint.partition("/")[0] or "Community"
    files[f"recipes/{vendor}/{port.name.removesuffix('Pipeline')}.md"] = fill(
        "export/recipe.md.j2", vendor=vendor, **values
    )
    if checkout.read(MODELS_PAGE) is None:
        return files, []
    page = read(MODELS_PAGE)
    files[MODELS_PAGE] = page if f"`{port.name}`" in page else _with_row(page, _models_row(exported))
    return files, [MODELS_PAGE]


def pull_request(models: Sequence[Exported], checkout: Checkout, diffusers: str) -> str:
    """The text of the pull request; figures are those of the project's tables, and where there is none it says so."""
    return fill(
        "export/pull_request.md.j2",
        models=models,
        names=" ".join(model.port.name for model in models),
        porter=porter.__version__,
        diffusers=diffusers,
        vllm_omni=checkout.version,
    )


def _models_row(exported: Exported) -> str:
    name = exported.port.name
    checkpoint = f"`{exported.checkpoint}`" if exported.checkpoint else ""
    return f"| `{name}` | {name.removesuffix('Pipeline')} | {checkpoint} | | | | |"


def _with_row(text: str, row: str) -> str:
    """A page with a row at the end of its table of architectures; the text itself if it has no such table."""
    lines = text.split("\n")
    start = next((at for at, line in enumerate(lines) if line.startswith("| Architecture |")), None)
    if start is None:
        return text
    end = next((at for at in range(start, len(lines)) if not lines[at].startswith("|")), len(lines))
    lines.insert(end, row)
    return "\n".join(lines)
