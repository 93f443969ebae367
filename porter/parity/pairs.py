"""Reference and port in the dtypes that cases ask for, each loaded when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable

from porter.parity.results import CaseResult
from porter.parity.sides import PortSide, Side, rejection

Pair = tuple[Side, PortSide]


class Pairs:
    """Both sides by the dtype of their weights.

    Args:
        first: both sides in the dtype of the run.
        reference: makes the reference in a dtype.
        port: makes the port in a dtype.
    """

    def __init__(self, first: Pair, reference: Callable[[str], Side], port: Callable[[str], PortSide]) -> None:
        self._held: dict[str, Pair | CaseResult] = {"": first}
        self._reference, self._port = reference, port

    def of(self, dtype: str) -> Pair | CaseResult:
        """Both sides, "" standing for the dtype of the run; the result of every case if one of them does not load.

        A dtype that diffusers does not load is refused, and nothing is asked of the port.
        """
        if dtype not in self._held:
            self._held[dtype] = self._load(dtype)
        return self._held[dtype]

    def _load(self, dtype: str) -> Pair | CaseResult:
        result = CaseResult(name="", description="", verdict="rejected alike")
        try:
            reference = self._reference(dtype)
        except Exception as error:
            return result.model_copy(update={"reference_error": rejection(error)})
        try:
            return reference, self._port(dtype)
        except Exception as error:
            return result.model_copy(update={"verdict": "differs", "port_error": rejection(error)})

    def close(self) -> None:
        """Unload every port."""
        for held in self._held.values():
            if not isinstance(held, CaseResult):
                held[1].close()
