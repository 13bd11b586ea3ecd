"""What a user sees: messages, exit codes, and nothing written where the run is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import fiona
import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from edge_infer.cli import commands, main
from edge_infer.manifest import ChipContract

if TYPE_CHECKING:
    from collections.abc import Callable

UTM = "EPSG:32615"
COMMAND = str(Path(sys.executable).with_name("edge-infer"))


def write_image(
    path: Path, *, crs: str | None = UTM, count: int = 3, dtype: str = "uint8", gsd: float = 0.5
) -> None:
    with rasterio.open(
        path, "w", driver="GTiff", width=80, height=80, count=count, dtype=dtype, crs=crs,
        transform=from_origin(360_000, 4_100_000, gsd, gsd), photometric="RGB" if count > 2 else "MINISBLACK",
    ) as dataset:  # fmt: skip
        dataset.write(np.full((count, 80, 80), 90, dtype))


def write_houses(path: Path, *, crs: str | None = UTM, layers: tuple[str, ...] = ("houses",)) -> None:
    square = [(360_010, 4_099_980), (360_020, 4_099_980), (360_020, 4_099_990), (360_010, 4_099_980)]
    schema = {"geometry": "Polygon", "properties": {"name": "str"}}
    for layer in layers:
        with fiona.open(path, "w", driver="GPKG", crs=crs, schema=schema, layer=layer) as sink:
            sink.write(
                {"geometry": {"type": "Polygon", "coordinates": [square]}, "properties": {"name": "a"}}
            )


@pytest.fixture
def job(tmp_path: Path, make_bundle: Callable[..., Path]) -> dict[str, str]:
    """Options of a run that works."""
    write_image(tmp_path / "image.tif")
    write_houses(tmp_path / "houses.gpkg")
    return {
        "--model": str(make_bundle()),
        "--imagery": str(tmp_path / "image.tif"),
        "--footprints": str(tmp_path / "houses.gpkg"),
        "--out": str(tmp_path / "out.gpkg"),
    }


def invoke(capsys: pytest.CaptureFixture[str], job: dict[str, str], *flags: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error of `edge-infer run`."""
    arguments = [word for option in job.items() for word in option]
    with pytest.raises(SystemExit) as ended:
        main(["run", *arguments, *flags])
    told = capsys.readouterr()
    return int(ended.value.code or 0), told.out, told.err


def test_the_summary_on_standard_output(job: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    code, told, complained = invoke(capsys, job)
    assert (code, complained) == (0, "")
    assert "out.gpkg: 1 footprints\n  classified: dark 1\n" in told
    code, told, _ = invoke(capsys, job, "--overwrite", "--json")
    assert json.loads(told)["statuses"] == {"ok": 1}


def test_info_on_both_kinds_of_file(job: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    invoke(capsys, job)
    for file, word in ((job["--model"], "brightness"), (job["--out"], "openvino")):
        with pytest.raises(SystemExit) as ended:
            main(["info", file])
        assert ended.value.code == 0
        assert word in capsys.readouterr().out


def no_model(job: dict[str, str], folder: Path) -> None:
    job["--model"] = str(folder / "none.edgemodel")


def broken_bundle(job: dict[str, str], folder: Path) -> None:
    path = Path(job["--model"])
    content = bytearray(path.read_bytes())
    content[content.index(b"levels") + 3] ^= 1  # inside model.onnx
    path.write_bytes(content)


def compressed_bundle(job: dict[str, str], folder: Path) -> None:
    path = Path(job["--model"])
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def no_imagery(job: dict[str, str], folder: Path) -> None:
    job["--imagery"] = str(folder / "none.tif")


def imagery_is_no_raster(job: dict[str, str], folder: Path) -> None:
    job["--imagery"] = job["--footprints"].replace(".gpkg", ".txt")
    Path(job["--imagery"]).write_text("no raster")


def imagery_without_crs(job: dict[str, str], folder: Path) -> None:
    write_image(folder / "image.tif", crs=None)


def one_band(job: dict[str, str], folder: Path) -> None:
    write_image(folder / "image.tif", count=1)


def sixteen_bits(job: dict[str, str], folder: Path) -> None:
    write_image(folder / "image.tif", dtype="uint16")


def coarse_imagery(job: dict[str, str], folder: Path) -> None:
    write_image(folder / "image.tif", gsd=5)


def no_footprints(job: dict[str, str], folder: Path) -> None:
    job["--footprints"] = str(folder / "none.gpkg")


def footprints_are_no_vector(job: dict[str, str], folder: Path) -> None:
    job["--footprints"] = str(folder / "houses.json")
    Path(job["--footprints"]).write_text("{")


def footprints_without_crs(job: dict[str, str], folder: Path) -> None:
    (folder / "houses.gpkg").unlink()
    write_houses(folder / "houses.gpkg", crs=None)


def several_layers(job: dict[str, str], folder: Path) -> None:
    write_houses(folder / "houses.gpkg", layers=("sheds",))


def wrong_layer(job: dict[str, str], folder: Path) -> None:
    job["--layer"] = "sheds"


def wrong_filter(job: dict[str, str], folder: Path) -> None:
    job["--where"] = "nonsense = 'x'"


def output_exists(job: dict[str, str], folder: Path) -> None:
    (folder / "out.gpkg").write_bytes(b"mine")


def output_in_no_folder(job: dict[str, str], folder: Path) -> None:
    job["--out"] = str(folder / "none" / "out.gpkg")


def output_is_the_input(job: dict[str, str], folder: Path) -> None:
    job["--out"] = job["--footprints"]


def no_tensorrt(job: dict[str, str], folder: Path) -> None:
    job["--engine"] = "tensorrt"


def no_int8(job: dict[str, str], folder: Path) -> None:
    job["--precision"] = "int8"


def half_precision(job: dict[str, str], folder: Path) -> None:
    job["--precision"] = "fp16"


def bands_in_words(job: dict[str, str], folder: Path) -> None:
    job["--bands"] = "red"


def band_too_many(job: dict[str, str], folder: Path) -> None:
    job["--bands"] = "1,2,4"


def crs_in_words(job: dict[str, str], folder: Path) -> None:
    job["--imagery-crs"] = "somewhere"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (no_model, "none.edgemodel: no such file"),
        (broken_bundle, "a damaged one"),
        (compressed_bundle, "is compressed"),
        (no_imagery, "none.tif does not exist, or may not be read"),
        (imagery_is_no_raster, "no raster that GDAL can read"),
        (imagery_without_crs, "--imagery-crs"),
        (one_band, "has 1 bands (gray), the model wants 3 (red, green, blue)"),
        (sixteen_bits, "holds uint16 pixels, the model wants uint8"),
        (coarse_imagery, "the model wants 2 m or finer"),
        (no_footprints, "there is no file"),
        (footprints_are_no_vector, "cannot be read as a vector layer"),
        (footprints_without_crs, "--footprints-crs"),
        (several_layers, "--layer: houses, sheds"),
        (wrong_layer, "its layers are: houses"),
        (wrong_filter, "--where"),
        (output_exists, "--overwrite"),
        (output_in_no_folder, "there is no folder"),
        (output_is_the_input, "is an input of this run"),
        (no_tensorrt, "--engine openvino"),
        (no_int8, "--precision fp32"),
        (half_precision, "--precision auto"),
        (bands_in_words, "wanted numbers: 3,2,1"),
        (band_too_many, "--bands says 1, 2, 4"),
        (crs_in_words, "write it as EPSG:32615"),
    ],
)
def test_what_is_refused_is_said_in_one_line_and_nothing_is_written(
    job: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[dict[str, str], Path], None],
    words: str,
) -> None:
    spoil(job, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, told, complained = invoke(capsys, job)
    assert (code, told) == (2, "")
    assert words in complained
    if spoil is not bands_in_words:  # click adds its usage lines
        assert complained.startswith("edge-infer: ")
        assert complained.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_missing_crs_can_be_supplied_on_either_side(
    job: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    imagery_without_crs(job, tmp_path)
    footprints_without_crs(job, tmp_path)
    code, _, complained = invoke(capsys, {**job, "--imagery-crs": UTM, "--footprints-crs": UTM})
    assert (code, complained) == (0, "")
    with fiona.open(job["--out"]) as source:
        assert source.crs.to_string() == UTM
        assert [feature.properties["status"] for feature in source] == ["ok"]


def test_a_wrong_contract_is_refused_before_the_footprints_are_read(
    job: dict[str, str], make_bundle: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    contract = ChipContract(ground_metres=12, chip_pixels=16, bands=("nir",), coarsest_gsd_metres=2)
    job["--model"] = str(make_bundle(contract, name="infrared"))
    code, _, complained = invoke(capsys, job)
    assert code == 2
    assert "the model wants 1 (nir)" in complained


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = capsys.readouterr().out
    for name in commands.commands:
        assert name in listed
        with pytest.raises(SystemExit) as ended:
            main([name, "--help"])
        assert ended.value.code == 0
        assert len(capsys.readouterr().out.splitlines()) > 5


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from edge_infer.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'numpy', 'openvino', 'rasterio', 'pyogrio', 'shapely', 'pyproj', 'torch', 'onnx', 'tqdm'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_version_names_the_kernels() -> None:
    done = subprocess.run([COMMAND, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("edge-infer 0.1.0")
    assert "CUDA" in done.stdout
