"""Input made to do harm: each kind is refused in one line, or does none."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import pickle
import re
import shutil
import sqlite3
import stat
import struct
import subprocess
import sys
import threading
import zipfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pyogrio.raw
import pytest
import rasterio
import rasterio.shutil
import shapely
from onnx import TensorProto, helper

import edge_infer
from edge_infer.bundle import MAX_MEMBER_BYTES, open_bundle, write_bundle
from edge_infer.classify import classify
from edge_infer.engine.choose import open_engine
from edge_infer.errors import BundleError, EdgeInferError, EngineError, FootprintsError, ImageryError
from edge_infer.footprints import read_footprints
from edge_infer.imagery import Reader, open_imagery
from edge_infer.manifest import ChipContract
from edge_infer.request import RunRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GREY = ChipContract(ground_metres=12, chip_pixels=16, bands=("gray",), coarsest_gsd_metres=2)


class Executed:
    """Unpickling it would call a function that a test can see."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.putenv, ("EDGE_INFER_EXECUTED", "1")


def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from edge_infer.cli import main; main()", "run", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, **options)


# ---- bundles


@pytest.fixture
def bundle(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle()


def entry(
    name: str, content: bytes, *, declared: int | None = None, mode: int = stat.S_IFREG | 0o644, at: int = 0
) -> tuple[bytes, bytes]:
    """One member as bytes of the zip and of its directory, by the zip format alone."""
    size = len(content) if declared is None else declared
    crc = zipfile.crc32(content)  # type: ignore[attr-defined]
    common = struct.pack("<HHHHHIIIHH", 20, 0, 0, 0, 33, crc, size, size, len(name), 0)
    local = b"PK\x03\x04" + common + name.encode() + content
    central = (
        b"PK\x01\x02" + struct.pack("<H", 0x314) + common + struct.pack("<HHHII", 0, 0, 0, mode << 16, at)
    )
    return local, central + name.encode()


def test_members_that_overlap_gain_nothing(bundle, tmp_path):
    """The bomb that needs no compression: many names for the same bytes. Few names are known, none twice."""
    bomb = tmp_path / "bomb.edgemodel"
    with zipfile.ZipFile(bundle) as archive:
        manifest = archive.read("manifest.json")
    members = ["manifest.json", "checksums.json", *(f"layer{number}.bin" for number in range(1000))]
    local, _ = entry("manifest.json", manifest)
    directory = b"".join(entry(name, manifest)[1] for name in members)
    end = struct.pack("<HHHHIIH", 0, 0, len(members), len(members), len(directory), len(local), 0)
    bomb.write_bytes(local + directory + b"PK\x05\x06" + end)
    with pytest.raises(BundleError, match=r"not a model bundle|unexpected member"):
        open_bundle(bomb)


@pytest.mark.parametrize("declared", [MAX_MEMBER_BYTES + 1, 2**32 - 2])
def test_a_huge_declared_size_takes_no_memory(bundle, declared):
    content = bytearray(bundle.read_bytes())
    place = content.rindex(b"PK\x01\x02", 0, content.rindex(b"model.onnx"))
    content[place + 20 : place + 28] = struct.pack("<II", declared, declared)
    bundle.write_bytes(content)
    with pytest.raises(BundleError, match="the limit is"):
        open_bundle(bundle)


def test_a_size_beyond_the_end_of_the_file(bundle):
    content = bytearray(bundle.read_bytes())
    place = content.rindex(b"PK\x01\x02", 0, content.rindex(b"model.onnx"))
    content[place + 20 : place + 28] = struct.pack("<II", 2**29, 2**29)
    bundle.write_bytes(content)
    with pytest.raises(BundleError, match=r"damaged one|differs"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", ["../../outside", "/outside", "golden/../../outside", "..\\outside"])
def test_no_member_leaves_the_bundle(bundle, tmp_path, name):
    with zipfile.ZipFile(bundle, "a") as archive:
        archive.writestr(name, b"outside")
    before = sorted(tmp_path.parent.rglob("*"))
    outcome = run("--model", bundle, "--imagery", bundle, "--out", tmp_path / "out.gpkg")
    assert outcome.returncode == 2
    assert "unexpected member" in outcome.stderr
    assert sorted(tmp_path.parent.rglob("*")) == before


def test_a_bundle_may_not_be_a_pipe_or_a_device(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(BundleError):
            open_bundle(path)


@pytest.mark.parametrize("member", ["golden/chips.npy", "golden/expected.npy"])
def test_no_pickle_is_loaded(bundle, monkeypatch, member):
    monkeypatch.delenv("EDGE_INFER_EXECUTED", raising=False)
    stream = io.BytesIO()
    np.save(stream, np.array([Executed()], dtype=object), allow_pickle=True)
    for content in (stream.getvalue(), pickle.dumps(Executed())):
        golden = {"golden/chips.npy": b"", "golden/expected.npy": b"", member: content}
        opened = open_bundle(bundle)
        held = {"model.onnx": opened.read("model.onnx"), **golden}
        if member.endswith("expected.npy"):
            chips = io.BytesIO()
            np.save(chips, np.zeros((1, *opened.manifest.contract.chip_shape), np.uint8))
            held["golden/chips.npy"] = chips.getvalue()
        with pytest.raises(BundleError, match="is no NumPy array"):
            write_bundle(bundle, opened.manifest, held).golden()
        assert os.environ.get("EDGE_INFER_EXECUTED") is None


def test_the_runtime_names_nothing_that_executes_data():
    source = Path(edge_infer.__file__).parent
    forbidden = re.compile(
        r"^\s*(import|from)\s+(pickle|marshal|shelve|dill|joblib|torch|onnx|subprocess|socket|urllib\.request|http|requests)\b"
        r"|(?<![.\w])(eval|exec|compile|__import__)\(|allow_pickle=True|os\.system|load_extension|extractall",
        re.MULTILINE,
    )
    found = {
        f"{path.name}: {match.group().strip()}"
        for path in source.rglob("*.py")
        for match in forbidden.finditer(path.read_text())
    }
    # doctor and bench ask nvpmodel, nvidia-smi and nvcc, by constant arguments and without a shell
    assert found == {"tree.py: import subprocess"}


def test_a_run_loads_neither_pickles_nor_torch(bundle, write_raster, tmp_path):
    image = write_raster("image.tif", np.full((3, 64, 64), 200, np.uint8))
    program = (
        "import sys; from edge_infer.cli import main\n"
        "def watch(event, details):\n"
        "    if event in ('pickle.find_class', 'socket.connect', 'subprocess.Popen', 'os.system'):\n"
        "        print('AUDIT', event, details, file=sys.stderr)\n"
        "sys.addaudithook(watch)\n"
        "try: main()\n"
        "finally: print('LOADED', sorted({'torch', 'onnx'} & set(sys.modules)), file=sys.stderr)\n"
    )
    arguments = ["run", "--model", bundle, "--imagery", image, "--out", tmp_path / "out.gpkg"]
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "AUDIT" not in done.stderr
    assert "LOADED []" in done.stderr


# ---- models


def brightness(opened: Any) -> onnx.ModelProto:
    return onnx.load_from_string(opened.read("model.onnx"))


def refusal(bundle: Path, model: onnx.ModelProto) -> str:
    opened = write_bundle(bundle, open_bundle(bundle).manifest, {"model.onnx": model.SerializeToString()})
    with pytest.raises((BundleError, EngineError)) as caught:
        open_engine(opened)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def put_outside(tensor: TensorProto, location: str, offset: int = 0) -> None:
    tensor.ClearField("float_data")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", "4")):
        pair = tensor.external_data.add()
        pair.key, pair.value = key, value


@pytest.mark.parametrize("location", ["weights.bin", "../weights.bin", "/etc/passwd", "*/_ORT_MEM_ADDR_/*"])
@pytest.mark.parametrize("where", ["initializer", "constant", "branch", "function"])
def test_weights_outside_of_the_model_are_refused(bundle, tmp_path, monkeypatch, location, where):
    (tmp_path / "weights.bin").write_bytes(np.float32(255).tobytes())
    monkeypatch.chdir(tmp_path)
    model = brightness(open_bundle(bundle))
    tensor = helper.make_tensor("outside", TensorProto.FLOAT, [1], [255.0])
    put_outside(tensor, location, offset=4096)
    constant = helper.make_node("Constant", [], ["unused"], value=tensor)
    if where == "initializer":
        put_outside(model.graph.initializer[0], location, offset=4096)
    elif where == "constant":
        model.graph.node.insert(0, constant)
    elif where == "branch":
        branch = helper.make_graph([constant], "branch", [], [])
        model.graph.node.append(helper.make_node("If", ["c"], ["d"], then_branch=branch, else_branch=branch))
    else:
        opset = [helper.make_opsetid("", 17)]
        model.functions.append(helper.make_function("", "Mine", [], ["unused"], [constant], opset))
    assert "outside of its file" in refusal(bundle, model)


@pytest.mark.parametrize("domain", ["com.microsoft", "ai.onnx.ml", "mine", "org.openvinotoolkit"])
def test_operators_of_others_are_refused(bundle, domain):
    model = brightness(open_bundle(bundle))
    model.opset_import.append(helper.make_opsetid(domain, 1))
    assert f"operators of '{domain}'" in refusal(bundle, model)
    model = brightness(open_bundle(bundle))
    model.graph.node[0].domain = domain
    assert f"operators of '{domain}'" in refusal(bundle, model)


def rename(model: onnx.ModelProto, old: str, new: str) -> None:
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    for value in (*model.graph.input, *model.graph.output):
        value.name = new if value.name == old else value.name


def test_a_model_with_another_interface_is_refused(bundle):
    def give_doubles(model: onnx.ModelProto) -> None:
        rename(model, "probabilities", "before")
        cast = helper.make_node("Cast", ["before"], ["probabilities"], to=TensorProto.DOUBLE)
        model.graph.node.append(cast)
        model.graph.output[0].CopyFrom(
            helper.make_tensor_value_info("probabilities", TensorProto.DOUBLE, ["N", 2])
        )

    changes: dict[str, Callable[[onnx.ModelProto], object]] = {
        "input name": lambda model: rename(model, "chips", "images"),
        "output name": lambda model: rename(model, "probabilities", "logits"),
        "input type": lambda model: setattr(
            model.graph.input[0].type.tensor_type, "elem_type", TensorProto.FLOAT
        ),
        "input shape": lambda model: model.graph.input[0].CopyFrom(
            helper.make_tensor_value_info("chips", TensorProto.UINT8, ["N", 3, 16, 16])
        ),
        "classes": lambda model: (
            model.graph.node[-1].input.append("dark"),
            model.graph.output[0].CopyFrom(
                helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 3])
            ),
        ),
        "second output": lambda model: model.graph.output.append(
            helper.make_tensor_value_info("grey", TensorProto.FLOAT, ["N", 1])
        ),
        "second input": lambda model: (
            model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, ["N", 1])),
            model.graph.node[-1].input.append("more"),
        ),
        "output type": give_doubles,
    }
    for change, apply in changes.items():
        model = brightness(open_bundle(bundle))
        apply(model)
        assert "export it again" in refusal(bundle, model), change


# ---- imagery


def write_vrt(path: Path, source: object, *, relative: int = 0, size: int = 32, inside: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'<VRTDataset rasterXSize="{size}" rasterYSize="{size}"><SRS>EPSG:32615</SRS>'
        "<GeoTransform>360000,0.5,0,4100000,0,-0.5</GeoTransform>"
        f'<VRTRasterBand dataType="Byte" band="1">{inside}<SimpleSource>'
        f'<SourceFilename relativeToVRT="{relative}">{source}</SourceFilename><SourceBand>1</SourceBand>'
        f'<SourceProperties RasterXSize="{size}" RasterYSize="{size}" DataType="Byte"/>'
        "</SimpleSource></VRTRasterBand></VRTDataset>"
    )
    return path


@pytest.fixture
def secret(write_raster: Callable[..., Path]) -> Path:
    return write_raster("elsewhere/secret.tif", np.full((1, 32, 32), 7, np.uint8))


@pytest.fixture
def flight(write_raster: Callable[..., Path], tmp_path: Path) -> Path:
    write_raster("flight/good.tif", np.full((1, 32, 32), 9, np.uint8))
    write_raster("flight/west/tile.tif", np.full((1, 32, 32), 9, np.uint8))
    return tmp_path / "flight"


def skipped(folder: Path) -> dict[str, str]:
    return {Path(path).name: reason for path, reason in open_imagery([folder], GREY).skipped}


@pytest.mark.parametrize("how", ["absolute", "relative", "nested", ".ovr", ".msk.ovr", ".ovr of a source"])
def test_a_mosaic_in_a_folder_may_not_leave_it(flight, secret, how):
    if how == "absolute":
        write_vrt(flight / "x.vrt", secret)
    elif how == "relative":
        write_vrt(flight / "x.vrt", "west/../../elsewhere/secret.tif", relative=1)
    elif how == "nested":
        write_vrt(flight / "y.dat", secret)
        write_vrt(flight / "x.vrt", "y.dat", relative=1)
    elif how == ".ovr of a source":
        shutil.copyfile(flight / "good.tif", flight / "y.dat")
        write_vrt(flight / "y.dat.ovr", secret)
        write_vrt(flight / "x.vrt", "y.dat", relative=1)
    else:
        shutil.copyfile(flight / "good.tif", flight / "x.tif")
        shutil.copyfile(flight / "good.tif", flight / "x.tif.msk")
        write_vrt(flight / f"x.tif{how}", secret)
    (reason,) = skipped(flight).values()
    assert f"points to {secret}, outside of {flight}" in reason
    assert "name the VRT itself" in reason


def test_overviews_may_not_be_a_connection(flight):
    (flight / "good.tif.ovr").write_text("<GDAL_WMS></GDAL_WMS>", encoding="ascii")
    assert "good.tif.ovr, which is no TIFF" in skipped(flight)["good.tif"]


@pytest.mark.parametrize("how", ["beside", "inside"])
def test_overviews_that_are_named_are_left_where_they_are(flight, write_raster, how):
    """A name in the file itself, or in the one beside it that ArcGIS and GDAL write, may point anywhere."""
    path, secret = flight / "good.tif", write_raster("elsewhere/half.tif", np.zeros((1, 16, 16), np.uint8))
    with rasterio.open(path, "r+") as dataset:
        if how == "inside":
            dataset.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=str(secret))
        dataset.write(np.full((1, 32, 32), 9, np.uint8))
    if how == "beside":
        Path(f"{path}.aux.xml").write_text(
            '<PAMDataset><Metadata domain="OVERVIEWS">'
            f'<MDI key="OVERVIEW_FILE">{secret}</MDI></Metadata></PAMDataset>',
            encoding="ascii",
        )
    with rasterio.open(path) as dataset:
        assert not dataset.read(out_shape=(1, 16, 16)).any()  # so GDAL follows it
    image = open_imagery([path], GREY).images[0]
    assert image.overviews == ()
    with Reader() as reader:
        assert (reader.read(image, column=0, row=0, width=32, height=32, decimation=2).pixels == 9).all()


def test_a_mosaic_of_the_folder_itself_is_an_image(flight):
    write_vrt(flight / "all.vrt", "west/tile.tif", relative=1)
    write_vrt(flight / "again.vrt", flight / "all.vrt")
    assert skipped(flight) == {}
    assert len(open_imagery([flight], GREY).images) == 4


def test_a_mosaic_that_is_named_may_point_anywhere_on_this_machine(tmp_path, secret):
    vrt = write_vrt(tmp_path / "maps" / "x.vrt", secret)
    (image,) = open_imagery([vrt], GREY).images
    with Reader() as reader:
        assert (reader.read(image, column=0, row=0, width=32, height=32).pixels == 7).all()


def test_what_gdal_itself_writes_is_plain(shared_data, tmp_path, write_raster):
    sources = [path for path in (shared_data / "geotiff_cases").rglob("*.tif") if "gcps" not in path.name]
    with rasterio.Env():
        for number, source in enumerate(sources):
            vrt = tmp_path / f"{number}.vrt"
            rasterio.shutil.copy(source, vrt, driver="VRT")
            try:
                open_imagery([vrt], GREY)
            except EdgeInferError as error:
                assert "plain" not in str(error), vrt.read_text()  # noqa: PT017
    assert len(sources) > 15


NOT_FILES = [
    "/vsicurl/http://127.0.0.1:9/a.tif",
    "http://127.0.0.1:9/a.tif",
    "/vsis3/bucket/a.tif",
    "/vsizip//tmp/a.zip/a.tif",
    "/vsistdin/",
    "WMS:http://127.0.0.1:9/",
    "NETCDF:a.nc:b",
    "vrt:///etc/passwd",
    "GTI:a.gpkg",
    "&lt;GDAL_WMS/&gt;",
    "",
]


@pytest.mark.parametrize("source", NOT_FILES)
@pytest.mark.parametrize("relative", [0, 1])
def test_a_mosaic_points_to_files_only(tmp_path, source, relative):
    vrt = write_vrt(tmp_path / "x.vrt", source, relative=relative)
    with pytest.raises(ImageryError, match="may only point to files on this machine"):
        open_imagery([vrt], GREY)


def test_a_mosaic_may_not_point_to_devices_or_pipes(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for source in (tmp_path / "pipe", "/dev/zero", "/dev/stdin", tmp_path):
        with pytest.raises(ImageryError, match="no regular file"):
            open_imagery([write_vrt(tmp_path / "x.vrt", source)], GREY)


def test_a_pipe_in_a_folder_is_passed_over(flight):
    os.mkfifo(flight / "pipe.tif")
    assert "no regular file" in skipped(flight)["pipe.tif"]


@pytest.mark.parametrize(
    "content",
    [
        '<GDAL_WMS><Service name="WMS"><ServerUrl>http://127.0.0.1:9/</ServerUrl></Service></GDAL_WMS>',
        "<GDALTileIndexDataset><IndexDataset>/tmp/a.gpkg</IndexDataset></GDALTileIndexDataset>",
        "<MRF_META><CachedSource><Source>/etc/passwd</Source></CachedSource></MRF_META>",
        '{"type": "Feature", "stac_version": "1.0.0", "assets": {}}',
        "SQLite format 3\0",
    ],
)
def test_files_that_only_point_to_others_are_refused(tmp_path, flight, content):
    for name in ("x.tif", "x.gti.gpkg", "x.png"):
        (tmp_path / name).write_text(content)
        with pytest.raises(ImageryError):
            open_imagery([tmp_path / name], GREY)
        with pytest.raises(ImageryError, match="holds its own pixels"):
            open_imagery([write_vrt(tmp_path / "x.vrt", tmp_path / name)], GREY)
    (flight / "x.tif").write_text(content)
    assert list(skipped(flight)) == ["x.tif"]


def test_a_tile_index_is_refused(tmp_path, secret):
    index = tmp_path / "x.gti.gpkg"
    pyogrio.raw.write(
        index,
        geometry=shapely.to_wkb(np.array([shapely.box(360_000, 4_099_984, 360_016, 4_100_000)])),
        field_data=[np.array([str(secret)], dtype=object)],
        fields=np.array(["location"]),
        geometry_type="Polygon",
        crs="EPSG:32615",
    )
    with pytest.raises(ImageryError, match="not recognized"):
        open_imagery([index], GREY)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('band="1">', 'band="1" subClass="VRTDerivedRasterBand"><PixelFunctionType>f</PixelFunctionType>'),
        ('band="1">', 'band="1" subClass="VRTRawRasterBand">'),
        ("<VRTDataset ", '<VRTDataset subClass="VRTWarpedDataset" '),
        ("<SimpleSource>", '<SimpleSource sourceFILENAME="/etc/passwd">'),
        ("<SourceBand>", "<OpenOptions><OOI key='A'>B</OOI></OpenOptions><SourceBand>"),
        ("<SRS>", '<Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">/etc/passwd</MDI></Metadata><SRS>'),
        ("<SRS>", "<!-- <SRS> --><SRS>"),
        ("<SRS>", "<?x <SourceFilename>/etc/passwd</SourceFilename> ?><SRS>"),
        ("<VRTDataset", '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><VRTDataset'),
        ('relativeToVRT="0"', 'relativeToVRT="2"'),
        ("</VRTDataset>", ""),
        ("<SRS>", "<SRS>\0"),
    ],
)
def test_mosaics_that_do_more_are_refused(tmp_path, secret, old, new):
    vrt = write_vrt(tmp_path / "x.vrt", secret)
    open_imagery([vrt], GREY)
    vrt.write_text(vrt.read_text().replace(old, new, 1))
    with pytest.raises(ImageryError, match="plain"):
        open_imagery([vrt], GREY)


def test_a_mosaic_of_itself(tmp_path):
    with pytest.raises(ImageryError, match="stands behind"):
        open_imagery([write_vrt(tmp_path / "x.vrt", tmp_path / "x.vrt")], GREY)


# ---- footprints


@pytest.fixture
def listener() -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("prefix", ["/vsicurl/", "", "WFS:"])
def test_virtual_footprints_stay_offline(tmp_path, listener, prefix):
    address, asked = listener
    source = tmp_path / "x.vrt"
    source.write_text(
        f'<OGRVRTDataSource><OGRVRTLayer name="a"><SrcDataSource>{prefix}{address}/a.geojson</SrcDataSource>'
        "</OGRVRTLayer></OGRVRTDataSource>"
    )
    with pytest.raises(FootprintsError):
        read_footprints(source)
    assert asked == []


def test_footprints_may_not_be_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe.geojson")
    with pytest.raises(FootprintsError, match="neither a file nor a folder"):
        read_footprints(tmp_path / "pipe.geojson")


NASTY = 'x\'; DROP TABLE "edge_runs"; --'


def test_names_with_quotes_and_sql_go_through_a_run(tmp_path, bundle, write_raster):
    image = write_raster("image.tif", np.full((3, 64, 64), 200, np.uint8))
    source = tmp_path / "houses.gpkg"
    fields = [NASTY, 'a"b', "status", "[p_bright]", "é`\\"]
    pyogrio.raw.write(
        source,
        layer=NASTY,
        geometry=shapely.to_wkb(np.array([shapely.Point(360_016, 4_099_984)] * 3)),
        field_data=[np.array([NASTY, "b", None], dtype=object) for _ in fields],
        fields=np.array(fields),
        geometry_type="Point",
        crs="EPSG:32615",
    )
    out = tmp_path / "out.gpkg"
    where = f'"{fields[4]}" IS NULL OR 1 = 1'
    done = run(
        "--model",
        bundle,
        "--imagery",
        image,
        "--footprints",
        source,
        "--out",
        out,
        "--layer",
        NASTY,
        "--where",
        where,
    )
    assert done.returncode == 0, done.stderr
    with closing(sqlite3.connect(out)) as connection:
        quoted = '"' + NASTY.replace('"', '""') + '"'
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({quoted})")]
        assert set(fields) <= set(columns)
        assert connection.execute(f"SELECT {quoted}, edge_status FROM {quoted}").fetchall() == [
            (NASTY, "ok"),
            ("b", "ok"),
            (None, "ok"),
        ]
        assert connection.execute("SELECT count(*) FROM edge_runs").fetchone() == (1,)


@pytest.mark.parametrize("where", ["1=1; DROP TABLE houses", "1=1) UNION SELECT 1 --", "load_extension('x')"])
def test_where_is_a_filter_and_nothing_else(tmp_path, where):
    source = tmp_path / "houses.gpkg"
    pyogrio.raw.write(
        source,
        geometry=shapely.to_wkb(np.array([shapely.Point(360_016, 4_099_984)])),
        field_data=[np.array([1])],
        fields=np.array(["n"]),
        geometry_type="Point",
        crs="EPSG:32615",
    )
    before = hashlib.sha256(source.read_bytes()).hexdigest()
    try:
        read_footprints(source, where=where)
    except FootprintsError as error:
        assert "\n" not in str(error)  # noqa: PT017
    assert hashlib.sha256(source.read_bytes()).hexdigest() == before


# ---- links


def test_links_that_lead_nowhere_or_in_a_circle(tmp_path, bundle, flight, write_raster):
    circle, nowhere = flight / "circle.tif", flight / "nowhere.tif"
    circle.symlink_to("circle.tif")
    nowhere.symlink_to("absent.tif")
    (flight / "itself").symlink_to(flight, target_is_directory=True)
    imagery = open_imagery([flight], GREY)
    assert {Path(path).name for path, _ in imagery.skipped} == {"circle.tif", "absent.tif"}
    assert [Path(image.path).name for image in imagery.images] == ["good.tif", "tile.tif"]
    image = write_raster("image.tif", np.full((3, 64, 64), 200, np.uint8))
    whole = {"bundle": bundle, "imagery": (image,), "footprints": None, "out": tmp_path / "out.gpkg"}
    for option, error in (
        ({"imagery": (circle,)}, ImageryError),
        ({"footprints": circle}, FootprintsError),
        ({"bundle": circle}, BundleError),
    ):
        with pytest.raises(error):
            classify(RunRequest(**(whole | option)), quiet=True)
    assert not (tmp_path / "out.gpkg").exists()


# ---- the network


def test_a_whole_run_with_the_network_cut_off(tmp_path, bundle, write_raster):
    unshare = shutil.which("unshare")
    prefix = [str(unshare), "--user", "--map-root-user", "--net"]
    if unshare is None or subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system makes no network namespaces for plain users")
    image = write_raster("image.tif", np.full((3, 64, 64), 200, np.uint8))
    points = tmp_path / "points.geojson"
    points.write_text('{"type": "Point", "coordinates": [-94.58, 37.035]}')
    arguments = [
        "run",
        "--model",
        bundle,
        "--imagery",
        image,
        "--footprints",
        points,
        "--out",
        tmp_path / "out.gpkg",
    ]
    program = (
        "import socket; from edge_infer.cli import main\n"
        "assert [name for _, name in socket.if_nameindex()] == ['lo']\n"
        "main()"
    )
    done = subprocess.run(
        [*prefix, sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    with closing(sqlite3.connect(tmp_path / "out.gpkg")) as connection:
        assert connection.execute("SELECT count(*) FROM edge_runs").fetchone() == (1,)
