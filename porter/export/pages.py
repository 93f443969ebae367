"""What comes with a model: tests, examples, documentation, a recipe, and the text of the pull request."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from porter.emit.templates import fill
from porter.export.checkout import Checkout
from porter.export.ci import Tests, ci_texts
from porter.export.rows import feature_cell, heading_of, with_row
from porter.export.style import styled
from porter.omni.card import Card
from porter.port import Port

MODELS_PAGE = "docs/models/supported_models.md"
FEATURES_PAGE = "docs/user_guide/diffusion_features.md"
RECIPES_PAGE = "recipes/README.md"
# What the repository calls a task, by what comes out and whether pictures go in.
_TASKS = {
    ("image", False): "text_to_image",
    ("image", True): "image_to_image",
    ("video", False): "text_to_video",
    ("video", True): "image_to_video",
    ("audio", False): "text_to_audio",
    ("audio", True): "text_to_audio",
}
# The repository's scripts for a task, and the sections of its page of features.
_SHARED = {
    "text_to_image": "text_to_image.py",
    "image_to_image": "image_edit.py",
    "text_to_video": "text_to_video.py",
    "image_to_video": "image_to_video.py",
    "text_to_audio": "text_to_audio.py",
}
_SECTIONS = {"image": "ImageGen", "video": "VideoGen", "audio": "AudioGen"}
# Arguments that the shared scripts give a model, among those that hold pictures, videos or sound.
_GIVEN = frozenset({"image", "num_frames"})
_MEDIA = re.compile(r"(^|_)(image|images|video|videos|audio|audios)$")
_PARALLEL = {
    "tensor_parallel": "--tensor-parallel-size",
    "sequence_parallel": "--ulysses-degree",
    "cfg_parallel": "--cfg-parallel-size",
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
        bench: measured speed and memory.
        shared_script: the repository's own example that runs it; empty where it has one of its own.
        shared_server: the same, of the examples with a server.
        ci: what there is to say about the CI's step.
        e2e: tests that need its checkpoint.
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
    bench: Any = None
    shared_script: str = ""
    shared_server: str = ""
    ci: str = ""
    e2e: list[str] = field(default_factory=list)

    @property
    def short_name(self) -> str:
        """The name without what it is."""
        return self.port.name.removesuffix("Pipeline")

    @property
    def recipe(self) -> str:
        """The path of its recipe below ``recipes``."""
        return f"{self.checkpoint.partition('/')[0] or 'Community'}/{self.short_name}.md"

    @property
    def needs_own_example(self) -> bool:
        """Whether it is given what the shared scripts do not give."""
        return any(_MEDIA.search(name) for name in self.card.arguments - _GIVEN)

    @property
    def task(self) -> str:
        """What the repository calls what the model does."""
        return _TASKS[self.card.kind, self.card.image_input]

    @property
    def endpoint(self) -> str:
        """Where the server takes requests for it."""
        return "/v1/images/edits" if self.task == "image_to_image" else _ENDPOINTS[self.card.kind]

    @property
    def parallel_options(self) -> dict[str, str]:
        """Options of the server for what was verified on two ranks, by a name for each."""
        features = self.port.features
        return {name: option for name, option in _PARALLEL.items() if features.get(name, "").startswith("verified")}

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


def with_examples(exported: Exported, checkout: Checkout) -> Exported:
    """The model, with the repository's own examples where they run it."""
    script = f"examples/offline_inference/{exported.task}/{_SHARED[exported.task]}"
    server = f"examples/online_serving/{exported.task}"
    if exported.needs_own_example:
        return exported
    return replace(
        exported,
        shared_script=script if checkout.read(script) is not None else "",
        shared_server=server if checkout.read(f"{server}/run_server.sh") is not None else "",
    )


def page_texts(exported: Exported, checkout: Checkout, read: Callable[[str], str]) -> tuple[dict[str, str], Exported]:
    """Files beside the package, by path, and the model with what is known about it now.

    Args:
        exported: the model.
        checkout: what is exported into.
        read: the text of a file as it is to be so far.
    """
    exported = with_examples(exported, checkout)
    port, stem = exported.port, exported.port.stem
    values = {"e": exported, "port": port, "card": exported.card, "model": exported.checkpoint or "CHECKPOINT"}
    scripts = {f"tests/diffusion/models/{exported.folder}/test_{stem}.py": fill("export/test_model.py.j2", **values)}
    e2e = {}
    if exported.checkpoint:  # else what such tests would load is not known
        if not exported.card.image_input:
            e2e[f"tests/e2e/offline_inference/test_{stem}.py"] = fill("export/test_e2e.py.j2", **values)
        if exported.card.kind != "audio":
            e2e[f"tests/e2e/online_serving/test_{stem}_expansion.py"] = fill("export/test_online.py.j2", **values)
    if not exported.shared_script:
        scripts[f"examples/offline_inference/{stem}/{stem}.py"] = port.texts[f"examples/{stem}.py"]
    files = styled(scripts | e2e)
    if not exported.shared_server:
        files[f"examples/online_serving/{stem}/run_server.sh"] = fill("export/run_server.sh.j2", **values)
        files[f"examples/online_serving/{stem}/README.md"] = fill("export/online.md.j2", **values)
    vendor = exported.recipe.partition("/")[0]
    files[f"recipes/{exported.recipe}"] = fill("export/recipe.md.j2", vendor=vendor, **values)
    tests = Tests(list(e2e), [name for name in e2e if "online" in name and exported.parallel_options])
    steps, said = ci_texts(checkout, read, exported.short_name, exported.card.kind, exported.folder, stem, tests)
    files |= steps | _rows(exported, checkout, read)
    return files, replace(exported, ci=said, e2e=list(e2e))


def _rows(exported: Exported, checkout: Checkout, read: Callable[[str], str]) -> dict[str, str]:
    """Pages with a row for the model, those of them that there are."""
    name, short = exported.port.name, exported.short_name
    family = re.sub(r"[_\d]+$", "", exported.port.family).replace("_", "")

    def kin(cell: str) -> bool:
        return re.sub(r"[^a-z0-9]", "", cell.casefold()).startswith(family)

    found = {}
    if checkout.read(MODELS_PAGE) is not None:
        page = read(MODELS_PAGE)
        checkpoint = f"`{exported.checkpoint}`" if exported.checkpoint else ""
        empty = len(heading_of(page, "Architecture")) - 3
        row = f"| `{name}` | {short} | {checkpoint} |{' |' * empty}"
        known = f"`{name}`" in page
        found[MODELS_PAGE] = page if known else with_row(page, row, "Architecture", kin)
    section = _SECTIONS[exported.card.kind]
    if checkout.read(FEATURES_PAGE) is not None and not exported.replaces:
        page = read(FEATURES_PAGE)
        columns = heading_of(page, "Model", section)[1:]
        states = (feature_cell(column, exported.port.features) for column in columns)
        row = f"| **{short}** | {' | '.join(states)} |"
        found[FEATURES_PAGE] = with_row(page, row, "Model", kin, section)
    if checkout.read(RECIPES_PAGE) is not None:
        page = read(RECIPES_PAGE)
        task = exported.task.replace("_", " ").capitalize()
        row = f"| [`{exported.recipe}`](./{exported.recipe}) | {task} serving | 1x GPU (untested) |"
        vendor = exported.recipe.partition("/")[0]
        found[RECIPES_PAGE] = with_row(page, row, "Recipe", lambda cell: cell.startswith(f"[`{vendor}/"))
    return found
