"""Laws of COPY on trees: any sources, any destination, any image."""

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from hostd.build.copying import CopyWork, Entry, Source
from hostd.build.placing import place_copies
from hostd.errors import InvalidError
from hostd.fs import CAS, ImageStore, Tree, directory, merge_layer, place, small_file, symlink
from hostd.fs.erofs import write_index
from hostd.fs.tree import differences

STORE = tempfile.TemporaryDirectory(prefix="hostd-copy-laws-")
IMAGES = ImageStore(CAS(Path(STORE.name) / "cas"), Path(STORE.name) / "images")

names = st.sampled_from(["a", "b", "c"])
paths = st.lists(names, min_size=1, max_size=4).map("/".join)
nodes = st.one_of(
    st.builds(directory),
    st.builds(small_file, st.just(b"old")),
    st.sampled_from([b"a", b"/b", b"../c", b".", b"a/b", b"/"]).map(symlink),
)


@st.composite
def trees(draw):
    root = directory()
    for path, node in draw(st.dictionaries(paths, nodes, max_size=5)).items():
        try:
            place(root, path.encode(), node)
        except InvalidError:
            continue
    return merge_layer(Tree(), Tree(root))


@st.composite
def entries(draw, path):
    kind = draw(st.sampled_from(["file", "file", "dir", "symlink"]))
    data = b"new" if kind == "file" else None
    return Entry(path=path, kind=kind, data=data, target="a" if kind == "symlink" else "")


@st.composite
def sources(draw):
    name = draw(names)
    if draw(st.booleans()):
        return Source(name=name, is_directory=False, entries=(Entry(path="", data=b"new"),))
    below = sorted(draw(st.sets(paths, max_size=4)))
    return Source(
        name=name, is_directory=True, entries=tuple(draw(entries(path)) for path in below)
    )


works = st.builds(
    CopyWork,
    sources=st.lists(sources(), max_size=3).map(tuple),
    destination=st.one_of(st.just("/"), paths.map(lambda path: f"/{path}")),
    into_directory=st.booleans(),
    owner=st.sampled_from([None, "7:8"]),
    mode=st.sampled_from([None, 0o640]),
)


@settings(max_examples=300)
@given(trees(), works)
def test_copy_gives_a_sound_image_or_says_why_not(parent, work):
    before = write_index(parent)
    try:
        tree = place_copies(parent, work, IMAGES, {})
    except InvalidError:
        tree = None
    assert write_index(parent) == before
    if tree is not None:
        assert write_index(tree)
        assert not any(node.implicit or node.opaque for _, node in tree.walk())


@given(trees(), works)
def test_copying_twice_changes_nothing_more(parent, work):
    try:
        once = place_copies(parent, work, IMAGES, {})
        twice = place_copies(once, work, IMAGES, {})
    except InvalidError:
        return
    if not any(entry.kind == "symlink" for source in work.sources for entry in source.entries):
        assert len(list(twice.walk())) >= len(list(once.walk()))
        if work.into_directory or work.destination == "/":
            assert differences(once, twice) == []
