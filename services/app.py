"""The Serve application: four deployments, bound together by a typed builder.

``build_app`` is what ``serve run services.app:build_app`` and a Kubernetes ``serveConfigV2`` import. Its
arguments are :class:`~services.settings.Settings`; what is not given comes from the environment.
"""

from collections.abc import Callable
from typing import Any, cast

import ray
from ray import serve
from ray.serve import Application, Deployment
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig

from services.api import Api
from services.decoder import Decoder
from services.encoder import Encoder
from services.generator import Generator
from services.live import LiveConfig
from services.logs import serve_logging
from services.scaling import FRAMES, TOKENS, WorkPolicy
from services.settings import Settings, StageName

__all__ = ["APP_NAME", "bind_stages", "build_app"]

APP_NAME = "fastervlm-video"

_GPU_STAGES: tuple[StageName, ...] = ("encoder", "generator")
_HEALTH_CHECK_SECONDS = 5.0
_MOST_BETWEEN_REPORTS_SECONDS = 10.0  # Serve's own; it is changed for short look-back periods only, with a warning
_USUAL_PROMPT_TOKENS = 256  # eight frames at the default ratio and a question
_LOOK_FOR_ROOM_SECONDS = 0.1  # where all Generators are full; Serve's own 0.5 s are as long as a short answer takes
_ALL_OTHERS = 1000  # more than there will be replicas: their number may change without a new deployment
_NEW_POLICY: Callable[..., AutoscalingPolicy] = AutoscalingPolicy  # its constructor is not annotated
_BY_SESSION = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"


def _automatic_gpus(name: StageName, settings: Settings, available_gpus: float) -> float:
    """A GPU for each replica of the two stages that can use one; half of it where there is only one."""
    if name not in _GPU_STAGES or settings.device == "cpu":
        return 0.0
    return min(1.0, available_gpus / len(_GPU_STAGES))


def _router(name: StageName) -> RequestRouterConfig:
    """How a caller picks a replica: the least loaded of two; for the Generator, the one that knows the video."""
    if name != "generator":
        return RequestRouterConfig()
    # Questions about one token set go to the replica that a hash ring names, and on along the ring when it is full.
    options: dict[str, Any] = {"max_backoff_s": _LOOK_FOR_ROOM_SECONDS}
    return RequestRouterConfig(
        request_router_class=cast("Any", _BY_SESSION),
        request_router_kwargs={"num_fallback_replicas": _ALL_OTHERS},
        **options,
    )


def _work_policy(unit: str, target: int, usual: int) -> AutoscalingPolicy:
    kwargs = {"unit": unit, "target_per_replica": target, "usual_per_request": usual}
    return _NEW_POLICY(policy_function=WorkPolicy, policy_kwargs=kwargs)


def _policy(name: StageName, settings: Settings) -> AutoscalingPolicy:
    """What a stage is scaled by: frames, tokens, or requests, which is Serve's own way."""
    if name == "encoder":
        return _work_policy(FRAMES, settings.encoder_target_frames, settings.default_num_frames)
    if name == "generator":
        usual = settings.default_answer_tokens + _USUAL_PROMPT_TOKENS
        return _work_policy(TOKENS, settings.generator_target_tokens, usual)
    return _NEW_POLICY()


def _target_requests(name: StageName, settings: Settings) -> float:
    """Requests for each replica, where there will be more replicas with more: half of what one takes."""
    takes = settings.most_ongoing_requests(name)
    if name == "api":  # it refuses questions beyond its own limit, which Serve knows nothing of
        takes = min(takes, settings.max_in_flight_requests)
    return max(1.0, takes / 2)


def _grace_seconds(name: StageName, settings: Settings) -> float:
    """How long a replica that is taken away, or replaced, may go on with what it has begun."""
    if settings.graceful_shutdown_seconds is not None:
        return settings.graceful_shutdown_seconds
    receiving = settings.upload_timeout_seconds if name == "api" else 0.0
    return receiving + settings.request_timeout_seconds


def _scaling(name: StageName, settings: Settings) -> AutoscalingConfig:
    stage, look_back = settings.stage(name), settings.scaling_look_back_seconds
    return AutoscalingConfig(
        min_replicas=stage.min_replicas,
        max_replicas=stage.max_replicas,
        target_ongoing_requests=_target_requests(name, settings),
        look_back_period_s=look_back,
        metrics_interval_s=min(_MOST_BETWEEN_REPORTS_SECONDS, look_back / 3),
        upscale_delay_s=stage.upscale_delay_seconds,
        downscale_delay_s=stage.downscale_delay_seconds,
        policy=_policy(name, settings),
    )


def _deployment(
    stage_class: Callable[..., Any], name: StageName, settings: Settings, available_gpus: float
) -> Deployment:
    """A stage with its options: replicas, resources, queue. All of them are decided here."""
    stage = settings.stage(name)
    # Cores are a scheduling matter to Ray; how many threads really compute is set by each stage itself.
    num_gpus = _automatic_gpus(name, settings, available_gpus) if stage.num_gpus is None else stage.num_gpus
    options: dict[str, Any] = {"num_cpus": stage.num_cpus, "num_gpus": num_gpus, "resources": dict(stage.resources)}
    decorate = serve.deployment(
        name=name.capitalize(),
        autoscaling_config=_scaling(name, settings),
        max_ongoing_requests=settings.most_ongoing_requests(name),
        request_router_config=_router(name),
        ray_actor_options=options,
        graceful_shutdown_timeout_s=_grace_seconds(name, settings),
        health_check_period_s=_HEALTH_CHECK_SECONDS,
        logging_config=serve_logging(settings),
    )
    return decorate(stage_class)


def bind_stages(settings: Settings, *, available_gpus: float) -> Application:
    """Bind the four stages. Needs no Ray cluster.

    Args:
        settings: of the service.
        available_gpus: GPUs of the cluster, shared out among the stages whose settings do not say.
    """
    decoder = _deployment(Decoder, "decoder", settings, available_gpus).bind(settings)
    encoder = _deployment(Encoder, "encoder", settings, available_gpus).bind(settings)
    generator = _deployment(Generator, "generator", settings, available_gpus).bind(settings)
    api = _deployment(serve.ingress()(Api), "api", settings, available_gpus).options(
        user_config=LiveConfig.from_settings(settings).model_dump()
    )
    return api.bind(settings, decoder, encoder, generator)


def build_app(args: Settings) -> Application:
    """The application for the Ray cluster that this process is connected to.

    Args:
        args: the settings.
    """
    available_gpus = float(cast("Any", ray).cluster_resources().get("GPU", 0.0))
    return bind_stages(args, available_gpus=available_gpus)
