"""Where the engine's side of porter logs: below vLLM-Omni's own logger, so that its lines stand among the engine's."""

from __future__ import annotations

import logging

logger = logging.getLogger("vllm_omni.porter")
