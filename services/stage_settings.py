"""The settings of one stage, which every stage has."""

import math
import os
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

__all__ = ["STAGES", "StageName", "StageSettings"]

_RAYS_OWN_RESOURCES = frozenset({"CPU", "GPU", "memory", "object_store_memory"})

StageName = Literal["api", "decoder", "encoder", "generator"]
STAGES: tuple[StageName, ...] = ("api", "decoder", "encoder", "generator")


def _custom_resources(value: dict[str, float]) -> dict[str, float]:
    """Amounts by name, as Ray takes them: what it counts by itself has settings, or a meaning, of its own."""
    for name, amount in value.items():
        if not name or name in _RAYS_OWN_RESOURCES:
            raise ValueError(f"{name!r} is no custom resource; cores and GPUs are num_cpus and num_gpus")
        if not (0 < amount < math.inf and (amount <= 1 or amount.is_integer())):
            raise ValueError(f"{name} must be a whole number, or a fraction of 1, above 0 (got {amount:g})")
    return value


CustomResources = Annotated[dict[str, float], AfterValidator(_custom_resources)]


class StageSettings(BaseModel):
    """How one stage is deployed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_replicas: int = Field(default=1, ge=0, description="Fewest replicas; 0 lets an idle stage stop.")
    max_replicas: int = Field(default=1, ge=1, description="Most replicas.")
    max_ongoing_requests: int | None = Field(
        default=None,
        ge=1,
        description="Requests one replica works on at a time; others wait, or go to another one. Unset: 16; for the "
        "generator, twice `FASTERVLM_GENERATOR_MAX_BATCH_SIZE`.",
    )
    upscale_delay_seconds: float = Field(
        default=30.0, ge=0, description="How long there must be too much to do before replicas are added."
    )
    downscale_delay_seconds: float = Field(
        default=600.0, ge=0, description="How long there must be too little to do before replicas are taken away."
    )
    num_cpus: float = Field(default=0.2, ge=0, description="CPU cores reserved per replica (may be a fraction).")
    num_gpus: float | None = Field(
        default=None,
        ge=0,
        description="GPUs reserved per replica (may be a fraction); unset: the encoder and the generator share what "
        "there is, the others take none.",
    )
    resources: CustomResources = Field(
        default={},
        description='Custom Ray resources reserved per replica, as JSON such as `{"encoder": 1}`; it runs only on '
        "machines that offer them (`ray start --resources`).",
    )
    threads_per_replica: int | None = Field(
        default=None,
        ge=1,
        description="Compute threads per replica; unset: whole reserved cores, else half the machine's.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas={self.min_replicas} is more than max_replicas={self.max_replicas}")
        return self

    def threads(self) -> int:
        """Compute threads of a replica on the machine this is called on."""
        if self.threads_per_replica is not None:
            return self.threads_per_replica
        return int(self.num_cpus) if self.num_cpus >= 1 else max(1, len(os.sched_getaffinity(0)) // 2)
