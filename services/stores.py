"""The token cache and the blob store as the settings describe them; each replica opens its own."""

from typing import TYPE_CHECKING

from services.blobs import BlobStore
from services.settings import Settings

if TYPE_CHECKING:
    from fastervlm_video.cache import TokenCache

__all__ = ["open_blob_store", "open_service_cache"]


def open_service_cache(settings: Settings) -> "TokenCache":
    """Redis at ``redis_url``, or the embedded one that all replicas on this machine share."""
    from fastervlm_video.cache import Storage, open_cache  # brings torch along, which the Decoder has no use for

    return open_cache(
        url=settings.redis_url,
        runtime_dir=settings.prepare_runtime_dir(),
        dtype=Storage(settings.cache_dtype),
        ttl_seconds=settings.cache_ttl_seconds,
        max_memory_bytes=settings.cache_max_memory_bytes,
    )


def open_blob_store(settings: Settings) -> BlobStore:
    """Where uploads are kept."""
    return BlobStore(
        settings.blob_location(),
        quota_bytes=settings.blob_quota_bytes,
        ttl_seconds=settings.blob_ttl_seconds,
        scratch_dir=settings.prepare_runtime_dir(),
    )
