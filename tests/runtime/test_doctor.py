"""`edge-infer doctor`: what it finds on machines that are not here, in broken bundles, and before a run."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import shapely
import shapely.geometry

from edge_infer.bundle import open_bundle, write_bundle
from edge_infer.classify import classify
from edge_infer.cli import main
from edge_infer.device.gpu import GpuFacts
from edge_infer.doctor import Checkup, Report, examine
from edge_infer.doctor.finding import Finding, attempt, worst
from edge_infer.doctor.graphics import look_at_graphics, look_at_plans
from edge_infer.doctor.hardware import look_at_hardware
from edge_infer.doctor.software import look_at_disks, look_at_software
from edge_infer.engine.choose import open_engine
from edge_infer.engine.golden import Agreement, classify_chips, compare, largest_difference
from edge_infer.engine.tensorrt.cache import PlanCache, PlanKey, PlanRecord
from edge_infer.errors import EngineError
from edge_infer.machine import GraphicsCard, Machine
from edge_infer.machine.tree import Tree
from edge_infer.manifest import ChipContract
from edge_infer.request import RunRequest

MACHINES = ("orin-nano", "orin-nx", "agx-orin", "thor", "laptop")
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "doctor.md"

ORIN = GpuFacts(
    name="Orin",
    compute_capability=(8, 7),
    multiprocessors=8,
    integrated=True,
    total_bytes=8 << 30,
    free_bytes=4 << 30,
    driver="12.6",
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test looks into the user's cache."""
    monkeypatch.setenv("EDGE_INFER_CACHE", str(tmp_path / "engines"))


@pytest.fixture
def no_gpu(monkeypatch):
    def probe():
        raise EngineError("no NVIDIA driver was found (libcuda.so.1); install one, or use --engine openvino")

    monkeypatch.setattr("edge_infer.device.gpu.probe_gpu", probe)


def look(tree: Any) -> Machine:
    return Machine.read(tree.root, tree.run)


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def bad(findings: list[Finding]) -> dict[str, str]:
    return {finding.name: finding.level for finding in findings if finding.level != "ok"}


def invoke(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output, standard error of `edge-infer doctor`."""
    with pytest.raises(SystemExit) as ended:
        main(["doctor", *map(str, arguments)])
    told = capsys.readouterr()
    return int(ended.value.code or 0), told.out, told.err


# ---- what a finding is


def test_trouble_comes_with_a_word_on_what_to_do():
    with pytest.raises(ValueError, match="a warning without a word"):
        Finding("memory", "warning", "little")


def test_the_worst_level_is_the_reports():
    ok, warning = Finding("a", "ok", "-"), Finding("b", "warning", "-", "do")
    assert worst([]) == "ok"
    assert worst([ok, warning, ok]) == "warning"
    assert worst([warning, Finding("c", "problem", "-", "do")]) == "problem"


def test_a_check_that_fails_is_a_finding():
    def check():
        yield Finding("a", "ok", "-")
        raise RuntimeError("libnvinfer.so.10:\n cannot open")

    (found,) = attempt("TensorRT", check)
    assert (found.level, found.found) == (
        "problem",
        "cannot be looked at: RuntimeError: libnvinfer.so.10: cannot open",
    )


# ---- the machine


@pytest.mark.parametrize(
    ("name", "trouble"),
    [
        ("orin-nano", {}),
        ("orin-nx", {"memory": "warning", "temperature": "warning", "throttling": "warning"}),
        ("agx-orin", {}),
        ("thor", {}),
        ("laptop", {}),
    ],
)
def test_machines_and_what_is_wrong_with_them(recorded, name, trouble):
    assert bad(list(look_at_hardware(look(recorded(name))))) == trouble


def changed(tree: Any, path: str, content: str) -> dict[str, Finding]:
    (tree.root / path).write_text(content)
    return by_name(list(look_at_hardware(look(tree))))


def test_an_old_jetpack_is_told(recorded):
    found = changed(recorded("orin-nano"), "etc/nv_tegra_release", "# R35 (release), REVISION: 4.1, GCID: 1")
    assert found["Jetson Linux"].level == "warning"
    assert "L4T 35.4.1 (JetPack 6.2+b77): older than JetPack 6.1" in found["Jetson Linux"].found


def test_an_old_board_is_told(recorded):
    found = changed(recorded("orin-nano"), "proc/device-tree/compatible", "nvidia,p3310\0nvidia,tegra186\0")
    assert (found["board"].level, found["board"].found[-12:]) == ("warning", "a Jetson TX2")


def test_cores_that_are_switched_off_are_told(recorded):
    found = by_name(list(look_at_hardware(look(recorded("agx-orin")))))["CPU"]
    assert found.found.startswith("Cortex-A78AE, 8 of 12 cores are on")
    assert "nvpmodel" in str(found.do)


def test_over_current_in_the_past_is_told(recorded):
    found = changed(recorded("orin-nano"), "sys/class/hwmon/hwmon2/oc3_event_cnt", "27390\n")["throttling"]
    assert (found.level, found.figures) == ("warning", {"over-current 3": 27390})
    assert "27,390 times" in found.found


@pytest.mark.parametrize(
    ("available", "swap", "level"),
    [
        (4_000_000, 0, "warning"),
        (4_000_000, 2_000_000, "ok"),
        (1_000_000, 0, "warning"),
        (300_000, 0, "problem"),
    ],
)
def test_memory_is_enough_or_not(recorded, available, swap, level):
    lines = f"MemTotal: 7802060 kB\nMemAvailable: {available} kB\nSwapTotal: {swap} kB\nSwapFree: {swap} kB\n"
    found = changed(recorded("orin-nano"), "proc/meminfo", lines)["memory"]
    assert found.level == level


def test_a_laptop_is_not_bothered_with_what_jetsons_have(recorded):
    found = by_name(list(look_at_hardware(look(recorded("laptop")))))
    assert "power mode" not in found
    assert found["Jetson Linux"].found == "not there, as this is no Jetson"
    assert "jetson_clocks" not in str(found["clocks"].do)


def test_a_card_that_is_slowed_down_is_told(recorded):
    card = GraphicsCard(
        "NVIDIA L4", "550.54", 84.0, 900.0, 2040.0, 71.9, 72.0, ("heat",), at_power_limit=True
    )
    machine = replace(look(recorded("laptop")), graphics_cards=(card,))
    found = by_name(list(look_at_hardware(machine)))
    assert found["throttling"].level == "warning"
    assert "NVIDIA L4 by heat" in found["throttling"].found
    assert "NVIDIA L4 84 °C" in found["temperature"].found


def warm(tree: Any, degrees: dict[str, float]) -> Finding:
    """The finding on heat where some zones of a recorded machine are at other degrees."""
    for folder in tree.root.glob("sys/class/thermal/thermal_zone*"):
        if (name := (folder / "type").read_text().strip()) in degrees:
            (folder / "temp").write_text(f"{round(degrees[name] * 1000)}\n")
    return by_name(list(look_at_hardware(look(tree))))["temperature"]


def test_a_warm_orin_is_in_order(recorded):
    """At 72 °C its surface is hot; it is slowed down from 99 °C on."""
    tree = recorded("agx-orin")
    found = warm(tree, {"tj-thermal": 72, "cpu-thermal": 72})
    assert (found.level, found.found) == ("ok", "cpu-thermal 72 °C, slowed down from 99 °C on")
    assert warm(tree, {"tj-thermal": 90}).level == "warning"


def test_each_thermometer_has_its_own_limit(recorded):
    tree = recorded("orin-nano")
    (tree.root / "sys/class/thermal/thermal_zone5/trip_point_0_temp").write_text("60000\n")
    found = warm(tree, {"soc0-thermal": 61, "cpu-thermal": 70, "gpu-thermal": 93})
    assert found.level == "warning"
    assert found.found == "soc0-thermal 61 °C, slowed down from 60 °C on; gpu-thermal 93 °C"


@pytest.mark.parametrize(
    ("zone", "degrees", "level", "told"),
    [
        ("x86_pkg_temp", 80, "ok", "its limit is unknown"),
        ("x86_pkg_temp", 95, "warning", "its limit is unknown"),
        ("acpitz", 112, "warning", "switched off at 120 °C"),
    ],
)
def test_a_thermometer_that_does_not_tell_its_limit(recorded, zone, degrees, level, told):
    found = warm(recorded("laptop"), {zone: degrees})
    assert (found.level, found.found) == (level, f"{zone} {degrees} °C, {told}")


def test_a_jetson_that_tells_nothing_is_warned_of(recorded):
    """As in a container that does not see the board's files."""
    tree = recorded("orin-nano")
    shutil.rmtree(tree.root / "sys")
    for name in ("meminfo", "cpuinfo"):
        (tree.root / "proc" / name).unlink()
    found = by_name(list(look_at_hardware(look(tree))))
    assert {name for name, one in found.items() if one.level == "warning"} == {
        *("CPU", "memory", "clocks", "temperature", "throttling")
    }
    assert "from the board itself" in str(found["memory"].do)


def test_a_pc_with_one_thread_a_core_gets_no_jetsons_advice(recorded):
    found = changed(recorded("laptop"), "sys/devices/system/cpu/present", "0-7\n")["CPU"]
    assert ("4 of 8 cores are on" in found.found, found.do) == (True, None)


def test_a_machine_that_tells_nothing_has_no_problem(tmp_path):
    findings = list(look_at_hardware(Machine.read(tmp_path, lambda _: None)))
    assert bad(findings) == {}
    assert sum("unknown" in finding.found for finding in findings) >= 5


# ---- the software


def test_this_installation_is_in_order():
    assert bad(list(look_at_software({}))) == {}


@pytest.mark.parametrize(("codec", "level"), [("JPEG", "problem"), ("LZW", "problem"), ("ZSTD", "warning")])
def test_a_compression_that_gdal_lacks(monkeypatch, codec, level):
    monkeypatch.setattr("edge_infer.doctor.software._round_trip", lambda one: one != codec)
    found = by_name(list(look_at_software({})))["GDAL"]
    assert (found.level, f"lacks {codec} compression" in found.found) == (level, True)


def test_a_codec_is_tried_and_not_believed():
    from edge_infer.doctor.software import CODECS, _round_trip

    assert [codec for codec in CODECS if _round_trip(codec)] == list(CODECS)
    assert not _round_trip("NO_SUCH_CODEC")


def test_drivers_that_are_missing(monkeypatch):
    monkeypatch.setattr("pyogrio.list_drivers", lambda **_: {"GPKG": "rw", "GeoJSON": "rw"})
    assert "ESRI Shapefile (shapefiles)" in by_name(list(look_at_software({})))["OGR"].found
    monkeypatch.setattr("pyogrio.list_drivers", lambda **_: {"GPKG": "r"})
    assert by_name(list(look_at_software({})))["OGR"].level == "problem"


def test_a_proj_that_misplaces_is_found(monkeypatch):
    monkeypatch.setattr("rasterio.warp.transform", lambda *_: ([-93.0], [45.0]))
    found = by_name(list(look_at_software({})))["PROJ"]
    assert (found.level, found.found.endswith("rasterio misplaces a known point")) == ("problem", True)


def test_variables_that_lead_to_other_files():
    found = by_name(list(look_at_software({"PROJ_LIB": "/opt/conda/share/proj", "GDAL_DATA": ""})))
    assert found["environment"].level == "warning"
    assert found["environment"].do == "unset PROJ_LIB"


def test_a_clock_that_began_in_1970(monkeypatch):
    monkeypatch.setattr("edge_infer.doctor.software.time.time", lambda: 60.0)
    assert by_name(list(look_at_software({})))["date"].level == "warning"


@pytest.mark.parametrize(("free", "level"), [(50 << 20, "problem"), (500 << 20, "warning"), (5 << 30, "ok")])
def test_room_on_disks(tmp_path, monkeypatch, free, level):
    monkeypatch.setattr("edge_infer.doctor.software.shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    missing = tmp_path / "not" / "there"
    (found,) = look_at_disks([("engines", missing), ("what is written here", tmp_path)])
    assert (found.level, found.figures) == (level, {"free_bytes": free})
    assert str(tmp_path) in found.found


# ---- the GPU


def test_without_a_gpu_nothing_is_missed(recorded, no_gpu):
    gpu, findings = look_at_graphics(look(recorded("laptop")))
    assert [(finding.name, finding.level) for finding in findings] == [("GPU", "ok")]
    assert not gpu.usable
    assert list(look_at_plans(gpu)) == []


def test_a_card_without_a_driver_is_told(recorded, no_gpu):
    tree = recorded("laptop")
    for slot, (vendor, kind) in enumerate(
        (("0x10de", "0x030000"), ("0x10de", "0x040300"), ("0x8086", "0x030000"))
    ):
        folder = tree.root / f"sys/bus/pci/devices/0000:0{slot}:00.0"
        folder.mkdir(parents=True)
        (folder / "vendor").write_text(f"{vendor}\n")
        (folder / "class").write_text(f"{kind}\n")
    machine = look(tree)
    assert machine.nvidia_cards == 1
    found = by_name(look_at_graphics(machine)[1])
    assert (found["GPU"].level, found["GPU"].do) == ("warning", "install one, or use --engine openvino")


def modules(monkeypatch: pytest.MonkeyPatch, **there: bool) -> None:
    def find(name: str, package: str | None = None) -> object:
        return there.get(name, False) or None if name in ("tensorrt", "pycuda") else find_spec(name, package)

    monkeypatch.setattr("edge_infer.doctor.graphics.find_spec", find)


def test_a_jetson_without_tensorrt_is_told_what_to_install(recorded, monkeypatch):
    monkeypatch.setattr("edge_infer.device.gpu.probe_gpu", lambda: ORIN)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    modules(monkeypatch)
    gpu, findings = look_at_graphics(look(recorded("orin-nano")))
    found = by_name(findings)
    assert (found["TensorRT"].level, found["pycuda"].level) == ("warning", "warning")
    assert "nvidia-jetpack" in str(found["TensorRT"].do)
    assert "until then --engine openvino" in str(found["TensorRT"].do)
    assert "wheelhouse" in str(found["pycuda"].do)
    assert found["kernels"].level == "ok"  # an integrated GPU leaves the cutting to the CPU
    assert not gpu.usable


def test_a_tensorrt_that_cannot_be_loaded_is_a_problem(recorded, monkeypatch):
    """As `--engine auto` takes what is there, and a run would end with it."""
    monkeypatch.setattr("edge_infer.device.gpu.probe_gpu", lambda: ORIN)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    modules(monkeypatch, tensorrt=True)
    found = by_name(look_at_graphics(look(recorded("orin-nano")))[1])
    assert found["TensorRT"].level == "problem"


def usable(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(__version__="10.3.0", Builder=object)
    monkeypatch.setattr("edge_infer.device.gpu.probe_gpu", lambda: ORIN)
    for name, value in (("tensorrt", module), ("pycuda", SimpleNamespace()), ("pycuda.driver", module)):
        monkeypatch.setitem(sys.modules, name, value)
    modules(monkeypatch, tensorrt=True, pycuda=True)


def record(content: bytes, **key: Any) -> PlanRecord:
    values: dict[str, Any] = {
        "model_sha256": "a" * 64,
        "tensorrt": "10.3.0",
        "gpu": "Orin",
        "compute_capability": "8.7",
        "multiprocessors": 8,
        "driver": "12.6",
        "precision": "int8",
        "batch": 64,
    }
    return PlanRecord(
        key=PlanKey(**{**values, **key}), model="town", plan_sha256="b" * 64, plan_bytes=len(content),
        build_seconds=95.2, created="2026-11-22T10:00:00Z", layers=None,
    )  # fmt: skip


def test_engines_of_this_device_and_of_others(recorded, monkeypatch, tmp_path):
    usable(monkeypatch)
    gpu, findings = look_at_graphics(look(recorded("orin-nano")))
    assert by_name(findings)["TensorRT"].found == "10.3.0"
    assert gpu.usable
    (none,) = look_at_plans(gpu)
    assert "none are built yet" in none.found
    cache = PlanCache(tmp_path / "engines")
    cache.prepare()
    cache.keep(b"one", record(b"one"))
    cache.keep(b"two", record(b"two", tensorrt="10.7.0"))
    cache.keep(b"three", record(b"three", precision="fp16"))
    (found,) = look_at_plans(gpu)
    assert found.figures == {"engines": 3, "usable": 2}
    assert "TensorRT was 10.7.0, is 10.3.0" in found.found
    (idle,) = look_at_plans(replace(gpu, tensorrt=None))
    assert "need a GPU with TensorRT" in idle.found
    assert idle.level == "warning"


# ---- the model


def model_findings(path: Path, no_gpu: object = None) -> dict[str, Finding]:
    return by_name(list(examine(Checkup(model=path)).parts["model"]))


def test_a_good_bundle(golden, no_gpu):
    found = model_findings(golden())
    assert bad(list(found.values())) == {}
    assert found["openvino fp32"].figures["same_class"] == found["openvino fp32"].figures["chips"] == 19
    assert found["openvino fp32"].figures["largest_difference"] < 1e-6
    assert "openvino int8" not in found


def test_answers_that_are_not_the_stored_ones(golden, no_gpu):
    found = model_findings(golden(0.01))["openvino fp32"]
    assert found.level == "problem"
    assert found.figures["largest_difference"] == pytest.approx(0.01, abs=1e-5)


def test_int8_may_shift_as_far_as_its_gate_saw(golden, no_gpu):
    path = golden(0.08)
    int8 = open_bundle(path).read("model.onnx")
    gate = json.dumps({"gate": {"largest_probability_shift": 0.03}}).encode()
    path = golden(0.08, model__int8__onnx=int8)
    assert model_findings(path)["openvino int8"].level == "ok"  # nothing is known of its shifts
    path = golden(0.08, model__int8__onnx=int8, calibration__json=gate)
    assert largest_difference(open_bundle(path), "int8") == 0.06
    assert model_findings(path)["openvino int8"].level == "problem"


def test_no_golden_chips(make_bundle, no_gpu):
    assert model_findings(make_bundle())["golden chips"].level == "warning"


def test_a_broken_bundle(golden, no_gpu, capsys):
    path = golden()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    status, out, err = invoke(capsys, path)
    assert (status, err) == (3, "")
    assert re.search(r"problem +bundle +.*(checksum|damaged)", out)
    assert "-> copy" in out


def test_no_bundle_at_all(tmp_path, no_gpu):
    assert model_findings(tmp_path / "none.edgemodel")["bundle"].level == "problem"


def test_every_chip_is_classified_and_padding_is_not(golden):
    bundle = open_bundle(golden())
    chips, expected = bundle.golden()
    with closing(open_engine(bundle, engine="openvino", batch=8)) as engine:  # 19 = 8 + 8 + 3
        found = classify_chips(engine, chips)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_answers_near_the_stored_ones_that_are_other_classes(golden, no_gpu, monkeypatch):
    """Where probabilities are close calls, an engine may stay within its limit and turn many classes over."""
    monkeypatch.setattr("edge_infer.doctor.model.compare", lambda found, expected: Agreement(19, 17, 0.0001))
    found = model_findings(golden())["openvino fp32"]
    assert (found.level, found.figures["same_class"]) == ("problem", 17)
    assert "wanted 90% of the classes" in found.found
    monkeypatch.setattr("edge_infer.doctor.model.compare", lambda found, expected: Agreement(19, 18, 0.0001))
    assert model_findings(golden())["openvino fp32"].level == "ok"


def test_numbers_that_are_none_count_as_infinitely_far():
    expected = np.array([[0.2, 0.8], [0.5, 0.5]], np.float32)
    found = np.array([[0.2, 0.8], [np.nan, 0.5]], np.float32)
    assert compare(found, expected).largest_difference > 1e30
    assert compare(expected, expected).same_class == 2


# ---- the run to come


@pytest.fixture
def scene(golden, write_raster, tmp_path):
    """A bundle, an image of 200 m by 200 m, and ten houses: seven on it, two beside, one without geometry."""
    image = write_raster("image.tif", np.full((3, 400, 400), 90, np.uint8))
    houses = [shapely.box(360_020 + 20 * n, 4_099_900, 360_028 + 20 * n, 4_099_908) for n in range(7)]
    houses += [shapely.box(370_000, 4_099_900, 370_009, 4_099_908)] * 2
    features: list[dict[str, Any]] = [
        {"type": "Feature", "properties": {"n": n}, "geometry": shapely.geometry.mapping(house)}
        for n, house in enumerate(houses)
    ]
    features.append({"type": "Feature", "properties": {"n": 9}, "geometry": None})
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32615"}}
    path = tmp_path / "houses.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": features}))
    return Checkup(model=golden(), imagery=(image,), footprints=path, out=tmp_path / "out.gpkg")


def work_findings(checkup: Checkup) -> dict[str, Finding]:
    return by_name(list(examine(checkup).parts["work"]))


def test_the_shares_are_those_of_the_run(scene, no_gpu):
    found = work_findings(scene)
    assert bad(list(found.values())) == {}
    assert scene.model is not None
    assert scene.out is not None
    assert not scene.out.exists()
    summary = classify(
        RunRequest(bundle=scene.model, imagery=scene.imagery, footprints=scene.footprints, out=scene.out),
        quiet=True,
    )
    done = Counter(summary.counts.statuses)
    wanted = {
        "pending": done["ok"],
        "outside_imagery": done["outside_imagery"],
        "bad_geometry": done["bad_geometry"],
    }
    assert found["footprints"].figures == {"footprints": 10, "by_status": wanted}
    assert wanted == {"pending": 7, "outside_imagery": 2, "bad_geometry": 1}
    assert found["footprints"].found.startswith(
        "7 of 10 (70.0 %) would be classified; outside_imagery 2: no image"
    )
    output = work_findings(scene)["output"]
    assert (output.level, output.found) == ("warning", f"{scene.out} is of an earlier run: all is done")
    assert "--resume" in str(output.do)


def test_an_output_that_is_half_done_is_gone_on_with(scene, no_gpu):
    request = RunRequest(
        bundle=scene.model, imagery=scene.imagery, footprints=scene.footprints, out=scene.out
    )
    classify(request, quiet=True)
    with closing(sqlite3.connect(scene.out)) as database:
        triggers = database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for (name,) in triggers:  # which call functions that only GDAL has
            database.execute(f'DROP TRIGGER "{name}"')
        database.execute("UPDATE houses SET status = 'pending' WHERE status = 'ok'")
        database.commit()
    found = work_findings(scene)["output"]
    assert (found.level, found.figures) == ("warning", {"pending": 7})
    assert found.found.endswith("7 of 10 footprints are still to do")


def test_a_file_of_others_is_no_output_to_go_on_with(scene, no_gpu):
    scene.out.write_bytes(b"SQLite format 3\0")
    assert work_findings(scene)["output"].level == "problem"
    named = replace(scene, out=scene.out.with_suffix(".gpkg"), footprints=scene.out)
    assert "is an input" in work_findings(named)["output"].found


def test_what_run_refuses_is_a_problem_in_its_words(scene, no_gpu, golden, capsys):
    """The same sentence, cut at its last semicolon into what is and what to do."""
    path = scene.model
    bundle = open_bundle(path)
    finer = replace(bundle.manifest, contract=replace(bundle.manifest.contract, coarsest_gsd_metres=0.1))
    members = {name: bundle.read(name) for name in bundle.members}
    write_bundle(path, finer, members)
    found = work_findings(scene)["imagery"]
    assert found.level == "problem"
    with pytest.raises(SystemExit) as ended:
        main(["run", "--model", str(path), "--imagery", str(scene.imagery[0]), "--out", str(scene.out)])
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"edge-infer: {found.found}; {found.do}\n"


def test_footprints_that_lie_nowhere_on_the_imagery(scene, no_gpu):
    moved = replace(scene, footprints_crs="EPSG:32617")
    found = work_findings(moved)["footprints"]
    assert found.level == "problem"
    assert found.figures["by_status"]["outside_imagery"] == 9


def test_images_that_do_not_fit_are_named(scene, no_gpu, write_raster):
    write_raster("more/good.tif", np.full((3, 40, 40), 90, np.uint8))
    bad_image = write_raster("more/grey.tif", np.full((1, 40, 40), 90, np.uint8))
    found = work_findings(replace(scene, imagery=(bad_image.parent,)))["imagery"]
    assert (found.level, found.figures["images"], found.figures["skipped"]) == ("warning", 1, 1)
    assert "grey.tif" in found.found


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"footprints": Path("nowhere.gpkg")}, "footprints"),
        ({"imagery": (Path("nowhere.tif"),)}, "imagery"),
        ({"where": "no_such_column = 1"}, "footprints"),
        ({"out": Path("result.shp")}, "output"),
        ({"out": Path("no/such/folder/out.gpkg")}, "output"),
        ({"imagery": (), "footprints": Path("nowhere.gpkg")}, "footprints"),
    ],
)
def test_other_refusals(scene, no_gpu, change, name):
    assert work_findings(replace(scene, **change))[name].level == "problem"


def test_images_themselves_where_no_footprints_are_named(scene, no_gpu):
    assert work_findings(replace(scene, footprints=None))["footprints"].figures["by_status"] == {"pending": 1}


# ---- the command


def test_json_and_text_say_the_same(scene, no_gpu, capsys):
    arguments = [scene.model, "--imagery", scene.imagery[0], "--footprints", scene.footprints]
    status, out, _ = invoke(capsys, *arguments, "--json")
    facts = json.loads(out)
    assert (status, facts["level"], facts["format"]) == (0, "ok", 1)
    assert {finding["part"] for finding in facts["findings"]} == {
        *("machine", "software", "graphics", "model", "work")
    }
    status, text, _ = invoke(capsys, *arguments)
    assert status == 0
    for finding in facts["findings"]:
        assert re.search(rf"  {finding['level']} +{re.escape(finding['name'])} ", text)
    assert text.splitlines()[-1] == f"{len(facts['findings'])} ok"


def test_a_problem_gives_three(capsys, tmp_path, no_gpu):
    status, out, err = invoke(capsys, tmp_path / "none.edgemodel", "--json")
    assert (status, err, json.loads(out)["level"]) == (3, "", "problem")


def test_options_of_a_run_want_a_model(capsys):
    status, _, err = invoke(capsys, "--imagery", "x.tif")
    assert (status, "name the MODEL" in err) == (2, True)


def test_documentation_names_every_check(scene, recorded, monkeypatch):
    """Each finding that can be made is explained in docs/doctor.md, and each field of the JSON."""
    usable(monkeypatch)
    text = DOCUMENT.read_text()
    names: set[str] = set()
    for name in MACHINES:
        report = examine(Checkup(), look(recorded(name)))
        names |= {finding.name for finding in report.findings}
    monkeypatch.undo()
    report = examine(replace(scene, imagery=(*scene.imagery, scene.imagery[0])))
    names |= {finding.name for finding in report.findings}
    names |= set(re.findall(r'Finding\(\s*"([\w ]+)"', sources()))
    assert {name for name in names if f"| {name} |" not in text} <= {"openvino fp32"}
    facts = report.to_json()
    fields = {*facts, *facts["findings"][0], *facts["machine"]}
    assert {name for name in fields if f"`{name}`" not in text} == set()


def sources() -> str:
    folder = Path(Finding.__module__.replace(".", "/")).parent
    return "".join(path.read_text() for path in (DOCUMENT.parents[1] / folder).glob("*.py"))


def test_nothing_is_written_and_nobody_is_called(scene, tmp_path):
    """In a process of its own, whose every connection and every file opened to be written is told."""
    assert scene.footprints is not None
    program = (
        "import os, sys; from edge_infer.cli import main\n"
        "def watch(event, details):\n"
        "    writes = event == 'open' and details[2] & (os.O_WRONLY | os.O_RDWR)\n"
        "    if writes and details[0] != '/dev/null' or event in ('os.mkdir', 'os.rename'):\n"
        "        print('AUDIT', event, details, file=sys.stderr)\n"
        "sys.dont_write_bytecode = True\n"
        "sys.addaudithook(watch)\n"
        "try: main()\n"
        "finally: print('LOADED', sorted({'torch', 'onnx'} & set(sys.modules)), file=sys.stderr)\n"
    )
    before = set(tmp_path.rglob("*"))
    arguments = ["doctor", scene.model, "--imagery", scene.imagery[0], "--footprints", scene.footprints]
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "AUDIT" not in done.stderr
    assert "LOADED []" in done.stderr
    assert set(tmp_path.rglob("*")) == before


def test_anything_may_break_and_a_report_comes(recorded, monkeypatch):
    def broken(*_: object, **__: object) -> Any:
        raise RuntimeError("broken")

    for name in (
        *("rasterio.Env", "pyogrio.list_drivers", "pyproj.Transformer.from_crs"),
        *("edge_infer.version.describe", "edge_infer.doctor.software.shutil.disk_usage"),
        "edge_infer.doctor.hardware._memory",
    ):
        monkeypatch.setattr(name, broken)
    report = examine(Checkup(), look(recorded("laptop")))
    assert isinstance(report, Report)
    assert report.exit_code == 3
    assert {"GDAL", "OGR", "PROJ", "edge-infer", "disk", "machine"} <= bad(report.findings).keys()


def test_contracts_with_other_windows_are_told(make_bundle, no_gpu):
    contract = ChipContract(
        ground_metres=12, chip_pixels=16, bands=("red", "green", "blue"), coarsest_gsd_metres=2,
        window_mode="footprint", context_factor=1.5,
    )  # fmt: skip
    found = model_findings(make_bundle(contract))["contract"]
    assert "the footprint's own size" in found.found
    assert found.figures == contract.to_json()


def test_in_a_folder_that_is_gone(tmp_path, monkeypatch, no_gpu, capsys):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    status, out, err = invoke(capsys, "town.edgemodel", "--out", "out.gpkg")
    assert (status, err) == (3, "")
    assert re.search(r"problem +disk +the folder that this was called in is gone", out)


def test_this_machine_has_no_problem():
    assert shutil.disk_usage(Path.cwd()).free > 1 << 30, "the test's own need"
    report = examine(Checkup())
    assert [finding for finding in report.findings if finding.level == "problem"] == []
    assert report.machine.cpu is not None
    assert Tree().text("proc/cpuinfo")
