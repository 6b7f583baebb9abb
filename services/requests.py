"""From an untrusted request body to a checked question. Every limit is enforced here, before any work."""

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import httpx
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request

from fastervlm_video.config import FrameSampling, PruneSpec, SamplingParams
from fastervlm_video.errors import DeadlineExceededError, InvalidRequestError, UnsupportedMediaError
from fastervlm_video.prune import get_method
from services.blobs import BlobStore, StoredBlob, parse_file_id
from services.fetch import fetch_video
from services.live import LiveConfig
from services.schemas import AskRequest
from services.settings import Settings
from services.threads import finish_in_thread
from services.uploads import SpooledFile, parse_multipart

__all__ = ["Choices", "VideoIntake", "choose", "read_ask"]

_JSON = "application/json"
_JSON_SECONDS = 10.0
_MULTIPART = "multipart/form-data"


@dataclass(frozen=True, slots=True)
class Choices:
    """What a request asks for, defaults filled in and bounds checked."""

    sampling: FrameSampling
    prune: PruneSpec
    params: SamplingParams


def choose(ask: AskRequest, live: LiveConfig, patches_per_frame: int) -> Choices:
    """Fill in defaults and enforce the service's bounds.

    Raises:
        InvalidRequestError: a bound is exceeded or the parameters contradict each other.
    """
    if len(ask.question) > live.max_question_chars:
        raise InvalidRequestError(
            f"the question has {len(ask.question)} characters, more than the {live.max_question_chars} allowed"
        )
    num_frames = _at_most("num_frames", ask.num_frames or live.default_num_frames, live.max_num_frames)
    max_tokens = _at_most("max_tokens", ask.max_tokens or live.default_answer_tokens, live.max_answer_tokens)
    ratio = ask.keep_ratio if ask.keep_ratio or ask.keep_tokens else live.default_keep_ratio
    prune = PruneSpec(
        method=ask.method or live.default_method,
        keep_ratio=ratio,
        keep_tokens=ask.keep_tokens,
        keep_cls=ask.keep_cls,
    )
    if not get_method(prune.method).fixed_total:
        raise InvalidRequestError(f"{prune.method!r} keeps a number of tokens that depends on the video; use another")
    fewest = PruneSpec(keep_ratio=live.min_keep_ratio).tokens_per_frame(patches_per_frame)
    wanted = prune.tokens_per_frame(patches_per_frame)
    if wanted < fewest:
        raise InvalidRequestError(
            f"{wanted} tokens per frame are fewer than the {fewest} that this server's smallest keep_ratio of "
            f"{live.min_keep_ratio:g} stands for"
        )
    params = SamplingParams(max_tokens=max_tokens, temperature=ask.temperature, top_p=ask.top_p, seed=ask.seed)
    return Choices(FrameSampling(num_frames), prune, params)


def _at_most(name: str, value: int, limit: int) -> int:
    if value > limit:
        raise InvalidRequestError(f"{name}={value} is more than the {limit} that this server allows")
    return value


@asynccontextmanager
async def read_ask(request: Request, settings: Settings) -> AsyncIterator[tuple[AskRequest, SpooledFile | None]]:
    """Read a question from a JSON or multipart body; an uploaded file lives as long as the block.

    Raises:
        UnsupportedMediaError: the body is of another kind.
        RequestValidationError: a field is missing, unknown, or of the wrong kind.
        InvalidRequestError: the body is malformed, or does not name exactly one video.
        PayloadTooLargeError: the file is too large.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == _MULTIPART:
        async with parse_multipart(
            request, directory=settings.prepare_runtime_dir(), max_file_bytes=settings.max_upload_bytes
        ) as form:
            ask = _validated({name: value for name, value in form.fields.items() if value != ""})
            _check_one_video(ask, form.file)
            yield ask, form.file
    elif kind == _JSON:
        ask = _validated(await _read_json(request))
        _check_one_video(ask, None)
        yield ask, None
    else:
        raise UnsupportedMediaError(f"send the question as {_JSON} or {_MULTIPART}, not as {kind[:80] or 'nothing'!r}")


async def _read_json(request: Request) -> Any:
    try:
        async with asyncio.timeout(_JSON_SECONDS):  # it is small, and holds one of the places for questions
            return json.loads(await request.body())
    except TimeoutError as exc:
        raise DeadlineExceededError(f"the request body was not received within {_JSON_SECONDS:g} s") from exc
    except ClientDisconnect as exc:
        raise InvalidRequestError("the connection was closed before the request body was complete") from exc
    except (ValueError, RecursionError) as exc:
        raise InvalidRequestError(f"the body is not valid JSON: {exc}") from exc


def _validated(body: Any) -> AskRequest:
    try:
        return AskRequest.model_validate(body)
    except ValidationError as exc:
        problems = [{**problem, "loc": ("body", *problem["loc"])} for problem in exc.errors(include_url=False)]
        raise RequestValidationError(problems) from exc


def _check_one_video(ask: AskRequest, file: SpooledFile | None) -> None:
    given = [name for name, value in (("file", file), ("file_id", ask.file_id), ("video_url", ask.video_url)) if value]
    if len(given) != 1:
        raise InvalidRequestError(
            "name one video: a file_id, a video_url, or upload it as the multipart field `file`; "
            f"got {' and '.join(given) or 'none'}"
        )


class VideoIntake:
    """Brings the video of a question into the blob store, wherever it comes from.

    Args:
        settings: limits and URL policy.
        blobs: the store.
    """

    def __init__(self, settings: Settings, blobs: BlobStore) -> None:
        self._settings, self._blobs = settings, blobs
        self._policy = settings.url_policy()

    async def store(self, ask: AskRequest, file: SpooledFile | None) -> StoredBlob:
        """The stored video that a question is about.

        Raises:
            VideoNotFoundError: no file has this id.
            UrlNotAllowedError: the URL is not allowed.
            PayloadTooLargeError: the video is too large.
            StorageFullError: the store is full.
        """
        if file is not None:
            return await self.put(file.file, file.filename)
        if ask.file_id:
            return await asyncio.to_thread(self._blobs.stat, parse_file_id(ask.file_id))
        assert ask.video_url  # read_ask saw to it that one of the three is there
        with tempfile.TemporaryFile(dir=self._scratch_dir()) as sink:
            await fetch_video(
                ask.video_url,
                policy=self._policy,
                limit_bytes=self._settings.max_upload_bytes,
                timeout_seconds=self._settings.upload_timeout_seconds,
                sink=cast("BinaryIO", sink),
            )
            sink.seek(0)
            return await self.put(cast("BinaryIO", sink), httpx.URL(ask.video_url).path)

    async def put(self, file: BinaryIO, filename: str) -> StoredBlob:
        """Store a local file.

        Raises:
            StorageFullError: the store is full.
        """
        return await finish_in_thread(self._blobs.put, file, filename=filename)

    def _scratch_dir(self) -> Path:
        return self._settings.prepare_runtime_dir()
