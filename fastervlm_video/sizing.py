"""How many replicas of each stage a load needs. Pure arithmetic; what a stage takes comes from a measurement.

A replica works on one thing at a time, as far as its processor is concerned: a Decoder on one video, an Encoder on one
frame, a Generator on one forward pass. What a question keeps it busy for is::

    Decoder     misses only       frames * decode_frame_seconds
    Encoder     misses only       frames * encode_frame_seconds
    Generator   every question    question_seconds
                                  + prompt tokens not reused * prompt_token_seconds
                                  + answer tokens * step_seconds(batch) / batch

with ``step_seconds(batch) = step_base_seconds + batch * step_answer_seconds``: a step of a fuller batch takes longer,
but less for each of its answers. Questions per second times that is the load in *busy replicas*; no fewer than that
many, and some more, are needed, for whoever arrives while all are busy waits. How long follows from Erlang's formula::

    busy = rate * seconds      replicas >= busy / target      waiting = C(replicas, busy) * seconds / (replicas - busy)

and how many questions are in a stage at a time from Little's law: rate times (waiting + seconds).
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Self

from fastervlm_video.config import DEFAULT_KEEP_RATIO, DEFAULT_NUM_FRAMES
from fastervlm_video.errors import InvalidRequestError

__all__ = ["DEFAULT_TARGET", "Calibration", "Load", "Sizing", "StageSize", "erlang_c", "shipped_calibration", "size"]

DEFAULT_TARGET = 0.7
_SHIPPED = Path(__file__).parent / "calibrations" / "mini_cpu.json"


def _check(value: object, names: Mapping[str, tuple[float, float]]) -> None:
    """Raise InvalidRequestError unless each of these attributes is a number within its bounds, the ends included."""
    for name, (least, most) in names.items():
        number = getattr(value, name)
        if not (isinstance(number, int | float) and math.isfinite(number) and least <= number <= most):
            bounds = f"from {least:g} to {most:g}" if math.isfinite(most) else f"of at least {least:g}"
            raise InvalidRequestError(f"{name} must be a number {bounds}, got {number!r}")


@dataclass(frozen=True, slots=True)
class Calibration:
    """What the stages of one model take on one kind of machine, each alone on it.

    Attributes:
        model: which.
        machine: what it was measured on, in words.
        patches_per_frame: visual tokens of a frame before pruning.
        decode_frame_seconds: a Decoder's time for a frame.
        encode_frame_seconds: an Encoder's time for a frame, in passes of several.
        question_seconds: a Generator's time for a question, whatever its length.
        prompt_token_seconds: a Generator's time for each token of a prompt.
        step_base_seconds: a Generator's time for a step, whatever the batch.
        step_answer_seconds: what each answer in the batch adds to that.

    Raises:
        InvalidRequestError: a time is negative or no number, or all of a stage's are 0.
    """

    model: str
    machine: str
    patches_per_frame: int
    decode_frame_seconds: float
    encode_frame_seconds: float
    question_seconds: float
    prompt_token_seconds: float
    step_base_seconds: float
    step_answer_seconds: float

    def __post_init__(self) -> None:
        _check(self, {"patches_per_frame": (1, math.inf)})
        _check(self, {field.name: (0, math.inf) for field in fields(self) if field.name.endswith("_seconds")})
        if min(self.decode_frame_seconds, self.encode_frame_seconds, self.step_seconds(1)) <= 0:
            raise InvalidRequestError(f"a stage that takes no time cannot be sized: {self}")

    def step_seconds(self, batch: float) -> float:
        """Time of one step, in which each of so many answers gets a token."""
        return self.step_base_seconds + batch * self.step_answer_seconds

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what :meth:`to_json` has written.

        Raises:
            InvalidRequestError: it is something else.
        """
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError) as exc:
            raise InvalidRequestError(f"this is no calibration: {exc}") from exc

    def to_json(self) -> str:
        """As JSON, for people to read, too."""
        return json.dumps(asdict(self), indent=2) + "\n"


def shipped_calibration() -> Calibration:
    """Of the mini model, on a CPU."""
    return Calibration.from_json(_SHIPPED.read_text())


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of the service.

    Attributes:
        questions_per_second: that arrive, on average over the busiest minutes.
        hit_share: share of them whose visual tokens are cached.
        keep_ratio: share of the visual tokens kept.
        num_frames: frames of each video.
        text_tokens: tokens of a prompt beside the visual ones.
        answer_tokens: tokens of an answer.
        reuse_share: share of hits whose visual tokens' keys and values a Generator has, too, so that only the text of
            the prompt is computed.
        batch_size: most answers that a Generator makes side by side.
        target: share of the time that replicas may be busy; the rest is room for bursts.

    Raises:
        InvalidRequestError: a number is out of range.
    """

    questions_per_second: float
    hit_share: float = 0.0
    keep_ratio: float = DEFAULT_KEEP_RATIO
    num_frames: int = DEFAULT_NUM_FRAMES
    text_tokens: int = 32
    answer_tokens: int = 64
    reuse_share: float = 0.0
    batch_size: int = 8
    target: float = DEFAULT_TARGET

    def __post_init__(self) -> None:
        _check(self, {"questions_per_second": (0, math.inf), "hit_share": (0, 1), "reuse_share": (0, 1)})
        _check(self, {"num_frames": (1, math.inf), "text_tokens": (0, math.inf)})
        _check(self, {"answer_tokens": (1, math.inf), "batch_size": (1, math.inf)})
        if not 0 < self.keep_ratio <= 1:
            raise InvalidRequestError(f"keep_ratio must be above 0 and at most 1, got {self.keep_ratio!r}")
        if not 0 < self.target < 1:
            raise InvalidRequestError(f"target must be above 0 and below 1, got {self.target!r}")


@dataclass(frozen=True, slots=True)
class StageSize:
    """One stage under a load.

    Attributes:
        per_second: questions that reach it.
        busy_seconds: what each of them keeps a replica busy for.
        replicas: that are needed; 0 if nothing reaches it.
        utilisation: share of the time that they are busy.
        waiting_seconds: how long a question waits for one, on average.
        in_flight: questions waiting or being worked on, on average.
    """

    per_second: float
    busy_seconds: float
    replicas: int
    utilisation: float
    waiting_seconds: float
    in_flight: float


@dataclass(frozen=True, slots=True)
class Sizing:
    """All stages, and what a question then takes.

    Attributes:
        decoder: counted as if each decoded one video at a time, on a core of its own.
        encoder: as if each encoded one frame after the other.
        generator: ``in_flight`` counts answers, of which each replica makes up to ``batch_size`` side by side.
        visual_tokens: of a prompt.
        hit_seconds: from question to complete answer if its tokens are cached.
        miss_seconds: if they are not.
    """

    decoder: StageSize
    encoder: StageSize
    generator: StageSize
    visual_tokens: int
    hit_seconds: float
    miss_seconds: float


def erlang_c(servers: int, busy: float) -> float:
    """Share of arrivals that find all servers busy, where they come at random and take randomly long.

    What takes always the same time waits half as long; so this is the careful estimate.

    Args:
        servers: at least 1.
        busy: servers busy on average: arrivals per second times seconds for each.

    Returns:
        From 0 to 1; 1 where they cannot keep up.
    """
    if busy >= servers:
        return 1.0
    blocked = 1.0  # Erlang's B, by its recursion, which unlike the factorials does not overflow
    for count in range(1, servers + 1):
        blocked = busy * blocked / (count + busy * blocked)
    return blocked / (1 - busy / servers * (1 - blocked))


def size(load: Load, costs: Calibration) -> Sizing:
    """The replicas that a load needs, each stage by itself."""
    visual = load.num_frames * max(1, round(load.keep_ratio * costs.patches_per_frame))
    misses = load.questions_per_second * (1 - load.hit_share)
    decoder = _stage(misses, load.num_frames * costs.decode_frame_seconds, load.target)
    encoder = _stage(misses, load.num_frames * costs.encode_frame_seconds, load.target)
    computed = load.text_tokens + visual * (1 - load.hit_share * load.reuse_share)
    prompt_seconds = costs.question_seconds + computed * costs.prompt_token_seconds
    busy_seconds = prompt_seconds + load.answer_tokens * costs.step_seconds(load.batch_size) / load.batch_size
    generator = _stage(load.questions_per_second, busy_seconds, load.target)
    # As long as a replica has fewer answers than fit, each of them takes the steps of a batch that is not full.
    batch = min(load.batch_size, max(1.0, load.batch_size * generator.utilisation))
    answer_seconds = prompt_seconds + load.answer_tokens * costs.step_seconds(batch)
    hit_seconds = generator.waiting_seconds + answer_seconds
    before = sum(stage.waiting_seconds + stage.busy_seconds for stage in (decoder, encoder))
    generator = replace(generator, in_flight=load.questions_per_second * hit_seconds)
    return Sizing(decoder, encoder, generator, visual, hit_seconds, before + hit_seconds)


def _stage(per_second: float, busy_seconds: float, target: float) -> StageSize:
    busy = per_second * busy_seconds
    if busy == 0:
        return StageSize(per_second, busy_seconds, 0, 0.0, 0.0, 0.0)
    replicas = math.ceil(busy / target - 1e-9)  # 7 / 0.7 is a little more than 10
    waiting = erlang_c(replicas, busy) * busy_seconds / (replicas - busy)
    return StageSize(
        per_second, busy_seconds, replicas, busy / replicas, waiting, per_second * (waiting + busy_seconds)
    )
