"""Did every tensor of the reference reach the port, and does the port have no other?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import BaseModel, Field

from porter.parity.capture import neural_components

# Parts whose results are others in training mode.
_UNLIKE_IN_TRAINING = (torch.nn.modules.dropout._DropoutNd, torch.nn.modules.batchnorm._BatchNorm)


class WeightReport(BaseModel):
    """Names are ``component.tensor``."""

    compared: int = 0
    differing: list[str] = Field(default_factory=list)
    missing: list[str] = Field(default_factory=list)
    """In the reference, not in the port."""
    extra: list[str] = Field(default_factory=list)
    """In the port, not in the reference."""
    training: list[str] = Field(default_factory=list)
    """Components of the port that are in training mode though the reference's are not: dropout would be at work."""

    @property
    def passed(self) -> bool:
        """Whether every tensor was found on both sides, with equal values, in components that are ready to infer."""
        return not (self.differing or self.missing or self.extra or self.training)

    def summary(self) -> str:
        """One line."""
        if self.passed:
            return f"{self.compared} tensors equal"
        kinds = {
            "differ": self.differing,
            "missing in the port": self.missing,
            "only in the port": self.extra,
            "in training mode": self.training,
        }
        return "; ".join(f"{len(names)} {kind}: {', '.join(names[:5])}" for kind, names in kinds.items() if names)


def check_weights(reference: Any, port: Any) -> WeightReport:
    """Compare all parameters and persistent buffers of all neural components of two pipelines."""
    mine = neural_components(reference)
    report = check_against({name: tensors(part) for name, part in mine.items()}, port)
    its = neural_components(port)
    report.training = sorted(name for name in its if name in mine and trains(its[name]) and not trains(mine[name]))
    return report


def trains(module: torch.nn.Module) -> bool:
    """Whether a part of it that behaves otherwise in training is in training mode, whatever its rate is here."""
    return any(part.training and isinstance(part, _UNLIKE_IN_TRAINING) for part in module.modules())


def check_against(mine: Mapping[str, Mapping[str, torch.Tensor]], port: Any) -> WeightReport:
    """As :func:`check_weights`, with the reference's tensors given by component and name."""
    its = neural_components(port)
    report = WeightReport()
    for name in sorted(mine.keys() | its.keys()):
        if name not in its:
            report.missing.append(name)
        elif name in mine:  # what only the port has (a hook's processor, say) may be a helper without weights
            _compare(report, name, mine[name], tensors(its[name]), _packing(its[name]))
        elif tensors(its[name]):
            report.extra.append(name)
    return report


def tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers by name."""
    return {name: item for name, item in module.state_dict().items() if isinstance(item, torch.Tensor)}


def compare_tensors(
    mine: Mapping[str, torch.Tensor], its: Mapping[str, torch.Tensor], packing: list[tuple[str, str]] | None = None
) -> WeightReport:
    """Compare two mappings of tensors; see :func:`check_weights`."""
    report = WeightReport()
    _compare(report, "", mine, its, packing or [])
    return report


def _compare(
    report: WeightReport,
    component: str,
    mine: Mapping[str, torch.Tensor],
    its: Mapping[str, torch.Tensor],
    packing: list[tuple[str, str]],
) -> None:
    prefix = f"{component}." if component else ""
    expected = pack(mine, its, packing)
    for name in sorted(expected.keys() | its.keys()):
        if name not in its:
            report.missing.append(prefix + name)
        elif name not in expected:
            report.extra.append(prefix + name)
        else:
            report.compared += 1
            a, b = expected[name], its[name]
            if a.shape != b.shape or a.dtype != b.dtype or not torch.equal(a.cpu(), b.cpu()):
                report.differing.append(prefix + name)


def pack(
    mine: Mapping[str, torch.Tensor], its: Mapping[str, torch.Tensor], packing: list[tuple[str, str]]
) -> dict[str, torch.Tensor]:
    """The reference's tensors under the port's names: where the port keeps several as one, they are concatenated."""
    packed: dict[str, torch.Tensor] = {}
    parts: dict[str, dict[int, torch.Tensor]] = {}
    for name, tensor in mine.items():
        places = enumerate(packing if name not in its else ())
        named = ((place, name.replace(shard, fused)) for place, (fused, shard) in places if shard in name)
        place, target = next((found for found in named if found[1] in its), (0, None))
        if target is None:
            packed[name] = tensor
        else:
            parts.setdefault(target, {})[place] = tensor
    for target, pieces in parts.items():
        packed[target] = torch.cat([pieces[place] for place in sorted(pieces)], dim=0)
    return packed


def _packing(module: torch.nn.Module) -> list[tuple[str, str]]:
    """(fused, shard) name parts of a port whose linear layers are merged."""
    mapping = getattr(module, "stacked_params_mapping", None) or []
    return [(str(entry[0]), str(entry[1])) for entry in mapping]
