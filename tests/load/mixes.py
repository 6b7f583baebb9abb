"""How many users of each kind there are, in proportion."""

from collections.abc import Collection

__all__ = ["MIXES", "weights"]

MIXES: dict[str, dict[str, int]] = {
    "typical": {"cold": 2, "warm": 7, "stream": 4, "chat": 3, "upload": 2, "abuse": 2},
    "warm": {"warm": 3, "stream": 1},
    "cold": {"cold": 1},
    "hostile": {"abuse": 3, "upload": 1, "warm": 1},
}
"""By name."""


def weights(mix: str, kinds: Collection[str]) -> dict[str, int]:
    """Read a mix: its name, or ``warm=8,stream=2``.

    Returns:
        A weight for each of ``kinds``; 0 for those that do not take part.

    Raises:
        ValueError: it is neither, names another kind, or nobody would take part.
    """
    try:
        given = MIXES.get(mix) or {
            name: int(weight) for name, _, weight in (one.partition("=") for one in mix.split(","))
        }
    except ValueError as exc:
        raise ValueError(f"a mix is one of {sorted(MIXES)} or like warm=8,stream=2, not {mix!r}") from exc
    if unknown := given.keys() - set(kinds):
        raise ValueError(f"there are {sorted(kinds)}, not {sorted(unknown)}")
    if min(given.values()) < 0 or not any(given.values()):
        raise ValueError(f"weights must not be negative, and one of them above 0: {mix!r}")
    return {kind: given.get(kind, 0) for kind in kinds}
