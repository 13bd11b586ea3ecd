from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_infer import bundle as bundle_module
from edge_infer.bundle import open_bundle, write_bundle
from edge_infer.errors import BundleError, OutputError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    Content = list[tuple[str | zipfile.ZipInfo, bytes]]


def npy(array: npt.NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


MEMBERS = {
    "model.onnx": bytes(range(256)) * 4,
    "evaluation.json": b'{"accuracy": 0.9}',
    "golden/chips.npy": npy(np.arange(2 * 16 * 16 * 3, dtype=np.uint8).reshape(2, 16, 16, 3)),
    "golden/expected.npy": npy(np.array([[0.25, 0.75], [0.5, 0.5]], np.float32)),
}


@pytest.fixture
def path(tmp_path, make_manifest):
    path = tmp_path / "town.edgemodel"
    write_bundle(path, make_manifest(), MEMBERS)
    return path


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def repack(path: Path, members: Content, **options: Any) -> None:
    """Write members (name or ZipInfo, content) with checksums that fit, by other means than the module's."""
    named = {getattr(name, "filename", str(name)): content for name, content in members}
    digests = {
        name: hashlib.sha256(content).hexdigest()
        for name, content in named.items()
        if name != "checksums.json"
    }
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in members:
            archive.writestr(name, content)
        archive.writestr("checksums.json", json.dumps(digests))


def parts(path: Path) -> Content:
    return [(name, content) for name, content in contents(path).items() if name != "checksums.json"]


def refused(path: Path) -> str:
    with pytest.raises(BundleError) as caught:
        open_bundle(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def test_what_was_written_is_read(path, make_manifest):
    bundle = open_bundle(path)
    assert bundle.manifest == make_manifest()
    assert bundle.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert {name: bundle.read(name) for name in bundle.members} == MEMBERS
    assert {name: member.size_bytes for name, member in bundle.members.items()} == {
        name: len(content) for name, content in MEMBERS.items()
    }
    assert bundle.read_json("evaluation.json") == {"accuracy": 0.9}
    chips, expected = bundle.golden()
    assert chips.dtype == np.uint8
    assert chips.shape == (2, 16, 16, 3)
    np.testing.assert_array_equal(expected, np.array([[0.25, 0.75], [0.5, 0.5]], np.float32))


def test_it_is_a_plain_zip_whose_checksums_fit(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        digests = json.loads(archive.read("checksums.json"))
        assert digests == {
            name: hashlib.sha256(archive.read(name)).hexdigest()
            for name in archive.namelist()
            if name != "checksums.json"
        }
        assert archive.namelist()[0] == "manifest.json"


def test_equal_input_gives_equal_bytes(path, tmp_path, make_manifest):
    other = tmp_path / "other.edgemodel"
    write_bundle(other, make_manifest(), dict(reversed(MEMBERS.items())))
    assert other.read_bytes() == path.read_bytes()


def test_access_rights_are_those_of_any_new_file(path, tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_a_failed_write_leaves_the_old_bundle_and_nothing_else(path, make_manifest, monkeypatch):
    before = path.read_bytes()

    def full_disk(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OutputError, match=r"No space left on device"):
        write_bundle(path, make_manifest(name="other"), MEMBERS)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_link_stays_and_what_it_leads_to_is_replaced(path, tmp_path, make_manifest):
    folder = tmp_path / "current"
    folder.mkdir()
    link, second = folder / "model.edgemodel", folder / "again.edgemodel"
    link.symlink_to(path)
    second.symlink_to("model.edgemodel")
    written = write_bundle(second, make_manifest(name="other"), MEMBERS)
    assert written.path == second
    assert link.is_symlink()
    assert second.is_symlink()
    assert open_bundle(path).manifest.name == "other"
    assert [entry.name for entry in sorted(folder.iterdir())] == [second.name, link.name]


def test_a_link_to_nothing_yet_and_one_to_itself(tmp_path, make_manifest):
    link = tmp_path / "link.edgemodel"
    link.symlink_to(tmp_path / "new.edgemodel")
    write_bundle(link, make_manifest(), MEMBERS)
    assert link.is_symlink()
    assert (tmp_path / "new.edgemodel").is_file()
    circle = tmp_path / "circle.edgemodel"
    circle.symlink_to(circle)
    with pytest.raises(OutputError, match=r"cannot write .*circle"):
        write_bundle(circle, make_manifest(), MEMBERS)


@pytest.mark.parametrize(("mode", "after"), [(0o664, 0o664), (0o600, 0o600), (0o440, 0o640)])
def test_access_rights_are_kept(path, make_manifest, mode, after):
    path.chmod(mode)
    write_bundle(path, make_manifest(name="other"), MEMBERS)
    assert stat.S_IMODE(path.stat().st_mode) == after


def test_what_a_killed_write_left_long_ago_is_cleared(path, make_manifest):
    """Not what may still be written to, nor what belongs to another file."""
    folder = path.parent
    names = {
        "old": f".{path.name}.0123abcd.partial",
        "young": f".{path.name}.89abcdef.partial",
        "another's": ".village.edgemodel.0123abcd.partial",
        "the user's": f".{path.name}.mine.partial",
    }
    for what, name in names.items():
        (folder / name).write_bytes(b"half")
        if what != "young":
            os.utime(folder / name, (1e9, 1e9))
    write_bundle(path, make_manifest(name="other"), MEMBERS)
    assert {entry.name for entry in folder.iterdir()} == {path.name, *names.values()} - {names["old"]}


def test_a_folder_that_is_not_there(tmp_path, make_manifest):
    with pytest.raises(OutputError, match="No such file or directory"):
        write_bundle(tmp_path / "nowhere" / "town.edgemodel", make_manifest(), MEMBERS)


@pytest.mark.parametrize(
    "members",
    [{}, {"evaluation.json": b"{}"}, {**MEMBERS, "notes.txt": b""}, {**MEMBERS, "manifest.json": b"{}"}],
)
def test_members_that_make_no_bundle_are_not_written(tmp_path, make_manifest, members):
    with pytest.raises(BundleError, match="a bundle holds"):
        write_bundle(tmp_path / "town.edgemodel", make_manifest(), members)
    assert not list(tmp_path.iterdir())


def test_too_large_a_member_is_not_written(tmp_path, make_manifest, monkeypatch):
    monkeypatch.setattr(bundle_module, "MAX_MEMBER_BYTES", 1000)
    with pytest.raises(BundleError, match="the limit is 1,000"):
        write_bundle(tmp_path / "town.edgemodel", make_manifest(), MEMBERS)


def test_no_such_file(tmp_path):
    assert "no such file" in refused(tmp_path / "town.edgemodel")


def test_a_folder(tmp_path):
    assert "Is a directory" in refused(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip at all", b"PK\x05\x06" + bytes(18)])
def test_not_a_bundle(tmp_path, content):
    path = tmp_path / "town.edgemodel"
    path.write_bytes(content)
    assert "not a model bundle" in refused(path)


def test_cut_off(path):
    path.write_bytes(path.read_bytes()[:-100])
    assert "copy it again" in refused(path)


def test_a_changed_member(path):
    changed = {**contents(path), "model.onnx": b"other"}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in changed.items():
            archive.writestr(name, content)
    assert "model.onnx differs from its checksum" in refused(path)


@pytest.mark.parametrize("missing", ["manifest.json", "model.onnx"])
def test_a_missing_member(path, missing):
    repack(path, [(name, content) for name, content in parts(path) if name != missing])
    assert f"{missing} is missing" in refused(path)


def test_missing_checksums(path):
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            if name != "checksums.json":
                new.writestr(name, old.read(name))
    assert "checksums.json is missing" in refused(path)


def test_checksums_of_other_members(path):
    members = contents(path)
    digests = json.loads(members["checksums.json"])
    del digests["evaluation.json"]
    members["checksums.json"] = json.dumps(digests).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert "does not name exactly the members" in refused(path)


def test_compressed_members_are_refused(path):
    repack(path, parts(path), compression=zipfile.ZIP_DEFLATED)
    assert "is compressed, wanted stored" in refused(path)


@pytest.mark.parametrize(
    "name", ["../model.onnx", "/etc/passwd", "golden/../../x", "model.pkl", "golden/", "model.onnx\\x"]
)
def test_other_names_are_refused(path, name):
    repack(path, [*parts(path), (name, b"")])
    assert "unexpected member" in refused(path)


def test_a_name_that_hides_behind_a_null_byte_is_refused(path):
    repack(path, [*parts(path), ("model.onnx_x", b"")])
    path.write_bytes(path.read_bytes().replace(b"model.onnx_x", b"model.onnx\0x"))
    assert "unexpected member 'model.onnx\\x00x'" in refused(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicates_are_refused(path):
    repack(path, [*parts(path), ("model.onnx", b"second")])
    assert "model.onnx occurs twice" in refused(path)


def test_links_are_refused(path):
    link = zipfile.ZipInfo("calibration.json")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    repack(path, [*parts(path), (link, b"/etc/passwd")])
    assert "no regular file" in refused(path)


def test_encrypted_members_are_refused(path):
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02")  # the last entry of the directory
    content[entry + 8] |= 1
    path.write_bytes(content)
    assert "is encrypted" in refused(path)


def test_too_large_a_member_is_refused(path, monkeypatch):
    monkeypatch.setattr(bundle_module, "MAX_JSON_BYTES", 100)
    assert "the limit is 100" in refused(path)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (b"{", "malformed"),
        (b"\xff", "malformed"),
        (b"[]", "no JSON object"),
        (b"[" * 100_000, "malformed"),
        (b'{"properties": {"edge:format": NaN}}', "malformed"),
        (b"{}", "not a model bundle"),
        (b'{"properties": {"edge:format": 99}}', "bundle format 99, wanted 1"),
        (b'{"properties": {"edge:format": 1}}', "incomplete"),
    ],
)
def test_malformed_manifests_are_refused(path, manifest, message):
    repack(path, [("manifest.json", manifest), *parts(path)[1:]])
    assert message in refused(path)


def test_a_later_format_is_told_before_its_strange_members(path):
    later = b'{"properties": {"edge:format": 2}}'
    repack(path, [("manifest.json", later), ("weights.bin", b"")])
    assert "update edge-infer" in refused(path)


def test_a_member_that_is_not_there(path):
    with pytest.raises(BundleError, match=r"town\.edgemodel: the bundle holds no calibration\.json"):
        open_bundle(path).read("calibration.json")


def test_a_bundle_that_changes_under_our_hands(path, make_manifest):
    bundle = open_bundle(path)
    write_bundle(path, make_manifest(), {**MEMBERS, "model.onnx": b"other"})
    with pytest.raises(BundleError, match=r"model\.onnx differs from its checksum"):
        bundle.read("model.onnx")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"golden/chips.npy": npy(np.zeros((2, 8, 8, 3), np.uint8))}, r"shape \(2, 8, 8, 3\)"),
        ({"golden/chips.npy": npy(np.zeros((2, 16, 16, 3), np.float32))}, "is float32"),
        ({"golden/chips.npy": npy(np.zeros((1, 16, 16, 3), np.uint8))}, "1 golden chips, but 2 rows"),
        ({"golden/expected.npy": b"no array"}, "no NumPy array"),
        ({"golden/expected.npy": npy(np.array([{"a": 1}, None], object))}, "no NumPy array"),
    ],
)
def test_golden_chips_that_do_not_fit(tmp_path, make_manifest, changes, message):
    bundle = write_bundle(tmp_path / "town.edgemodel", make_manifest(), {**MEMBERS, **changes})
    with pytest.raises(BundleError, match=message):
        bundle.golden()


def test_evaluation_that_is_no_json(tmp_path, make_manifest):
    bundle = write_bundle(
        tmp_path / "town.edgemodel", make_manifest(), {**MEMBERS, "evaluation.json": b"oops"}
    )
    with pytest.raises(BundleError, match=r"town\.edgemodel: evaluation\.json is malformed"):
        bundle.read_json("evaluation.json")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_is_refused_or_harmless(path, data):
    """Whatever byte changes, either the file is refused in one line or it holds exactly the same."""
    content = bytearray(path.read_bytes())
    # Most bytes are the model's; draw from the zip's own structures as often.
    start = data.draw(st.sampled_from([0, content.index(b"PK\x01\x02")]))
    content[data.draw(st.integers(start, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged = path.with_name("damaged.edgemodel")
    damaged.write_bytes(content)
    try:
        bundle = open_bundle(damaged)
    except BundleError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert {name: bundle.read(name) for name in bundle.members} == MEMBERS
