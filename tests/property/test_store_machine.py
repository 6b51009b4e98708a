"""Laws of the state machine over any commands: determinism, idempotence, refusals write nothing."""

from __future__ import annotations

import sqlite3
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostd.ids import Digest, ImageId
from hostd.model import ImageConfig
from hostd.store import (
    Command,
    DeleteImage,
    DropLayers,
    ForgetUploads,
    NameImage,
    RecordImage,
    RecordLayer,
    RecordUploads,
    UnnameImage,
    Upload,
    commands,
    machine,
    schema,
)
from hostd.store.disk import Disk

pytestmark = pytest.mark.slow

at_us = st.integers(0, 2**50)
image_ids = st.sampled_from([ImageId("im-" + letter * 26) for letter in "abc"])
texts = st.text(max_size=8)
names = st.sampled_from(["web", "train", "ä"])
digests = st.sampled_from([Digest("blake3:" + d * 64) for d in "012"])
counts = st.integers(0, 2**40)
configs = st.builds(
    ImageConfig, env=st.dictionaries(texts, texts, max_size=2), cmd=st.tuples(texts)
)
any_command: st.SearchStrategy[Command] = st.one_of(
    st.builds(
        RecordImage,
        at_us=at_us,
        id=image_ids,
        index=digests,
        index_bytes=counts,
        entries=counts,
        size_bytes=counts,
        blobs=counts,
        config=configs,
        history=st.tuples(texts),
        python=st.none() | texts,
    ),
    st.builds(NameImage, at_us=at_us, name=names, image_id=image_ids),
    st.builds(UnnameImage, at_us=at_us, name=names),
    st.builds(DeleteImage, at_us=at_us, image_id=image_ids),
    st.builds(RecordLayer, at_us=at_us, key=texts, image_id=image_ids),
    st.builds(DropLayers, at_us=at_us, image_id=image_ids),
    st.builds(
        RecordUploads,
        at_us=at_us,
        uploads=st.lists(st.builds(Upload, texts, digests, counts), max_size=3).map(tuple),
    ),
    st.builds(ForgetUploads, at_us=at_us, digests=st.lists(digests, max_size=2).map(tuple)),
)


def database() -> sqlite3.Connection:
    db = sqlite3.connect(":memory:", isolation_level=None)
    schema.migrate(db, identity="test")
    return db


def content(db: sqlite3.Connection, *, log: bool = False) -> list[str]:
    lines = [line for line in db.iterdump() if log or '"log"' not in line]
    return [line for line in lines if '"meta"' not in line]


def play(db: sqlite3.Connection, entries: list[Command]) -> None:
    for index, entry in enumerate(entries, 1):
        before = content(db)
        try:
            machine.apply(db, index, entry)
        except machine.Reject:
            assert content(db) == before, "a refusal wrote"


@given(any_command)
def test_command_survives_its_encoding(command: Command) -> None:
    assert commands.decode(commands.encode(command)) == command


@settings(max_examples=60, deadline=None)
@given(st.lists(any_command, max_size=12))
def test_same_log_makes_same_state_and_refusals_write_nothing(entries: list[Command]) -> None:
    one, two = database(), database()
    play(one, entries)
    play(two, entries)
    assert content(one) == content(two)
    dangling = "SELECT count(*) FROM image_names WHERE image_id NOT IN (SELECT id FROM images)"
    assert one.execute(dangling).fetchone() == (0,)
    one.close()
    two.close()


@settings(max_examples=60, deadline=None)
@given(st.lists(any_command, max_size=8), any_command)
def test_applying_a_command_twice_leaves_what_once_left(
    entries: list[Command], last: Command
) -> None:
    db = database()
    play(db, [*entries, last])
    once = content(db)
    play(db, [last])
    assert content(db) == once
    db.close()


@settings(max_examples=25, deadline=None)
@given(st.lists(any_command, min_size=1, max_size=12), st.data())
def test_batching_and_restarts_do_not_change_log_or_state(
    entries: list[Command], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory(prefix="hostd-store-") as folder:
        whole, parts = Path(folder, "whole.db"), Path(folder, "parts.db")
        encoded = [(entry, commands.encode(entry)) for entry in entries]
        disk = Disk(whole, ballast_bytes=0)
        disk.open()
        disk.commit(encoded)
        disk.close()
        while encoded:
            count = data.draw(st.integers(1, len(encoded)))
            disk = Disk(parts, ballast_bytes=0)
            disk.open()
            disk.commit(encoded[:count])
            disk.close()
            encoded = encoded[count:]
        dumps = []
        for path in (whole, parts):
            db = sqlite3.connect(path)
            dumps.append(content(db, log=True))
            db.close()
        assert dumps[0] == dumps[1]
