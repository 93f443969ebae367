"""From a denoiser's config to its constructor's arguments."""

from __future__ import annotations

import inspect
from typing import Any

from porter.runtime.diffusion.data import TransformerConfig
from porter.runtime.logger import init_logger

logger = init_logger(__name__)


def get_transformer_config_kwargs(
    tf_model_config: TransformerConfig, model_class: type[Any] | None = None
) -> dict[str, Any]:
    """The config without its ``_internal`` keys, cut down to what ``model_class.__init__`` accepts.

    Keys that are left out are logged. A class that takes ``**kwargs`` gets only its named parameters too.
    """
    params = {key: value for key, value in tf_model_config.to_dict().items() if not key.startswith("_")}
    if model_class is None:
        return params
    accepted = {
        name
        for name, parameter in inspect.signature(model_class.__init__).parameters.items()
        if name != "self" and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }
    unknown = sorted(params.keys() - accepted)
    if unknown:
        logger.warning_once("%s takes no %s; left out", model_class.__name__, ", ".join(unknown))
    return {key: value for key, value in params.items() if key in accepted}
