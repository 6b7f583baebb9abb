"""Settings that may change while the service runs, through Serve's ``user_config``."""

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fastervlm_video.config import DEFAULT_METHOD
from fastervlm_video.prune import get_method
from services.settings import Settings

__all__ = ["LiveConfig"]


class LiveConfig(BaseModel):
    """Defaults and bounds of requests. Redeploying with other values restarts no replica."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    default_method: str = DEFAULT_METHOD
    default_keep_ratio: float = Field(gt=0, le=1)
    min_keep_ratio: float = Field(gt=0, le=1)
    default_num_frames: int = Field(ge=1)
    max_num_frames: int = Field(ge=1)
    max_question_chars: int = Field(ge=1)
    default_answer_tokens: int = Field(ge=1)
    max_answer_tokens: int = Field(ge=1)

    @classmethod
    def from_settings(cls, settings: Settings) -> "LiveConfig":
        """The values at start."""
        names = cls.model_fields.keys() & type(settings).model_fields.keys()
        return cls(**{name: getattr(settings, name) for name in names})

    @model_validator(mode="after")
    def _consistent(self) -> "LiveConfig":
        for low, high in (
            ("min_keep_ratio", "default_keep_ratio"),
            ("default_num_frames", "max_num_frames"),
            ("default_answer_tokens", "max_answer_tokens"),
        ):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"{low}={getattr(self, low)} is more than {high}={getattr(self, high)}")
        get_method(self.default_method)
        return self
