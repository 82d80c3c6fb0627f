"""The index of deferred pages: which are due, and which were settled."""

from stream.deferred import DeferredPages


def deferred_for(*keys: bytes) -> DeferredPages:
    """Index in which `keys` of partition 3 have waited since 100, 101, ..."""
    pages = DeferredPages(lambda rows: {key for key, value in rows.items() if value == b"owed"})
    for at, key in enumerate(keys):
        pages.note(3, [(key, b"owed")], 100.0 + at)
    return pages


def test_a_page_is_due_after_its_wait_and_is_returned_once() -> None:
    pages = deferred_for(b"a", b"b", b"c")
    pages.note(3, [(b"a", b"owed"), (b"d", b"settled")], 105.0)  # further events do not restart the wait
    assert pages.due(107.9, 8.0) == []
    pages.note(3, [(b"e", b"owed"), (b"e", b"settled")], 90.0)
    assert pages.due(109.0, 8.0) == [(3, [b"a", b"b"])]
    assert pages.due(109.0, 8.0) == []
    pages.note(3, [(b"b", b"owed")], 109.5)
    assert pages.due(120.0, 8.0) == [(3, [b"c"])], "b was requested before"
    assert len(pages) == 3
    pages.note(3, [(b"a", b"settled"), (b"b", b"settled"), (b"c", None)], 121.0)
    assert (len(pages), pages.due(999.0, 0.0)) == (0, [])


def test_settled_pages_and_lost_partitions_are_not_due() -> None:
    pages = deferred_for(b"a", b"b")
    pages.note(3, [(b"a", b"settled")], 103.0)
    assert pages.due(200.0, 0.0) == [(3, [b"b"])]
    pages.note(4, [(b"x", b"owed")], 103.0)
    pages.drop(3)
    assert pages.due(200.0, 0.0) == [(4, [b"x"])]
    pages.drop(4)
    assert len(pages) == 0


def test_at_most_max_requested_pages_are_due_at_once() -> None:
    keys = [b"%d" % k for k in range(150)]
    pages = deferred_for(*keys)
    published: list[bytes] = []
    for _ in range(3):
        [(_, due)] = pages.due(1e6, 0.0)
        assert len(due) <= DeferredPages.MAX_REQUESTED and pages.due(1e6, 0.0) == []
        pages.note(3, [(key, b"settled") for key in due], 1e6)
        published += due
    assert published == keys
