import errno
import hashlib
import io
import json
import multiprocessing
import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

import fsspec
import pytest

from fastervlm_video.errors import InvalidRequestError, StorageFullError, UnavailableError, VideoNotFoundError
from services.blobs import ABANDONED_SECONDS, OVERHEAD_BYTES, BlobStore, StoredBlob, file_id, parse_file_id
from tests.services.s3 import BUCKET, s3_server

TTL = 100.0
PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)
QUOTA = 1024**2


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as found, pytest.MonkeyPatch.context() as patch:
        for variable, value in found.items():
            patch.setenv(variable, value)
        yield f"s3://{BUCKET}"


@pytest.fixture(params=["file", "memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "file":
        yield (tmp_path / "blobs").as_uri()
        return
    if request.param == "s3":
        yield f"{request.getfixturevalue('s3')}/store-{uuid4().hex}/blobs"
        return
    name = f"memory://store-{uuid4().hex}/blobs"
    yield name
    fs = fsspec.filesystem("memory")
    if fs.exists(name):
        fs.rm(name, recursive=True)


@pytest.fixture
def store(url: str, clock: Clock) -> BlobStore:
    return BlobStore(url, quota_bytes=QUOTA, ttl_seconds=TTL, clock=clock)


@pytest.fixture
def local(tmp_path: Path, clock: Clock) -> BlobStore:
    return BlobStore((tmp_path / "blobs").as_uri(), quota_bytes=QUOTA, ttl_seconds=TTL, clock=clock)


def put(store: BlobStore, data: bytes, filename: str = "a.mp4") -> StoredBlob:
    return store.put(io.BytesIO(data), filename=filename)


def get(store: BlobStore, digest: str) -> bytes:
    with store.open_local(digest) as file:
        return file.read()


def paths(url: str) -> list[str]:
    fs, root = fsspec.url_to_fs(url)
    return sorted(str(path).removeprefix(root + "/") for path in fs.find(root))


def digests(url: str) -> list[str]:
    return [path.rpartition("/")[2] for path in paths(url) if path.startswith("objects/") and "." not in path]


@pytest.mark.parametrize("size_bytes", [0, 1, 300_000])
def test_content_comes_back_with_what_is_known_of_it(store: BlobStore, size_bytes: int, clock: Clock) -> None:
    data = random.Random(1).randbytes(size_bytes)
    blob = put(store, data)
    assert blob == StoredBlob(
        hashlib.sha256(data).hexdigest(), size_bytes, int(clock.now), int(clock.now + TTL), "a.mp4"
    )
    assert store.stat(blob.digest) == blob
    with store.open_local(blob.digest) as file:
        assert file.read() == data
        assert file.seek(-size_bytes // 2, os.SEEK_END) >= 0
        assert file.tell() == size_bytes - (size_bytes + 1) // 2
    assert store.used_bytes() == size_bytes + OVERHEAD_BYTES


def test_the_same_bytes_are_stored_once_and_renewed(store: BlobStore, url: str, clock: Clock) -> None:
    first = put(store, b"same")
    before = paths(url)
    clock.now += 60
    second = put(store, b"same", "other.mp4")
    assert paths(url) == before
    assert store.used_bytes() == 4 + OVERHEAD_BYTES
    assert (second.created_at, second.filename) == (first.created_at, "a.mp4")
    assert second.expires_at == first.expires_at + 60
    assert store.stat(first.digest) == second


def test_a_stream_is_read_from_where_it_stands(store: BlobStore) -> None:
    stream = io.BytesIO(b"skipped|kept")
    stream.seek(8)
    assert get(store, store.put(stream, filename="x").digest) == b"kept"


def test_deleting(store: BlobStore, url: str) -> None:
    blob = put(store, b"gone")
    assert store.delete(blob.digest) is True
    assert store.delete(blob.digest) is False
    assert digests(url) == []
    assert store.used_bytes() == 0
    with pytest.raises(VideoNotFoundError, match=blob.digest):
        store.stat(blob.digest)
    with pytest.raises(VideoNotFoundError), store.open_local(blob.digest):
        pass
    assert get(store, put(store, b"gone").digest) == b"gone"


def test_an_open_file_outlives_its_deletion(store: BlobStore) -> None:
    blob = put(store, b"still here")
    with store.open_local(blob.digest) as file:
        store.delete(blob.digest)
        assert file.read() == b"still here"


@pytest.mark.parametrize(
    "digest", ["", "../../etc/passwd", "A" * 64, "a" * 63, "a" * 65, "a" * 64 + "\n", "/" + "a" * 63, "٣" * 64]
)
def test_only_digests_reach_a_path(store: BlobStore, url: str, digest: str) -> None:
    before = paths(url)
    actions: list[Callable[[str], object]] = [store.stat, store.delete, lambda d: get(store, d)]
    for action in actions:
        with pytest.raises(VideoNotFoundError):
            action(digest)
    with pytest.raises(VideoNotFoundError, match="file-<64"):
        parse_file_id(f"file-{digest}")
    assert paths(url) == before


def test_file_ids() -> None:
    digest = hashlib.sha256(b"x").hexdigest()
    assert parse_file_id(file_id(digest)) == digest
    assert file_id(digest) == f"file-{digest}"
    for bad in (digest, f"FILE-{digest}", f"file-file-{digest}", f" file-{digest}"):
        with pytest.raises(VideoNotFoundError):
            parse_file_id(bad)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("/etc/passwd", "passwd"),
        ("C:\\clips\\a.mp4", "a.mp4"),
        ("a\x1b[31m\r\n.mp4", "a[31m.mp4"),
        ("x" * 300, "x" * 255),
        ("", ""),
    ],
)
def test_file_names_are_for_show_only(store: BlobStore, given: str, kept: str) -> None:
    assert put(store, b"n", given).filename == kept


def test_expired_blobs_are_gone_and_swept(store: BlobStore, url: str, clock: Clock) -> None:
    old, renewed = put(store, b"old"), put(store, b"renewed")
    clock.now += 60
    put(store, b"renewed")
    young = put(store, b"young")
    clock.now += 50
    with pytest.raises(VideoNotFoundError, match="expired"):
        store.stat(old.digest)
    assert store.delete("0" * 64) is False
    assert [blob.digest for blob in store.sweep()] == [old.digest]
    assert store.sweep() == []
    assert digests(url) == sorted([renewed.digest, young.digest])
    assert store.used_bytes() == len(b"renewedyoung") + 2 * OVERHEAD_BYTES


def test_a_sweep_does_not_hold_up_uploads_and_spares_what_is_renewed_meanwhile(
    store: BlobStore, url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, renewed = put(store, b"old"), put(store, b"renewed")
    clock.now += TTL + 1
    read_each = store._files.read_each

    def read_and_be_overtaken(paths: list[str], limit_bytes: int) -> dict[str, bytes]:
        found = read_each(paths, limit_bytes)
        upload = threading.Thread(target=put, args=(store, b"renewed"), daemon=True)
        upload.start()
        upload.join(30)
        assert not upload.is_alive(), "the upload waits for the sweep"
        return found

    monkeypatch.setattr(store._files, "read_each", read_and_be_overtaken)
    assert [blob.digest for blob in store.sweep()] == [old.digest]
    assert digests(url) == [renewed.digest]
    assert store.used_bytes() == len(b"renewed") + OVERHEAD_BYTES


def test_what_expired_and_made_room_is_reported_by_the_next_sweep(store: BlobStore, clock: Clock) -> None:
    old = put(store, b"x" * (QUOTA - 2 * OVERHEAD_BYTES))
    clock.now += TTL + 1
    put(store, b"y" * (QUOTA - 2 * OVERHEAD_BYTES))
    assert [blob.digest for blob in store.sweep()] == [old.digest]
    assert store.sweep() == []


def test_every_owner_has_a_copy_and_sees_no_other(store: BlobStore, url: str) -> None:
    owners = ("", "acme", "beta", "ab", "objects")
    for owner in owners:
        with pytest.raises(VideoNotFoundError):
            store.stat(hashlib.sha256(b"same").hexdigest(), owner=owner)
        store.put(io.BytesIO(b"same"), filename=f"{owner}.mp4", owner=owner, purpose="vision")
    assert store.used_bytes() == len(owners) * (4 + OVERHEAD_BYTES)
    digest = hashlib.sha256(b"same").hexdigest()
    for owner in owners:
        blob = store.stat(digest, owner=owner)
        assert (blob.owner, blob.filename, blob.purpose) == (owner, f"{owner}.mp4", "vision")
        assert store.all_of(owner) == [blob]
        with store.open_local(digest, owner=owner) as file:
            assert file.read() == b"same"
    assert store.delete(digest, owner="nobody") is False
    assert store.delete(digest, owner="acme") is True
    with pytest.raises(VideoNotFoundError):
        store.stat(digest, owner="acme")
    assert [store.stat(digest, owner=owner).owner for owner in ("", "beta")] == ["", "beta"]
    assert store.used_bytes() == 4 * (4 + OVERHEAD_BYTES)
    assert len([path for path in paths(url) if path.startswith("tenants/")]) == 2 * 3


@pytest.mark.parametrize("owner", ["..", ".", "a/b", "/etc", "Acme", "a" * 65, "ä", "a\n"])
def test_only_names_of_tenants_reach_a_path(store: BlobStore, url: str, owner: str) -> None:
    with pytest.raises(VideoNotFoundError, match="no tenant"):
        store.put(io.BytesIO(b"x"), filename="x", owner=owner)
    with pytest.raises(VideoNotFoundError, match="no tenant"):
        store.stat("0" * 64, owner=owner)
    with pytest.raises(VideoNotFoundError, match="no tenant"):
        store.all_of(owner)
    assert [path for path in paths(url) if path.startswith(("objects/", "tenants/", "incoming/"))] == []


def test_a_description_of_another_owner_is_not_believed(store: BlobStore, url: str) -> None:
    digest = store.put(io.BytesIO(b"x"), filename="x", owner="acme").digest
    fs, root = fsspec.url_to_fs(url)
    put(store, b"x")
    theirs = fs.cat_file(f"{root}/tenants/acme/{digest[:2]}/{digest}.json")
    fs.pipe_file(f"{root}/objects/{digest[:2]}/{digest}.json", theirs)
    with pytest.raises(VideoNotFoundError):
        store.stat(digest)
    assert store.all_of("") == []


def test_files_are_listed_with_the_newest_first(store: BlobStore, clock: Clock) -> None:
    assert store.all_of("") == []
    old = put(store, b"old")
    clock.now += 60
    young, other = put(store, b"young"), put(store, b"other")
    assert store.all_of("") == [*sorted([young, other], key=lambda blob: blob.digest), old]
    clock.now += 50
    assert old not in store.all_of("")
    assert len(store.all_of("")) == 2


def test_what_was_stored_before_there_were_owners_is_still_there(store: BlobStore, url: str) -> None:
    blob = put(store, b"content")
    fs, root = fsspec.url_to_fs(url)
    path = f"{root}/objects/{blob.digest[:2]}/{blob.digest}.json"
    known = json.loads(fs.cat_file(path))
    fs.pipe_file(path, json.dumps({k: v for k, v in known.items() if k not in {"owner", "purpose"}}).encode())
    assert store.stat(blob.digest) == blob
    assert store.all_of("") == [blob]


@pytest.mark.parametrize(
    ("head", "medium"),
    [(PNG, "image"), (b"\xff\xd8\xff\xe0", "image"), (b"\0\0\0\x18ftypmp42", "video"), (b"x", "video"), (b"", "video")],
)
def test_what_a_file_is_is_seen_from_its_first_bytes(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch, head: bytes, medium: str
) -> None:
    class Trickle(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(3)

    content = head + bytes(100) if head else b""
    blob = store.put(Trickle(content), filename="a")
    assert blob.medium == store.stat(blob.digest).medium == store.all_of("")[0].medium == medium
    assert get(store, blob.digest) == content


def test_a_description_from_before_there_were_pictures_is_put_right_by_the_next_upload(
    store: BlobStore, url: str
) -> None:
    picture, video = put(store, PNG), put(store, b"a video")
    for blob in (picture, video):
        _describe(url, blob, lambda known: {name: value for name, value in known.items() if name != "medium"})
        assert store.stat(blob.digest).medium == "video"
    assert get(store, video.digest) == b"a video"
    with pytest.raises(VideoNotFoundError, match="upload it again"):
        get(store, picture.digest)
    assert put(store, PNG).medium == "image"
    assert get(store, picture.digest) == PNG


@pytest.mark.parametrize("said", ["image", "audio", "", None, 1, ["video"], {"image": 1}])
def test_a_description_that_lies_about_the_medium_is_not_believed(store: BlobStore, url: str, said: object) -> None:
    blob = put(store, b"a video")
    _describe(url, blob, lambda known: {**known, "medium": said})
    with pytest.raises(VideoNotFoundError):
        get(store, blob.digest)
    assert put(store, b"a video").medium == "video"
    assert get(store, blob.digest) == b"a video"
    assert store.used_bytes() == 7 + OVERHEAD_BYTES


def _describe(url: str, blob: StoredBlob, change: Callable[[dict[str, object]], dict[str, object]]) -> None:
    fs, root = fsspec.url_to_fs(url)
    path = f"{root}/objects/{blob.digest[:2]}/{blob.digest}.json"
    fs.pipe_file(path, json.dumps(change(json.loads(fs.cat_file(path)))).encode())


def test_expired_files_of_all_owners_are_swept(store: BlobStore, url: str, clock: Clock) -> None:
    for owner in ("", "acme"):
        store.put(io.BytesIO(b"x"), filename="x", owner=owner)
    clock.now += TTL + 1
    assert sorted(blob.owner for blob in store.sweep()) == ["", "acme"]
    assert [path for path in paths(url) if path.startswith(("objects/", "tenants/"))] == []
    assert store.used_bytes() == 0


def test_the_quota_holds_to_the_byte(url: str, clock: Clock) -> None:
    store = BlobStore(url, quota_bytes=2 * OVERHEAD_BYTES + 100, ttl_seconds=TTL, clock=clock)
    put(store, b"a" * 60)
    with pytest.raises(StorageFullError, match="no room for 41 bytes"):
        put(store, b"b" * 41)
    put(store, b"b" * 40)
    with pytest.raises(StorageFullError, match=str(2 * OVERHEAD_BYTES + 100)):
        put(store, b"")
    put(store, b"a" * 60)  # there already: needs no room
    assert len(digests(url)) == 2
    assert not [path for path in paths(url) if path.startswith("incoming/")]


def test_what_could_never_fit_is_cut_while_it_arrives(store: BlobStore, url: str) -> None:
    class Endless(io.RawIOBase):
        given = 0

        def read(self, size: int = -1, /) -> bytes:
            self.given += size
            return b"x" * size

    stream = Endless()
    with pytest.raises(StorageFullError):
        store.put(stream, filename="x")  # type: ignore[arg-type]
    assert stream.given <= 2 * QUOTA
    assert not [path for path in paths(url) if path.startswith(("incoming/", "objects/"))]


def test_expired_blobs_make_room(url: str, clock: Clock) -> None:
    store = BlobStore(url, quota_bytes=2 * OVERHEAD_BYTES, ttl_seconds=TTL, clock=clock)
    put(store, b"")
    clock.now += 50
    late = BlobStore(url, quota_bytes=2 * OVERHEAD_BYTES + 10, ttl_seconds=TTL, clock=clock)
    second = put(late, b"2")
    with pytest.raises(StorageFullError):
        put(late, b"3")
    clock.now += 49
    with pytest.raises(StorageFullError):
        put(late, b"3")
    clock.now += 2  # the first has expired now
    third = put(late, b"3")
    assert digests(url) == sorted([second.digest, third.digest])


def test_a_store_is_shared_by_its_processes(tmp_path: Path) -> None:
    url, workers, rounds, quota = (tmp_path / "shared").as_uri(), 4, 12, 10 * (OVERHEAD_BYTES + 1000)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_hammer, args=(url, quota, seed, rounds)) for seed in range(workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * workers
    store = BlobStore(url, quota_bytes=quota, ttl_seconds=TTL)
    files = [p for p in (tmp_path / "shared" / "objects").rglob("*") if p.is_file()]
    contents = [p for p in files if p.suffix == ""]
    assert len(contents) == 10 == len(files) // 2
    assert all(hashlib.sha256(p.read_bytes()).hexdigest() == p.name for p in contents)
    assert store.used_bytes() == sum(p.stat().st_size + OVERHEAD_BYTES for p in contents) <= quota


def _hammer(url: str, quota: int, seed: int, rounds: int) -> None:
    """Put the same files as everybody else, delete some, and put them again, until the store is full."""
    store = BlobStore(url, quota_bytes=quota, ttl_seconds=TTL)
    for number in range(rounds * 2):
        data = number.to_bytes(2, "big") * 500
        try:
            digest = put(store, data).digest
            if number % 3 == seed % 3 and number < rounds:
                store.delete(digest)
        except StorageFullError:
            continue
    for number in range(rounds * 2):  # fill what deleting has left free
        try:
            put(store, number.to_bytes(2, "big") * 500)
        except StorageFullError:
            return


def test_threads_uploading_one_file_store_it_once(store: BlobStore, url: str) -> None:
    data, failures = random.Random(2).randbytes(200_000), []

    def upload() -> None:
        try:
            put(store, data)
        except Exception as exc:
            failures.append(exc)

    threads = [threading.Thread(target=upload) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert get(store, digests(url)[0]) == data
    assert len(digests(url)) == 1
    assert store.used_bytes() == len(data) + OVERHEAD_BYTES


def test_a_stream_that_fails_leaves_nothing(store: BlobStore, url: str) -> None:
    class Broken(io.RawIOBase):
        def read(self, size: int = -1, /) -> bytes:
            raise RuntimeError("cut")

    with pytest.raises(RuntimeError, match="cut"):
        store.put(Broken(), filename="x")  # type: ignore[arg-type]
    assert not [path for path in paths(url) if path.startswith(("incoming/", "objects/"))]


@pytest.mark.parametrize("damage", ["content shorter", "content gone", "content changed"])
def test_damaged_content_is_not_found_and_can_be_uploaded_again(
    store: BlobStore, url: str, damage: str, request: pytest.FixtureRequest
) -> None:
    if damage == "content changed" and url.startswith("file"):
        damage = "content shorter"  # a local file is not read through before it is handed out
    blob = put(store, b"content")
    fs, root = fsspec.url_to_fs(url)
    path = f"{root}/objects/{blob.digest[:2]}/{blob.digest}"
    fs.rm(path)
    if damage != "content gone":
        fs.pipe_file(path, b"CONTENT" if damage == "content changed" else b"con")
    with pytest.raises(VideoNotFoundError, match="upload it again"):
        get(store, blob.digest)
    if damage != "content changed":
        assert get(store, put(store, b"content").digest) == b"content"
        store.sweep()
        assert store.used_bytes() == len(b"content") + OVERHEAD_BYTES


@pytest.mark.parametrize(
    "sidecar", [b"", b"{", b"[]", b"{}", b'{"digest": 1}', b"\xff", b'{"size_bytes": 99999999999, "digest": "%d"}']
)
def test_a_damaged_description_counts_as_no_file(store: BlobStore, url: str, sidecar: bytes) -> None:
    blob = put(store, b"content")
    fs, root = fsspec.url_to_fs(url)
    fs.pipe_file(f"{root}/objects/{blob.digest[:2]}/{blob.digest}.json", sidecar)
    with pytest.raises(VideoNotFoundError):
        store.stat(blob.digest)
    assert put(store, b"content").size_bytes == 7
    assert store.used_bytes() == 7 + OVERHEAD_BYTES


def test_a_description_of_another_blob_is_not_believed(store: BlobStore, url: str) -> None:
    first, second = put(store, b"first"), put(store, b"second")
    fs, root = fsspec.url_to_fs(url)
    of_first = fs.cat_file(f"{root}/objects/{first.digest[:2]}/{first.digest}.json")
    assert json.loads(of_first)["digest"] == first.digest
    fs.pipe_file(f"{root}/objects/{second.digest[:2]}/{second.digest}.json", of_first)
    with pytest.raises(VideoNotFoundError):
        store.stat(second.digest)


def test_remains_of_dead_processes_are_swept(local: BlobStore, tmp_path: Path, clock: Clock) -> None:
    blob = put(local, b"fine")
    root = tmp_path / "blobs"
    old, young = f"{int(clock.now - ABANDONED_SECONDS - 1)}-a", f"{int(clock.now)}-b"
    for name in (old, young):
        (root / "incoming" / name).write_bytes(b"half")
    for stray in ("0" * 64, "1" * 64 + ".json", f"{blob.digest}.json.0f.new"):
        (root / "objects" / blob.digest[:2] / stray).write_bytes(b"x")
    (root / "usage").write_text("garbage")
    assert local.sweep() == []
    assert [p.name for p in (root / "incoming").iterdir()] == [young]
    assert digests(root.as_uri()) == [blob.digest]
    assert local.used_bytes() == 4 + OVERHEAD_BYTES
    assert get(local, blob.digest) == b"fine"


def test_on_shared_storage_bytes_without_a_description_are_left_alone_at_first(clock: Clock) -> None:
    url = f"memory://store-{uuid4().hex}"
    fs, root = fsspec.url_to_fs(url)
    fs.pipe_file(f"{root}/objects/00/{'0' * 64}", b"another machine is just storing this")
    clock.now = fs.modified(f"{root}/objects/00/{'0' * 64}").timestamp()
    store = BlobStore(url, quota_bytes=QUOTA, ttl_seconds=TTL, clock=clock)
    store.sweep()
    assert len(digests(url)) == 1
    clock.now += ABANDONED_SECONDS + 1
    store.sweep()
    assert digests(url) == []


def test_local_files_are_private(local: BlobStore, tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        put(local, b"secret")
    finally:
        os.umask(umask)
    for path in [tmp_path / "blobs", *(tmp_path / "blobs").rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_a_local_blob_is_handed_out_as_the_file_itself(local: BlobStore) -> None:
    blob = put(local, b"x")
    with local.open_local(blob.digest) as file:
        assert str(file.name).endswith(blob.digest)


def test_failing_storage_is_unavailable_and_a_full_disk_is_full(local: BlobStore, tmp_path: Path) -> None:
    class Failing(io.RawIOBase):
        def __init__(self, number: int) -> None:
            self._number = number

        def read(self, size: int = -1, /) -> bytes:
            raise OSError(self._number, "secret path")

    for number, expected in ((errno.EIO, UnavailableError), (errno.ENOSPC, StorageFullError)):
        with pytest.raises(expected) as caught:
            local.put(_binary(Failing(number)), filename="x")
        assert "secret" not in str(caught.value)
    (tmp_path / "plain").write_bytes(b"")
    with pytest.raises(UnavailableError):
        BlobStore((tmp_path / "plain" / "below").as_uri(), quota_bytes=1, ttl_seconds=1)


def _binary(stream: io.RawIOBase) -> BinaryIO:
    return stream  # type: ignore[return-value]


@pytest.mark.parametrize("bad", ["nosuchscheme://x", "gs://bucket/without-its-driver"])
def test_locations_that_cannot_be_used(bad: str) -> None:
    with pytest.raises(InvalidRequestError, match="blob store"):
        BlobStore(bad, quota_bytes=1, ttl_seconds=1)


def test_numbers_must_be_positive(tmp_path: Path) -> None:
    for quota, ttl in ((0, 1.0), (1, 0.0)):
        with pytest.raises(InvalidRequestError, match="positive"):
            BlobStore(tmp_path.as_uri(), quota_bytes=quota, ttl_seconds=ttl)
