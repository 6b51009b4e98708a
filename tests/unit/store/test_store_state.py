"""The store's state as its users see it: propose, then read."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hostd.clock import SystemClock
from hostd.errors import ConflictError, InternalError, NotFoundError, PayloadTooLargeError
from hostd.ids import Digest, ImageId
from hostd.model import ImageConfig
from hostd.store import (
    DeleteImage,
    DropLayers,
    ForgetUploads,
    NameImage,
    RecordImage,
    RecordLayer,
    RecordUploads,
    Store,
    UnnameImage,
    Upload,
)

A, B = ImageId("im-" + "a" * 26), ImageId("im-" + "ab" * 13)
DIGEST = Digest("blake3:" + "1" * 64)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = await Store.open(tmp_path / "state.db", clock=SystemClock(), ballast_bytes=0)
    yield opened
    await opened.close()


def image(image_id: ImageId, *, at_us: int = 1) -> RecordImage:
    return RecordImage(
        at_us=at_us,
        id=image_id,
        index=DIGEST,
        index_bytes=10,
        entries=3,
        size_bytes=100,
        blobs=2,
        python="3.11",
        config=ImageConfig(env={"A": "ä"}, workdir="/w", cmd=("sh",)),
        history=("FROM debian_slim", "RUN true"),
    )


async def test_recorded_image_is_read_back_whole(store: Store) -> None:
    assert await store.propose(image(A)) is True
    await store.propose(NameImage(at_us=2, name="web", image_id=A))
    row = await store.image(A)
    assert row is not None
    assert (row.id, row.names, row.index, row.python) == (A, ("web",), DIGEST, "3.11")
    assert (row.index_bytes, row.entries, row.size_bytes, row.blobs) == (10, 3, 100, 2)
    assert row.config == ImageConfig(env={"A": "ä"}, workdir="/w", cmd=("sh",))
    assert (row.history, row.created_at_us) == (("FROM debian_slim", "RUN true"), 1)


async def test_recording_an_image_twice_keeps_the_first_time(store: Store) -> None:
    await store.propose(image(A, at_us=1))
    assert await store.propose(image(A, at_us=9)) is False
    assert [row.created_at_us for row in await store.images()] == [1]


async def test_image_is_found_by_name_and_unique_prefix(store: Store) -> None:
    await store.propose(image(A))
    await store.propose(image(B, at_us=2))
    await store.propose(NameImage(at_us=3, name="web", image_id=B))
    by_name, by_prefix = await store.image("web"), await store.image("im-aaaa")
    assert by_name is not None
    assert by_name.id == B
    assert by_prefix is not None
    assert by_prefix.id == A
    assert [row.id for row in await store.images()] == [B, A]


async def test_prefix_below_four_characters_finds_nothing(store: Store) -> None:
    await store.propose(image(A))
    assert await store.image("im-aaa") is None
    assert await store.image("im-%%%%") is None
    assert await store.image("") is None


async def test_ambiguous_prefix_is_a_conflict(store: Store) -> None:
    await store.propose(image(A))
    await store.propose(image(ImageId("im-aaaa" + "b" * 22)))
    with pytest.raises(ConflictError, match="several image ids"):
        await store.image("im-aaaa")


async def test_name_moves_to_the_image_that_got_it_last(store: Store) -> None:
    await store.propose(image(A))
    await store.propose(image(B))
    await store.propose(NameImage(at_us=2, name="web", image_id=A))
    await store.propose(NameImage(at_us=3, name="web", image_id=B))
    row_a, row_b = await store.image(A), await store.image(B)
    assert row_a is not None
    assert row_b is not None
    assert (row_a.names, row_b.names) == ((), ("web",))


async def test_naming_an_absent_image_is_rejected_and_changes_nothing(store: Store) -> None:
    with pytest.raises(NotFoundError, match=A):
        await store.propose(NameImage(at_us=1, name="web", image_id=A))
    assert await store.image("web") is None
    assert store.statistics().rejected == 1


async def test_unname_takes_the_name_away_once(store: Store) -> None:
    await store.propose(image(A))
    await store.propose(NameImage(at_us=1, name="web", image_id=A))
    await store.propose(UnnameImage(at_us=2, name="web"))
    assert await store.image("web") is None
    with pytest.raises(NotFoundError, match="web"):
        await store.propose(UnnameImage(at_us=3, name="web"))


async def test_deleted_image_takes_names_and_layers_with_it(store: Store) -> None:
    await store.propose(image(A))
    await store.propose(NameImage(at_us=1, name="web", image_id=A))
    await store.propose(RecordLayer(at_us=1, key="k", image_id=A))
    await store.propose(DeleteImage(at_us=2, image_id=A))
    assert (await store.images(), await store.image("web"), await store.layer("k")) == (
        [],
        None,
        None,
    )
    with pytest.raises(NotFoundError):
        await store.propose(DeleteImage(at_us=3, image_id=A))


async def test_layer_answers_for_its_key_until_dropped(store: Store) -> None:
    await store.propose(RecordLayer(at_us=1, key="k", image_id=A))
    await store.propose(RecordLayer(at_us=2, key="k", image_id=B))
    assert await store.layer("k") == B
    assert await store.propose(DropLayers(at_us=3, image_id=B)) == 1
    assert await store.layer("k") is None


async def test_uploads_are_found_by_sha256_until_forgotten(store: Store) -> None:
    pairs = tuple(Upload(f"sha256:{n}", Digest(f"blake3:{n}"), n) for n in range(2_000))
    await store.propose(RecordUploads(at_us=1, uploads=pairs))
    found = await store.uploads(["sha256:7", "sha256:1999", "sha256:none"])
    assert found == {"sha256:7": "blake3:7", "sha256:1999": "blake3:1999"}
    await store.propose(ForgetUploads(at_us=2, digests=(Digest("blake3:7"),)))
    assert await store.uploads(["sha256:7"]) == {}


async def test_state_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    first = await Store.open(path, clock=SystemClock(), ballast_bytes=0)
    await first.propose(image(A))
    identity = first.identity
    await first.close()
    second = await Store.open(path, clock=SystemClock(), ballast_bytes=0)
    assert [row.id for row in await second.images()] == [A]
    assert (second.identity, second.statistics().applied) == (identity, 1)
    await second.close()


async def test_oversized_command_is_refused_before_it_is_queued(store: Store) -> None:
    with pytest.raises(PayloadTooLargeError, match="RecordLayer is"):
        await store.propose(RecordLayer(at_us=1, key="k" * (5 * 2**20), image_id=A))
    assert store.statistics().applied == 0


async def test_closed_store_refuses_commands(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "state.db", clock=SystemClock(), ballast_bytes=0)
    await store.close()
    await store.close()
    with pytest.raises(InternalError, match="closed"):
        await store.propose(RecordLayer(at_us=1, key="k", image_id=A))


async def test_file_is_private_and_synced_fully(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "state.db", clock=SystemClock(), ballast_bytes=4096)
    assert (tmp_path / "state.db").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "state.db.ballast").stat().st_size == 4096
    db = store._disk._open_db()
    assert db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    await store.close()


async def test_reader_cannot_write(store: Store) -> None:
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        await store._reader.rows("DELETE FROM images")
