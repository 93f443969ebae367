"""The thread that hands results from a worker to the engine, for a device without streams.

``WorkerProc._async_output_loop`` copies outputs on a side stream of the current accelerator. On a CPU there is none:
the thread dies on its first line and every request waits for ever. There is nothing to copy; packing is what is left.
"""

from __future__ import annotations

from typing import Any


def install() -> None:
    """Replace the loop; calling it again changes nothing."""
    from vllm_omni.diffusion.worker.diffusion_worker import WorkerProc

    WorkerProc._async_output_loop = output_loop


def output_loop(self: Any) -> None:
    """Pack each output into shared memory and announce it, until None arrives."""
    from vllm_omni.diffusion.data import AsyncDiffusionOutput, AsyncOutputKind
    from vllm_omni.diffusion.ipc import pack_diffusion_output_shm
    from vllm_omni.diffusion.worker.diffusion_worker import logger

    while (item := self._async_output_queue.get()) is not None:
        output, output_id, _ = item
        result: dict[str, Any]
        try:
            pack_diffusion_output_shm(output)
            result = {"output": output}
        except Exception as error:
            logger.exception("packing the output %s failed", output_id)
            result = {"error": f"packing the output failed: {error}"}
        try:
            self._enqueue_result(
                AsyncDiffusionOutput(kind=AsyncOutputKind.OUTPUT_READY, async_output_id=output_id, **result)
            )
        finally:
            with self._async_output_done:
                self._async_output_pending = max(0, self._async_output_pending - 1)
                self._async_output_done.notify_all()
