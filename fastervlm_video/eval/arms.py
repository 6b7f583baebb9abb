"""What is compared: a way to choose visual tokens, at a budget, with a seed.

Besides the registered methods, which any service can run, there are ways that only an experiment can:

========== =====================================================================================================
full       every visual token; what all others are measured against
blind      the same prompt without any visual token
oracle     the patches that the objects cover most; needs a data set that knows where its objects are
fastv:K    text attention after K layers of the language model (arXiv 2403.06764); ``fastv`` is K = 2
========== =====================================================================================================
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fastervlm_video.config import MEASURED_KEEP_RATIOS, PruneSpec
from fastervlm_video.errors import InvalidRequestError
from fastervlm_video.prune import get_method, method_names

__all__ = ["ALL_METHODS", "BLIND", "DEFAULT_KEEPS", "FASTV", "FULL", "ORACLE", "Arm", "check_arms", "make_arms"]

ALL_METHODS = "all"
FULL = "full"
BLIND = "blind"
ORACLE = "oracle"
FASTV = "fastv"
DEFAULT_KEEPS = MEASURED_KEEP_RATIOS
_FASTV_DEFAULT_LAYER = 2  # the paper's


@dataclass(frozen=True, slots=True)
class Arm:
    """One thing that is measured.

    Attributes:
        method: a registered method, or one of those above.
        keep: share of the visual tokens, in (0, 1]; 0 for ``blind``.
        seed: for methods that draw lots.
    """

    method: str
    keep: float
    seed: int = 0

    @property
    def name(self) -> str:
        """``cls_attention@0.1``; seeds of one method at one budget share it."""
        return f"{self.method}@{self.keep:g}"

    @property
    def fastv_layer(self) -> int | None:
        """K of a FastV arm, None of any other."""
        kind, _, layer = self.method.partition(":")
        return int(layer) if kind == FASTV else None

    @property
    def spec(self) -> PruneSpec:
        """How the tokens are pruned before the language model; those of the experimental ways not at all."""
        if self.method in {FULL, BLIND, ORACLE} or self.fastv_layer is not None:
            return PruneSpec(keep_ratio=1.0)
        return PruneSpec(self.method, keep_ratio=self.keep, seed=self.seed)


def make_arms(
    methods: Iterable[str],
    keeps: Sequence[float],
    *,
    seed: int = 0,
    random_seeds: int = 1,
    text_layers: int,
    knows_objects: bool,
    refused: Mapping[str, str] | None = None,
) -> tuple[Arm, ...]:
    """All combinations, always with ``full`` and ``blind``.

    With everything kept every method hands on the same tokens, so at 1 there is only ``full``.

    Args:
        methods: names; ``all`` stands for every registered method, ``fastv``, and ``oracle`` where objects are known,
            but for what is ``refused``.
        keeps: shares of the visual tokens, in (0, 1].
        seed: of the first draw of methods that draw lots.
        random_seeds: how many seeds those are averaged over.
        text_layers: of the language model.
        knows_objects: whether the data set has what ``oracle`` needs.
        refused: which of ``fastv`` and ``oracle`` the model cannot have, and why.

    Raises:
        InvalidRequestError: an unknown or refused method, a share or a number of seeds out of range.
    """
    check_arms(methods := tuple(methods), keeps)
    if random_seeds < 1:
        raise InvalidRequestError(f"random_seeds must be at least 1, got {random_seeds}")
    refused = dict(refused or {})
    if not knows_objects:
        refused[ORACLE] = "it needs a data set that knows where its objects are, such as 'mini'"
    arms = [Arm(FULL, 1.0, seed), Arm(BLIND, 0.0, seed)]
    for method in _expand(methods, text_layers, refused):
        seeded = method in method_names() and get_method(method).seeded
        seeds = range(seed, seed + random_seeds if seeded else seed + 1)
        arms += [Arm(method, keep, one) for keep in sorted(set(keeps), reverse=True) if keep < 1 for one in seeds]
    return tuple(dict.fromkeys(arms))


def check_arms(methods: Iterable[str], keeps: Iterable[float]) -> None:
    """What can be said of them without a model.

    Raises:
        InvalidRequestError: an unknown method, or a share out of range.
    """
    for name in methods:
        if name not in {ALL_METHODS, FULL, BLIND, ORACLE} and name.partition(":")[0] != FASTV:
            get_method(name)
    for keep in keeps:
        if not (math.isfinite(keep) and 0 < keep <= 1):
            raise InvalidRequestError(f"keep must be in (0, 1], got {keep}")


def _expand(methods: Iterable[str], text_layers: int, refused: Mapping[str, str]) -> list[str]:
    names: list[str] = []
    for name in methods:
        kind = name.partition(":")[0]
        if name == ALL_METHODS:
            names += method_names()
            names += [_fastv(FASTV, text_layers)] if text_layers > 1 and FASTV not in refused else []
            names += [ORACLE] if ORACLE not in refused else []
        elif kind in refused:
            raise InvalidRequestError(f"{name!r} cannot be measured here: {refused[kind]}")
        elif kind == FASTV:
            names.append(_fastv(name, text_layers))
        elif name not in {FULL, BLIND}:  # these are always there
            names.append(name)
    return list(dict.fromkeys(names))


def _fastv(name: str, text_layers: int) -> str:
    """The name with its layer, which is checked."""
    _, colon, layer = name.partition(":")
    if not colon:
        layer = str(min(_FASTV_DEFAULT_LAYER, text_layers - 1))
    if not layer.isdecimal() or int(layer) >= text_layers:
        raise InvalidRequestError(
            f"{name!r}: give fastv:K with K from 0 (before the first layer) to {text_layers - 1}, one less than the "
            "language model's layers"
        )
    return f"{FASTV}:{int(layer)}"
