"""Whether a method keeps its promises, so that a mistake in one is told as such, with the method's name."""

import torch

from fastervlm_video.errors import InvalidRequestError
from fastervlm_video.prune.base import PruneInputs, PruneMethod, Selection

__all__ = ["check_selection"]

_OURS = __name__.partition(".")[0]


def check_selection(method: PruneMethod, inputs: PruneInputs, selection: Selection) -> None:
    """Hold what a method has chosen against :class:`Selection` and the method's own promises.

    The values of indices and scores are looked at if the method is from another package: on a GPU that waits for them,
    and tests hold our own to it.

    Args:
        method: whose choice it is.
        inputs: what it was given.
        selection: what it gave back.

    Raises:
        InvalidRequestError: it is not as promised.
    """
    try:
        _check_counts(method, inputs, selection)
        _check_tensors(inputs, selection)
        if getattr(method.select, "__module__", "").partition(".")[0] != _OURS:
            _check_values(inputs, selection)
    except ValueError as error:
        raise InvalidRequestError(
            f"the pruning method {method.name!r} does not keep its promises: {error}", param="method"
        ) from error


def _check_counts(method: PruneMethod, inputs: PruneInputs, selection: Selection) -> None:
    _require(isinstance(selection, Selection), f"it must return a Selection, not {type(selection).__name__}")
    frames, patches, budget, counts = (
        inputs.num_frames,
        inputs.patches_per_frame,
        inputs.tokens_per_frame,
        selection.counts,
    )
    whole = len(counts) == frames and all(type(count) is int and 0 <= count <= patches for count in counts)
    _require(whole, f"counts must be {frames} whole numbers from 0 to {patches}, got {counts}")
    fixed = not method.fixed_count or set(counts) == {budget}
    _require(fixed, f"it has a fixed count, so counts must all be {budget}, got {counts}")
    adds_up = not method.fixed_total or sum(counts) == frames * budget
    _require(adds_up, f"it has a fixed total, so counts must add up to {frames * budget}, got {counts}")


def _check_tensors(inputs: PruneInputs, selection: Selection) -> None:
    total, device = sum(selection.counts), inputs.device
    for name, tensor, dtype in (
        ("indices", selection.indices, torch.int64),
        ("scores", selection.scores, torch.float32),
    ):
        found = f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
        fits = (tensor.dtype, tensor.shape, tensor.device.type) == (dtype, (total,), device.type)
        _require(fits, f"{name} must be {dtype} [{total}] on {device}, got {found}")
    features = selection.features
    if features is not None:
        fits = features.is_floating_point() and features.ndim == 2 and len(features) == total
        _require(fits, f"features must be floating [{total}, C], got {features.dtype} {list(features.shape)}")


def _check_values(inputs: PruneInputs, selection: Selection) -> None:
    indices, scores, patches = selection.indices, selection.scores, inputs.patches_per_frame
    inside = (indices >= 0) & (indices < patches)
    _require(bool(inside.all()), f"indices must be in [0, {patches}), got {indices[~inside].tolist()}")
    counts = torch.tensor(selection.counts, device=indices.device)
    frames = torch.arange(len(counts), device=indices.device).repeat_interleave(counts)
    once = len(torch.unique(frames * patches + indices)) == len(indices)
    _require(once, "it has chosen a patch of a frame twice")
    falls = (scores[:-1] > scores[1:]) | ((scores[:-1] == scores[1:]) & (indices[:-1] < indices[1:]))
    in_order = bool((falls | (frames[:-1] != frames[1:])).all()) and bool(scores.isfinite().all())
    _require(in_order, "in each frame the best score must come first, of equal ones the smaller index; all finite")


def _require(ok: bool, promise: str) -> None:
    if not ok:
        raise ValueError(promise)
