"""Classifier-free guidance as a mixin: the methods of vllm-omni's, run one branch after the other."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch

Prediction: TypeAlias = torch.Tensor | tuple[torch.Tensor, ...]


def _as_tuple(prediction: Prediction) -> tuple[torch.Tensor, ...]:
    return prediction if isinstance(prediction, tuple) else (prediction,)


def _from_tuple(prediction: tuple[torch.Tensor, ...]) -> Prediction:
    return prediction[0] if len(prediction) == 1 else prediction


class CFGParallelMixin:
    """Guided noise prediction and scheduler steps.

    ``cfg_normalize`` is True by default in ``predict_noise_maybe_with_cfg`` and False elsewhere, as in vllm-omni:
    pass it explicitly.
    """

    def predict_noise_maybe_with_cfg(
        self,
        do_true_cfg: bool,
        true_cfg_scale: float,
        positive_kwargs: dict[str, Any],
        negative_kwargs: dict[str, Any] | None,
        cfg_normalize: bool = True,
        output_slice: int | None = None,
        kwargs: dict[str, Any] | None = None,
    ) -> Prediction:
        """Prediction for the positive arguments, guided away from the negative ones if ``do_true_cfg``.

        ``output_slice`` cuts each prediction to its first tokens (dimension 1); ``kwargs`` goes to
        ``combine_cfg_noise`` if given.
        """
        positive = self._predict_sliced(positive_kwargs, output_slice)
        if not do_true_cfg:
            return positive
        negative = self._predict_sliced(negative_kwargs or {}, output_slice)
        context = {} if kwargs is None else {"kwargs": kwargs}
        return self.combine_cfg_noise(positive, negative, true_cfg_scale, cfg_normalize, **context)

    def predict_noise_with_multi_branch_cfg(
        self,
        do_true_cfg: bool,
        true_cfg_scale: float | dict[str, float],
        branches_kwargs: list[dict[str, Any]],
        cfg_normalize: bool = False,
        output_slice: int | None = None,
    ) -> Prediction:
        """Like ``predict_noise_maybe_with_cfg`` for any number of branches, the positive one first."""
        if not do_true_cfg:
            return self._predict_sliced(branches_kwargs[0], output_slice)
        predictions = [self._predict_sliced(arguments, output_slice) for arguments in branches_kwargs]
        return self.combine_multi_branch_cfg_noise(predictions, true_cfg_scale, cfg_normalize)

    def combine_cfg_noise(
        self,
        positive_noise_pred: Prediction,
        negative_noise_pred: Prediction,
        true_cfg_scale: float,
        cfg_normalize: bool = False,
        kwargs: dict[str, Any] | None = None,
    ) -> Prediction:
        """``negative + scale * (positive - negative)``, element by element; then rescaled if ``cfg_normalize``."""
        del kwargs
        combined = []
        for positive, negative in zip(_as_tuple(positive_noise_pred), _as_tuple(negative_noise_pred), strict=True):
            guided = negative + true_cfg_scale * (positive - negative)
            combined.append(self.cfg_normalize_function(positive, guided) if cfg_normalize else guided)
        return _from_tuple(tuple(combined))

    def combine_multi_branch_cfg_noise(
        self,
        predictions: list[Prediction],
        true_cfg_scale: float | dict[str, float],
        cfg_normalize: bool = False,
    ) -> Prediction:
        """Combine the branches. This one knows two; a model with more overrides it.

        Raises:
            NotImplementedError: there are more than two branches, or several scales.
        """
        if len(predictions) != 2 or isinstance(true_cfg_scale, dict):
            raise NotImplementedError(f"{type(self).__name__} must override combine_multi_branch_cfg_noise")
        # Not through combine_cfg_noise: a model may override that one for its own two-branch form.
        return CFGParallelMixin.combine_cfg_noise(self, predictions[0], predictions[1], true_cfg_scale, cfg_normalize)

    def cfg_normalize_function(self, noise_pred: torch.Tensor, comb_pred: torch.Tensor) -> torch.Tensor:
        """``comb_pred`` rescaled so that each token has the norm it has in ``noise_pred``."""
        cond_norm = torch.norm(noise_pred, dim=-1, keepdim=True)
        noise_norm = torch.norm(comb_pred, dim=-1, keepdim=True)
        return comb_pred * (cond_norm / noise_norm)

    def predict_noise(self, *args: Any, **kwargs: Any) -> Prediction:
        """One forward of ``self.transformer``: the first element of what it returns."""
        return self.transformer(*args, **kwargs)[0]  # type: ignore[attr-defined]

    def diffuse(self, *args: Any, **kwargs: Any) -> Any:
        """The denoising loop, which each pipeline writes itself."""
        raise NotImplementedError(f"{type(self).__name__} must implement diffuse")

    def check_cfg_parallel_validity(self, true_cfg_scale: float, has_neg_prompt: bool) -> bool:
        """Whether guidance could run in parallel; in one process there is nothing to check."""
        del true_cfg_scale, has_neg_prompt
        return True

    def scheduler_step(
        self,
        noise_pred: Any,
        t: Any,
        latents: Any,
        per_request_scheduler: Any | None = None,
        generator: torch.Generator | None = None,
    ) -> Any:
        """One step of ``per_request_scheduler``, else of ``self.scheduler``: the updated latents.

        Raises:
            ValueError: there is no scheduler.
        """
        scheduler = getattr(self, "scheduler", None) if per_request_scheduler is None else per_request_scheduler
        if scheduler is None:
            raise ValueError("no scheduler: set self.scheduler or pass per_request_scheduler")
        extra = {} if generator is None else {"generator": generator}
        return scheduler.step(noise_pred, t, latents, return_dict=False, **extra)[0]

    def scheduler_step_maybe_with_cfg(
        self,
        noise_pred: Any,
        t: Any,
        latents: Any,
        do_true_cfg: bool,
        per_request_scheduler: Any | None = None,
        generator: torch.Generator | None = None,
    ) -> Any:
        """Same as ``scheduler_step``: one process has nothing to exchange."""
        del do_true_cfg
        return self.scheduler_step(noise_pred, t, latents, per_request_scheduler, generator)

    def _predict_sliced(self, arguments: dict[str, Any], output_slice: int | None) -> Prediction:
        prediction = self.predict_noise(**arguments)
        if output_slice is None:
            return prediction
        return _from_tuple(tuple(part[:, :output_slice] for part in _as_tuple(prediction)))
