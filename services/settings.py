"""The service's settings, and the only code that reads the environment.

Every setting is an environment variable with the prefix ``FASTERVLM_``; those of one stage have the stage's
name in front: ``FASTERVLM_ENCODER__MAX_REPLICAS=4``. :func:`settings_table` lists them all.
"""

import os
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import AliasChoices, Field, SecretStr, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

from fastervlm_video.config import (
    DEFAULT_KEEP_RATIO,
    DEFAULT_NUM_FRAMES,
    ImageLayout,
    MediaLimits,
    ModelOptions,
    SamplingParams,
)
from fastervlm_video.errors import InvalidRequestError
from services.setting_types import HostList, KeyList, NetworkList, RedisUrl
from services.stage_settings import STAGES, StageName, StageSettings
from services.tenants import Keyring, Tenant
from services.url_policy import UrlPolicy, parse_host_rule

__all__ = ["STAGES", "Settings", "StageName", "StageSettings", "load_settings", "settings_table"]

ENV_PREFIX = "FASTERVLM_"
_NESTED = "__"
_LIMITS = MediaLimits()
_GIB = 1024**3
_ONGOING_REQUESTS = 16  # of a replica whose settings do not say


def _default_runtime_dir() -> Path:
    return Path(tempfile.gettempdir()) / f"fastervlm-video-{os.getuid()}"


class Settings(BaseSettings):
    """All settings. The defaults suit one laptop; :func:`load_settings` gives the clearest errors."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter=_NESTED,
        nested_model_default_partial_update=True,
        env_ignore_empty=True,
        populate_by_name=True,
        frozen=True,
        extra="ignore",
        hide_input_in_errors=True,
    )

    model: str = Field(default="mini", min_length=1, description="`mini`, a checkpoint's folder, or a Hugging Face id.")
    revision: str | None = Field(default=None, description="Revision of a Hugging Face id.")
    device: str = Field(default="auto", min_length=1, description="`auto`, `cpu`, `cuda` or `cuda:N`.")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        default="auto",
        description="Precision of the weights; `auto` is float32 on a CPU and bfloat16 on a GPU.",
    )
    image_layout: Literal["hugging_face", "reference"] = Field(
        default=ImageLayout.HUGGING_FACE.value,
        description="Order of a picture's tokens in models that see it in several views (LLaVA-NeXT): that of Hugging "
        "Face, without padding, or that of the paper's authors. The same for all replicas.",
    )
    frame_label: str = Field(
        default="",
        description="Text before each frame of a video in models to which it is so many pictures, `{n}` being its "
        "number, such as `Frame {n}: `. The same for all replicas.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="Least severe log level."
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="Lines of the stages' logs: `text`, or `json`, an object each."
    )
    metrics_port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="Port of the metrics page, on all interfaces, of a Ray that the service starts itself; unset: any "
        "free one.",
    )

    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(default=8000, ge=1, le=65535, description="Port to listen on.")
    runtime_dir: Path = Field(
        default_factory=_default_runtime_dir,
        description="Private folder for sockets, temporary files and the default blob store; "
        "unset: `fastervlm-video-<uid>` in the system's temporary folder. Variables in it (`$SCRATCH`) are those "
        "of each machine.",
    )

    api_keys: KeyList = Field(
        default=(),
        repr=False,
        description="Keys that open `/v1`, each with its tenant: `key:tenant` or `sha256:<digest of the key>:tenant`, "
        "separated by commas. Neither these nor a file: no key is asked for.",
    )
    api_keys_file: Path | None = Field(
        default=None, description="File with more of them, one per line; changes are taken over within seconds."
    )

    redis_url: RedisUrl = Field(
        default=None,
        repr=False,
        validation_alias=AliasChoices(f"{ENV_PREFIX}REDIS_URL", "REDIS_URL"),
        description="`redis://`, `rediss://` or `unix://` URL, or `off`; `REDIS_URL` is read too. Unset: a Redis of "
        "our own.",
    )
    cache_dtype: Literal["float16", "int8"] = Field(
        default="float16",
        description="How tokens are stored; `int8` takes half the room, and each number may be off by 1/254 of its "
        "token's largest. The same for all replicas.",
    )
    cache_ttl_seconds: float = Field(default=24 * 3600.0, gt=0, description="Lifetime of cached tokens.")
    cache_max_memory_bytes: int = Field(default=_GIB // 2, ge=1024**2, description="Memory of the Redis of our own.")
    tenant_salt: SecretStr = Field(
        default=SecretStr(""), description="Mixed into cache keys, so that services sharing a Redis share no entries."
    )

    blob_url: str | None = Field(
        default=None,
        description="fsspec location of uploads, such as `s3://bucket/path`; unset: a folder in `runtime_dir`.",
    )
    blob_quota_bytes: int = Field(default=10 * _GIB, ge=1, description="Bytes of uploads kept.")
    blob_ttl_seconds: float = Field(default=24 * 3600.0, gt=0, description="Lifetime of an upload.")

    default_keep_ratio: float = Field(
        default=DEFAULT_KEEP_RATIO, gt=0, le=1, description="Share of visual tokens kept if a request does not say."
    )
    min_keep_ratio: float = Field(default=0.01, gt=0, le=1, description="Smallest share a request may ask for.")
    default_num_frames: int = Field(default=DEFAULT_NUM_FRAMES, ge=1, description="Frames looked at, by default.")
    max_num_frames: int = Field(default=_LIMITS.max_num_frames, ge=1, description="Most frames a request may ask for.")
    max_question_chars: int = Field(default=4000, ge=1, description="Longest question, or message of a conversation.")
    default_answer_tokens: int = Field(
        default=SamplingParams().max_tokens, ge=1, description="Longest answer, by default."
    )
    max_answer_tokens: int = Field(default=1024, ge=1, description="Longest answer a request may ask for.")

    max_upload_bytes: int = Field(default=_LIMITS.max_bytes, ge=1, description="Largest file, uploaded or fetched.")
    max_inline_bytes: int = Field(
        default=16 * 1024**2, ge=1, description="Largest file inside a chat request, as a `data:` URL."
    )
    max_duration_seconds: float = Field(default=_LIMITS.max_duration_seconds, gt=0, description="Longest video.")
    max_pixels_per_frame: int = Field(
        default=_LIMITS.max_pixels_per_frame, ge=1, description="Largest frame or picture, width times height."
    )
    decode_timeout_seconds: float = Field(default=_LIMITS.timeout_seconds, gt=0, description="Time limit of a decode.")
    decode_memory_bytes: int = Field(
        default=_LIMITS.memory_bytes, ge=64 * 1024**2, description="Address space of the process that decodes."
    )
    upload_timeout_seconds: float = Field(default=300.0, gt=0, description="Time limit for receiving a file.")
    request_timeout_seconds: float = Field(
        default=120.0, gt=0, description="Time limit for an answer, once the file is there."
    )

    graceful_shutdown_seconds: float | None = Field(
        default=None,
        ge=0,
        description="How long a replica that is taken away may finish what it has begun; unset: as long as that may "
        "take, or 5 s where the service has a Ray of its own.",
    )
    max_in_flight_requests: int = Field(
        default=64, ge=1, description="Requests one Api replica has under way; more are answered 429."
    )
    max_batch_frames: int = Field(
        default=32, ge=1, description="Frames, or views of pictures, encoded in one forward pass."
    )
    encoder_target_frames: int = Field(
        default=64,
        ge=1,
        description="Frames, waiting and running, for each replica of the encoder: with more, replicas are added.",
    )
    generator_target_tokens: int = Field(
        default=4096,
        ge=1,
        description="Tokens, of prompts and of answers asked for, for each replica of the generator: with more, there "
        "will be more replicas.",
    )
    scaling_look_back_seconds: float = Field(
        default=30.0, ge=1, description="Time over which the load is averaged that replicas are added or taken away by."
    )
    encode_batch_wait_seconds: float = Field(
        default=0.005, ge=0, le=1, description="How long the encoder waits for more frames to join a pass."
    )
    encoder_compile: bool = Field(
        default=False,
        description="Whether the encoder compiles the tower with `torch.compile` when it starts, which takes minutes; "
        "where that fails it says so in its log and does without.",
    )
    generator_max_batch_size: int = Field(default=8, ge=1, description="Answers generated side by side.")
    max_concurrent_uploads: int = Field(
        default=16, ge=1, description="Uploads received at a time, by each Api replica and each HTTP proxy."
    )
    max_upload_bytes_per_second: int = Field(
        default=64 * 1024**2, ge=64 * 1024, description="Rate at which the HTTP proxy lets one request body in."
    )
    generator_max_queue: int = Field(default=64, ge=0, description="Requests waiting for a place in that batch.")
    generator_max_batch_tokens: int = Field(
        default=2048,
        ge=1,
        description="Tokens in one forward pass of the generator; a longer prompt takes several, and others go on "
        "between them.",
    )
    generator_kv_cache_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Tokens whose keys and values a generator keeps, for answers under way and for videos asked about "
        "before; unset: what a full batch of the model's longest prompts needs, within a share of the free memory.",
    )
    generator_visual_rows: int | None = Field(
        default=None,
        ge=1,
        description="Visual tokens that a generator keeps embedded; unset: as many as it keeps keys and values of.",
    )

    video_url_allowed_hosts: HostList = Field(
        default=(),
        description="Hosts a `video_url` or `image_url` may name: `host`, `*.example.com`, each with `:port` if it is "
        "not the scheme's own; separated by commas. Empty: nothing is fetched.",
    )
    video_url_allowed_networks: NetworkList = Field(
        default=(), description="Networks such as `10.1.0.0/16` that such a URL may reach although not public."
    )
    video_url_max_redirects: int = Field(default=3, ge=0, le=20, description="Redirects followed, each one checked.")

    api: StageSettings = StageSettings(max_replicas=2, max_ongoing_requests=128, num_cpus=0.1)
    decoder: StageSettings = StageSettings(max_replicas=2, max_ongoing_requests=2)
    encoder: StageSettings = StageSettings(max_ongoing_requests=64)
    generator: StageSettings = StageSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _ordered(self, "min_keep_ratio", "default_keep_ratio")
        _ordered(self, "default_num_frames", "max_num_frames")
        _ordered(self, "default_answer_tokens", "max_answer_tokens")
        _ordered(self, "decode_timeout_seconds", "request_timeout_seconds")
        _ordered(self, "max_upload_bytes", "blob_quota_bytes")
        return self

    def most_ongoing_requests(self, name: StageName) -> int:
        """What one replica of a stage works on at a time.

        A Generator is not given more than its engine would take, and by default as much as keeps the next batch
        waiting while one runs: what a replica has been given does not go to another one that has nothing to do.
        """
        given = self.stage(name).max_ongoing_requests
        if name != "generator":
            return given or _ONGOING_REQUESTS
        most = self.generator_max_batch_size + self.generator_max_queue
        return min(given or 2 * self.generator_max_batch_size, most)

    def stage(self, name: StageName) -> StageSettings:
        """One stage's settings by its name."""
        found: StageSettings = getattr(self, name)
        return found

    @property
    def salt(self) -> bytes:
        """``tenant_salt`` as cache keys take it."""
        return self.tenant_salt.get_secret_value().encode()

    def keyring(self) -> Keyring:
        """The API keys, those in the file included.

        Raises:
            InvalidRequestError: the file cannot be used, or a key stands for two tenants.
        """
        return Keyring(self.api_keys, self.salt, file=self.api_keys_file)

    def tenant(self, name: str) -> Tenant:
        """A tenant by its name."""
        return Tenant.of(name, self.salt)

    @property
    def inline_limit_bytes(self) -> int:
        """Largest file that may come inside a chat request."""
        return min(self.max_inline_bytes, self.max_upload_bytes)

    def media_limits(self) -> MediaLimits:
        """The bounds for decoding."""
        return MediaLimits(
            max_bytes=self.max_upload_bytes,
            max_duration_seconds=self.max_duration_seconds,
            max_pixels_per_frame=self.max_pixels_per_frame,
            max_num_frames=self.max_num_frames,
            timeout_seconds=self.decode_timeout_seconds,
            memory_bytes=self.decode_memory_bytes,
        )

    def model_options(self) -> ModelOptions:
        """What is chosen about the model's architecture."""
        return ModelOptions(ImageLayout(self.image_layout), self.frame_label)

    def url_policy(self) -> UrlPolicy:
        """What ``video_url`` and ``image_url`` may name."""
        return UrlPolicy(
            allowed_hosts=tuple(parse_host_rule(text) for text in self.video_url_allowed_hosts),
            allowed_networks=self.video_url_allowed_networks,
            max_redirects=self.video_url_max_redirects,
        )

    def blob_location(self) -> str:
        """``blob_url``, or the default folder as a URL."""
        return self.blob_url or (self._local_dir() / "blobs").as_uri()

    def _local_dir(self) -> Path:
        """``runtime_dir`` on the machine that this is called on."""
        written_out = os.path.expandvars(self.runtime_dir)
        if "$" in written_out:
            raise InvalidRequestError(f"{ENV_PREFIX}RUNTIME_DIR={self.runtime_dir} names a variable that is not set")
        return Path(written_out).absolute()

    def prepare_runtime_dir(self) -> Path:
        """Make ``runtime_dir`` with mode 0700, or check that it is ours alone: its default place is shared.

        Raises:
            InvalidRequestError: it is a link, another user's, or open to others, or names a variable that is not set.
        """
        folder = self._local_dir()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise InvalidRequestError(
                f"{folder} must be a folder of the user {os.getuid()} with mode 0700, but is of user {found.st_uid} "
                f"with mode {stat.filemode(found.st_mode)}; set {ENV_PREFIX}RUNTIME_DIR to another place"
            )
        return folder


def _ordered(settings: Settings, smaller: str, larger: str) -> None:
    low, high = getattr(settings, smaller), getattr(settings, larger)
    if low > high:
        raise ValueError(f"{smaller}={low} is more than {larger}={high}")


def load_settings(**overrides: Any) -> Settings:
    """The settings from the environment, with ``overrides`` (field names) on top.

    Raises:
        InvalidRequestError: one is out of range, unreadable, or two contradict each other; the message names
            the environment variables.
    """
    try:
        return Settings(**overrides)
    except ValidationError as exc:
        raise InvalidRequestError("bad settings: " + "; ".join(map(_describe, exc.errors()))) from exc
    except ValueError as exc:  # pydantic-settings could not read a structured value as JSON
        raise InvalidRequestError(f"bad settings: {exc}") from exc


def _variable(location: Iterable[int | str]) -> str:
    name = _NESTED.join(part for part in location if isinstance(part, str)).upper()
    return ENV_PREFIX + name.removeprefix(ENV_PREFIX)  # an alias has the prefix already


def _describe(problem: Any) -> str:
    """One of pydantic's problems; secrets are not repeated."""
    location = tuple(problem["loc"])
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not location:
        return message
    name = _variable(location)
    secret = name.endswith(("REDIS_URL", "TENANT_SALT", "API_KEYS"))
    got = "" if secret or isinstance(problem["input"], dict) else f" (got {problem['input']!r})"
    return f"{name}: {message}{got}"


def settings_table() -> str:
    """All settings as a Markdown table: variable, default, description; a row for each."""
    rows = ["| variable | default | what it is |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        if isinstance(field.default, StageSettings):
            for inner_name, inner in StageSettings.model_fields.items():
                rows.append(_row((name, inner_name), getattr(field.default, inner_name), inner))
        else:
            rows.append(_row((name,), field.default if field.default_factory is None else None, field))
    return "\n".join(rows) + "\n"


def _row(location: tuple[str, ...], default: object, field: FieldInfo) -> str:
    if isinstance(default, SecretStr):
        default = default.get_secret_value()
    shown = (
        ""
        if default is None or default in ("", (), {})
        else f"`{default:g}`"
        if isinstance(default, float)
        else f"`{default}`"
    )
    return f"| `{_variable(location)}` | {shown} | {field.description} |"
