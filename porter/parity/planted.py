"""A port whose source was changed in memory: only its own modules run anew, components come from the first load."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import torch

from porter.parity.port_files import digest, siblings
from porter.parity.probes import Probes
from porter.parity.sides import Port, align_module
from porter.runtime.diffusion.data import OmniDiffusionConfig
from porter.runtime.diffusion.model_loader.diffusers_loader import DiffusersPipelineLoader
from porter.runtime.diffusion.registry import ModelRegistry
from porter.runtime.entrypoints.omni import Omni


class Workshop:
    """Loads one port again and again, each time with other source text.

    Args:
        checkpoint: of the port.
        models_dir: folder of ports; None: the committed ones.
        dtype: of the weights.
    """

    def __init__(self, checkpoint: Path, models_dir: str | Path | None, dtype: str) -> None:
        self.omni = Omni(model=str(checkpoint), models_dir=models_dir, device="cpu", dtype=dtype)
        self.registry = ModelRegistry(models_dir)
        port = sys.modules[type(self.omni.pipeline).__module__]
        self._file = Path(port.__file__ or "")
        self.package = port.__name__.rpartition(".")[0]
        self.modules = self._needed(port)
        """Source files of the port by the name of their module, what is imported first."""
        self._codes: dict[str, CodeType] = {}
        self._probes: Probes | None = None
        self._components: dict[tuple[str, str], Any] = {}
        """By checkpoint and name."""

    def _needed(self, port: ModuleType) -> dict[str, Path]:
        found: dict[str, Path] = {}

        def visit(name: str) -> None:
            file = Path(sys.modules[f"{self.package}.{name}"].__file__ or "")
            for needed in siblings(file):
                if needed not in found and f"{self.package}.{needed}" in sys.modules:
                    visit(needed)
            found[name] = file

        visit(port.__name__.rpartition(".")[2])
        return found

    def source(self, module: str) -> bytes:
        """The text of one of the port's modules."""
        return self.modules[module].read_bytes()

    def digest(self) -> str:
        """sha256 of the port's source files."""
        return digest(self._file)

    @contextlib.contextmanager
    def planted(self, module: str | None = None, source: bytes | None = None) -> Iterator[Port]:
        """The port with ``source`` in the place of ``module``, loaded afresh; the modules stay in place for the block.

        Raises:
            Exception: whatever keeps the changed port from loading.
        """
        changed = self._dependents(module) if module is not None else []
        changed = list(self.modules) if self._probes is not None else changed
        before = {name: sys.modules[f"{self.package}.{name}"] for name in self.modules}
        try:
            for name in changed:
                self._execute(name, source if name == module else None)
            with self._kept_components():
                yield self._load(self.omni.od_config)
        finally:
            sys.modules.update({f"{self.package}.{name}": held for name, held in before.items()})

    @contextlib.contextmanager
    def watched(self, seen: set[tuple[str, int]]) -> Iterator[Port]:
        """The port as it is, with its statements noting in ``seen`` where they begin (module, line) as they run."""
        self._probes = Probes(seen)
        try:
            with self.planted(next(iter(self.modules))) as port:
                yield port
        finally:
            self._probes = None

    def forget(self) -> None:
        """Load components anew the next time: what ran may have changed them."""
        self._components.clear()

    def _dependents(self, module: str) -> list[str]:
        """The module and what imports it, in the order of import."""
        changed = {module}
        for name, file in self.modules.items():
            if changed & siblings(file):
                changed.add(name)
        return [name for name in self.modules if name in changed]

    def _execute(self, name: str, source: bytes | None) -> None:
        full = f"{self.package}.{name}"
        file = str(self.modules[name])
        if self._probes is not None:
            code = self._probes.compile(name, self.source(name), file)
        elif source is not None:
            code = compile(source, file, "exec")
        else:
            if name not in self._codes:
                self._codes[name] = compile(self.source(name), file, "exec")
            code = self._codes[name]
        fresh = ModuleType(full)
        fresh.__file__, fresh.__package__ = file, self.package
        sys.modules[full] = fresh
        if self._probes is not None:
            vars(fresh)[Probes.NAME] = self._probes.note
        exec(code, vars(fresh))

    @contextlib.contextmanager
    def _kept_components(self) -> Iterator[None]:
        """Let the port's modules take components that an earlier load made; schedulers have a state and are copied."""
        original = vars(sys.modules[f"{self.package}.support"])["load_component"]

        def load(od_config: Any, name: str, *classes: type) -> Any:
            key = (str(od_config.model), name)
            if key not in self._components:
                component = original(od_config, name, *classes)
                if isinstance(component, torch.nn.Module):
                    align_module(component)
                self._components[key] = component
            component = self._components[key]
            return copy.deepcopy(component) if hasattr(component, "set_timesteps") else component

        holders = [vars(sys.modules[f"{self.package}.{name}"]) for name in self.modules]
        replaced = [(space, space["load_component"]) for space in holders if "load_component" in space]
        for space, _ in replaced:
            space["load_component"] = load
        try:
            yield
        finally:
            for space, held in replaced:
                space["load_component"] = held

    def elsewhere(self, checkpoint: Path) -> Port:
        """The port as it is planted at the moment, with another checkpoint of the same pipeline."""
        own = self.omni.od_config
        config = OmniDiffusionConfig.from_kwargs(
            model=str(checkpoint), model_class_name=own.model_class_name, dtype=own.dtype
        )
        config.enrich_config()
        return self._load(config)

    def _load(self, config: OmniDiffusionConfig) -> Port:
        model = self.registry.load(str(config.model_class_name))
        pre = model.pre_process_factory(config) if model.pre_process_factory else None
        post = model.post_process_factory(config) if model.post_process_factory else None
        pipeline = DiffusersPipelineLoader(config).load_model(model.pipeline_cls, self.omni.device)
        kept = {id(item) for item in self._components.values()}
        for name, part in pipeline.named_children():
            if id(part) not in kept and name:
                align_module(part)
        port = Port.__new__(Port)
        port.omni = copy.copy(self.omni)
        port.omni.od_config = config
        port.omni._loaded = dataclasses.replace(
            self.omni._loaded, pipeline=pipeline, pre_process=pre, post_process=post
        )
        port.pipeline = pipeline
        if hasattr(pipeline, "set_progress_bar_config"):
            pipeline.set_progress_bar_config(disable=True)
        return port
