from __future__ import annotations

import pytest

from edge_infer.bench import pagecache


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / "a", tmp_path / "b", tmp_path / "empty"]
    paths[0].write_bytes(b"1" * 900_000)
    paths[1].write_bytes(b"2" * 4097)
    paths[2].write_bytes(b"")
    return paths


def test_what_was_read_lies_in_memory(files):
    for path in files:
        path.read_bytes()
    assert pagecache.cached_share(files) == 1
    assert pagecache.cached_share([files[2]]) is None  # nothing there to lie anywhere


def test_what_is_dropped_is_gone_or_it_is_said_why_not(files):
    reason = pagecache.drop(files)
    share = pagecache.cached_share(files)
    assert share is not None
    assert (reason is None) == (share <= pagecache.MOST_COLD_SHARE)
    assert share == pagecache.cached_share(files), "looking changes nothing"
    if reason is None:
        files[1].read_bytes()
        assert pagecache.cached_share([files[1]]) == 1


def test_files_of_others_do_not_tell(files, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: files[0].stat().st_uid + 1)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert pagecache.cached_share(files) is None


def test_a_system_without_the_call_says_so(files, monkeypatch):
    monkeypatch.delattr("os.posix_fadvise")
    assert "no way" in (pagecache.drop(files) or "")


def test_memory_only_is_not_cold(files, monkeypatch):
    monkeypatch.setattr(pagecache, "cached_share", lambda files: 0.6)
    assert (pagecache.drop(files) or "").startswith("60% of the imagery stays")
