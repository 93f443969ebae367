"""Ports made when somebody asks for one: converted from the installed diffusers, and kept in the cache."""

from __future__ import annotations

from pathlib import Path

from porter.batch import Outcome, convert_batch
from porter.cache import Cache
from porter.emit.write import write_ports
from porter.source import SourceTree


class ConversionRefused(RuntimeError):
    """There is no port of a pipeline that could be trusted; the message says why and what to do."""


def kept_folder(name: str, cache: Cache) -> Path:
    """The folder of ports that holds the port of a pipeline, once it has been made."""
    return cache.folder / "ports" / name


def is_kept(name: str, cache: Cache) -> bool:
    """Whether that port has been made: the registry is written last, so a folder that has one is whole."""
    return (kept_folder(name, cache) / "registry.py").is_file()


def converted(name: str, tree: SourceTree, target: str, cache: Cache, by_hand: str) -> Path:
    """The folder of the port of a pipeline, made now if it is not kept.

    Args:
        name: the pipeline class.
        tree: the diffusers sources.
        target: name of the target.
        cache: of these sources and that target.
        by_hand: what to do with a port that somebody finished, for the message.

    Raises:
        ConversionRefused: it does not convert, or results would depend on what was left.
    """
    folder = kept_folder(name, cache)
    if not is_kept(name, cache):
        [outcome] = convert_batch([name], tree, target, cache=cache)
        check(outcome, target, by_hand)
        write_ports(folder, [outcome])
    return folder


def check(outcome: Outcome, target: str, by_hand: str) -> None:
    """Refuse a port that was not made, or not completely.

    Raises:
        ConversionRefused: it is one.
    """
    if not outcome.converted:
        raise ConversionRefused(f"{outcome.name} does not convert: {outcome.error}")
    left = [entry for entry in outcome.residue if entry["affects_results"]]
    if left:
        places = "; ".join(f"{entry['file']}:{entry['line']}: {entry['reason']}" for entry in left[:5])
        raise ConversionRefused(
            f"{outcome.name} was not converted completely, and its results may differ from diffusers' ({places}). "
            f"Serve it with diffusion_load_format='diffusers', or finish it by hand: `porter convert {outcome.name} "
            f"--target {target} -o DIR`, then {by_hand}."
        )
