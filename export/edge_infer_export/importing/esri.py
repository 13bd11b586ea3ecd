r"""What Esri's *Export Training Data For Deep Learning* writes for classifiers of whole objects.

Labeled_Tiles, read and written:

    images/000000000.tif|jpg|png   beside them world files (.tfw, .jgw, .pgw) and .aux.xml
    labels/000000000.xml           one each: <object><name> holds the class, by number or name
    map.txt                        images\000000000.tif  labels\\000000000.xml
    esri_model_definition.emd, esri_accumulated_stats.json, stats.txt
    facts.json                     written by us, passed over by ArcGIS: what chips.json holds in our folders

Only images/ and labels/ are needed: exports that hang at the end leave the rest out. Imagenet, read: the same
without labels/, images/ holds a folder for each class instead.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

import numpy as np
import rasterio
from pyproj import CRS
from rasterio import Affine
from rasterio.errors import NotGeoreferencedWarning

from edge_infer.errors import ImageryError, Refused
from edge_infer.grid import Grid, metres_per_pixel, transform_points
from edge_infer.imagery.environment import GDAL_ERRORS, gdal_environment
from edge_infer_export.chips.bearing import bearings
from edge_infer_export.chips.pictures import READ_SUFFIXES
from edge_infer_export.chips.writer import FACTS_FILE, write_facts
from edge_infer_export.importing.emd import EsriModel, read_emd
from edge_infer_export.importing.found import FoundChip, FoundChips, is_picture, passed_over
from edge_infer_export.importing.imagenet import read_class_folders

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from edge_infer.manifest import ChipContract
    from edge_infer_export.chips.table import ChipRecord

MODE = "Labeled_Tiles"
EMD_FILE = "esri_model_definition.emd"
STATS_FILE = "esri_accumulated_stats.json"
MAP_FILE = "map.txt"
STATS_TEXT = "stats.txt"

_MOST_LABEL_BYTES = 1 << 20
_MOST_NAMED = 5
_DEGREES = CRS.from_epsg(4326)
_WORLD_FILES = {".tif": ".tfw", ".tiff": ".tfw", ".jpg": ".jgw", ".jpeg": ".jgw", ".png": ".pgw"}


def is_labeled_tiles(folder: Path) -> bool:
    """Whether a folder looks like an export of labelled tiles: pictures with a label file each."""
    return (folder / "images").is_dir() and (folder / "labels").is_dir()


def is_imagenet_export(folder: Path) -> bool:
    """Whether a folder is Esri's: class folders of pictures alone may be anybody's."""
    return (folder / EMD_FILE).is_file()


def read_imagenet_export(folder: Path) -> FoundChips:
    """Read what an Imagenet export says of its chips; no pixel is decoded.

    Raises:
        Refused: the folder is no such export.

    """
    model = _read_model(folder, "Imagenet")
    found = read_class_folders(folder)
    listed = {line.strip() for line in _read_index(folder)}
    found = found.warn(*_missing(folder, [chip.path for chip in found.chips], listed))
    with gdal_environment():
        chips = tuple(_locate(chip.path, chip.label, model) for chip in found.chips)
    return replace(found, chips=chips, **_said_by(folder, model))


def read_labeled_tiles(folder: Path) -> FoundChips:
    """Read what an export says of its chips; no pixel is decoded.

    Raises:
        Refused: the folder is no such export, or one of another kind (masks, boxes, ...).

    """
    model = _read_model(folder, MODE)
    inner = sorted(path for path in (folder / "images").iterdir() if path.is_file())
    pictures = [path for path in inner if is_picture(path)]
    if not pictures:
        raise Refused(f"{folder / 'images'} holds no pictures ({', '.join(READ_SUFFIXES)})")
    chips, unlabelled, several = [], [], 0
    with gdal_environment():
        for path in pictures:
            names = _read_label(folder / "labels" / f"{path.stem}.xml")
            if not names:
                unlabelled.append(path.name)
                continue
            several += len(names) > 1
            chips.append(_locate(path, names[0], model))
    if not chips:
        raise Refused(f"no picture in {folder / 'images'} has a label file in {folder / 'labels'}")
    found = FoundChips(
        layout=MODE,
        folder=folder,
        chips=tuple(chips),
        **_said_by(folder, model),
    )
    listed = {columns[0] for line in _read_index(folder) if (columns := line.split())}
    labelled = {f"images/{path.stem}" for path in (folder / "labels").glob("*.xml")}
    found = found.warn(*passed_over(inner), *_missing(folder, pictures, listed | labelled))
    if several:
        found = found.warn(f"{several:,} chips hold several objects; the first one counts, as in ArcGIS")
    if unlabelled:
        shown = ", ".join(unlabelled[:_MOST_NAMED])
        found = found.warn(f"{len(unlabelled):,} pictures are left out, as they have no label: {shown}")
    return found


def _read_index(folder: Path) -> list[str]:
    """Read the lines of map.txt, with slashes; none where it cannot be read."""
    try:
        return (folder / MAP_FILE).read_text(encoding="utf-8-sig").replace("\\", "/").splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def _missing(folder: Path, pictures: Sequence[Path], listed: set[str]) -> tuple[str, ...]:
    """Say which of the pictures that map.txt or labels list, relative to the folder, were not found."""
    there = {path.relative_to(folder).with_suffix("").as_posix() for path in pictures}
    missing = sorted({Path(name).with_suffix("").as_posix() for name in listed if name} - there)
    if not missing:
        return ()
    shown = ", ".join(missing[:_MOST_NAMED])
    return (f"{len(missing):,} pictures that {MAP_FILE} or labels/ name are not there to be read: {shown}",)


def _said_by(folder: Path, model: EsriModel | None) -> dict[str, Any]:
    """Give what an export's own files say, as fields of `FoundChips`."""
    return {
        "class_names": model.classes if model else {},
        "band_names": model.band_names if model else None,
        "blacken": bool(model and model.blacken),
        "variable_size": bool(model and model.fixed_size is False),
        "facts": _facts(folder, model),
    }


def _read_model(folder: Path, wanted: str) -> EsriModel | None:
    path = folder / EMD_FILE
    model = read_emd(path) if path.is_file() else None
    mode = (model.metadata_mode if model else None) or _read_stats(folder).get("MetaDataMode")
    if mode not in {None, wanted}:
        raise Refused(f"{folder} is an export of {mode}, wanted {MODE} or Imagenet; export it again as one")
    return model


def _read_stats(folder: Path) -> dict[str, Any]:
    """Read what is there of the export's own counts; an export that broke off has none."""
    try:
        values = json.loads((folder / STATS_FILE).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _facts(folder: Path, model: EsriModel | None) -> dict[str, Any]:
    stats = _read_stats(folder)
    facts: dict[str, Any] = {"metadata_mode": stats.get("MetaDataMode"), "tiles": stats.get("NumTiles")}
    if model is not None:
        facts |= {
            "metadata_mode": model.metadata_mode or facts["metadata_mode"],
            "fixed_size": model.fixed_size,
            "blacken": model.blacken,
            "cell_size": model.cell_size,
            "classes": model.classes,
        }
    index = folder / MAP_FILE
    if index.is_file():
        facts["map_sha256"] = hashlib.sha256(index.read_bytes()).hexdigest()
    return facts


def _read_label(path: Path) -> list[str]:
    """Read the classes of the objects in one label file; none where there is none, or it is broken."""
    try:
        if path.stat().st_size > _MOST_LABEL_BYTES:
            return []
        text = path.read_text(encoding="utf-8-sig")
        # Label files have no document type; one that has could blow up to gigabytes.
        root = ET.fromstring(text) if "<!DOCTYPE" not in text and "<!ENTITY" not in text else None  # noqa: S314
    except (OSError, UnicodeDecodeError, ET.ParseError):
        return []
    if root is None:
        return []
    names = (item.findtext("name", "").strip() for item in root.iter("object"))
    return [_whole(name) for name in names if name]


def _whole(name: str) -> str:
    """Write 1.0 as 1: class values are whole numbers, however they were stored."""
    try:
        return str(int(float(name))) if float(name).is_integer() else name
    except (ValueError, OverflowError):
        return name


def _locate(path: Path, label: str, model: EsriModel | None) -> FoundChip:
    """Find where a chip lies: by its own georeference, or at least how large its pixels are."""
    crs = model.crs if model else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # NaN says it
        try:
            with rasterio.open(path) as picture:
                own = CRS.from_wkt(picture.crs.to_wkt()) if picture.crs else crs
                width, height = picture.width, picture.height
                transform = picture.transform
            if own is not None and not transform.is_identity:
                return _placed(path, label, Grid(own, transform, width, height))
        except (*GDAL_ERRORS, ImageryError):
            return FoundChip(path=path, label=label)  # whoever reads its pixels says what is wrong with it
    side = _cell_metres(model)
    return FoundChip(path=path, label=label, ground_metres=(width * side, height * side))


def _placed(path: Path, label: str, grid: Grid) -> FoundChip:
    middle = np.array([[grid.width / 2, grid.height / 2]])
    across, down = metres_per_pixel(grid, middle)[0].tolist()
    longitude, latitude = transform_points(grid.crs, _DEGREES, *grid.to_crs(*middle.T))
    return FoundChip(
        path=path,
        label=label,
        longitude=float(longitude[0]),
        latitude=float(latitude[0]),
        ground_metres=(grid.width * across, grid.height * down),
        bearing=float(bearings(grid, middle)[0]),
    )


def _cell_metres(model: EsriModel | None) -> float:
    """Side of a pixel in true metres, where the export states one that can be trusted; else NaN."""
    if model is None or model.cell_size is None or model.crs is None or not model.crs.is_projected:
        return math.nan
    operation = model.crs.coordinate_operation
    if operation is None or "mercator" in operation.method_name.lower().replace("transverse mercator", ""):
        return math.nan  # how long its metres are depends on the latitude, which nobody knows here
    return model.cell_size * model.crs.axis_info[0].unit_conversion_factor


class EsriLayout:
    """Writes what ArcGIS's `prepare_data` takes: see the top of this module."""

    marker = FACTS_FILE

    def __init__(self, contract: ChipContract) -> None:
        """Prepare for chips of one contract."""
        self._contract = contract
        bands = len(contract.bands)
        self._count, self._sum, self._squares = 0, np.zeros(bands), np.zeros(bands)
        self._least, self._greatest = np.full(bands, 255), np.zeros(bands, np.int64)
        self._cells: list[tuple[float, float]] = []
        self._crs: CRS | None = None

    def names(self, classes: Sequence[str]) -> tuple[str, ...]:  # noqa: ARG002
        """See `Layout`."""
        return ("images", "labels", MAP_FILE, EMD_FILE, STATS_FILE, STATS_TEXT, FACTS_FILE)

    def chip_file(self, record: ChipRecord, suffix: str) -> str:
        """See `Layout`."""
        return f"images/{record.id:09d}{suffix}"

    def write_beside(
        self, path: Path, chip: NDArray[np.uint8], record: ChipRecord, grid: Grid | None
    ) -> None:
        """Write label, world file and reference system of one chip."""
        side, _, bands = chip.shape
        label = path.parent.parent / "labels" / f"{path.stem}.xml"
        label.parent.mkdir(exist_ok=True)
        label.write_text(
            f"<annotation><filename>{path.name}</filename><source><annotation>edge-infer</annotation></source>"
            f"<size><width>{side}</width><height>{side}</height><depth>{bands}</depth></size>"
            f"<object><name>{escape(record.label)}</name><bndbox><xmin>0.0</xmin><ymin>0.0</ymin>"
            f"<xmax>{side:.1f}</xmax><ymax>{side:.1f}</ymax></bndbox></object></annotation>\n",
            encoding="utf-8",
        )
        flat = chip.reshape(-1, bands).astype(np.float64)
        self._count += len(flat)
        self._sum += flat.sum(axis=0)
        self._squares += (flat**2).sum(axis=0)
        self._least = np.minimum(self._least, flat.min(axis=0))
        self._greatest = np.maximum(self._greatest, flat.max(axis=0))
        if grid is not None:
            a, b, _, d, e, _ = grid.transform[:6]
            self._cells.append((math.hypot(a, d), math.hypot(b, e)))
            self._crs = self._crs or grid.crs
            _write_place(path, grid)

    def write_index(
        self, folder: Path, facts: Mapping[str, Any], records: Sequence[ChipRecord], files: Sequence[str]
    ) -> None:
        """Write map.txt, the model definition and the counts."""
        lines = [f"images\\{Path(file).name}  labels\\{Path(file).stem}.xml \n" for file in files]
        (folder / MAP_FILE).write_text("".join(lines), encoding="utf-8")
        values = {name: value for value, name in enumerate(facts["classes"], start=1)}
        counts = Counter(record.label for record in records)
        definition = json.dumps(self._definition(values), indent=2)
        (folder / EMD_FILE).write_text(definition + "\n", encoding="utf-8")
        stats = json.dumps(_stats(self._contract, values, counts), indent=2)
        (folder / STATS_FILE).write_text(stats + "\n", encoding="utf-8")
        (folder / STATS_TEXT).write_text(_stats_text(self._contract, values, counts), encoding="utf-8")
        write_facts(folder, facts)

    def _definition(self, values: Mapping[str, int]) -> dict[str, Any]:
        contract, side = self._contract, self._contract.chip_pixels
        mean = self._sum / max(self._count, 1)
        deviation = np.sqrt(np.maximum(self._squares / max(self._count, 1) - mean**2, 0))
        definition: dict[str, Any] = {
            "Framework": "PyTorch",
            "ModelConfiguration": "FeatureClassifier",
            "ModelType": "ObjectClassification",
            "MetaDataMode": MODE,
            "CropTileMode": "Fixed_Size",
            "ImageSpaceUsed": "MAP_SPACE",
            "BlackenAroundFeature": int(contract.blacken),
            "ImageHeight": side,
            "ImageWidth": side,
            "ExtractBands": list(range(len(contract.bands))),
            "Classes": [{"Value": value, "Name": name} for name, value in values.items()],
            "InputRastersProps": {
                "RasterCount": 1,
                "SensorName": "",
                "BandNames": [name.capitalize() for name in contract.bands],
            },
            "AllTilesStats": [
                {"BandName": name.capitalize(), "Min": low, "Max": high, "Mean": middle, "StdDev": spread}
                for name, low, high, middle, spread in zip(
                    contract.bands,
                    self._least.tolist(),
                    self._greatest.tolist(),
                    mean.tolist(),
                    deviation.tolist(),
                    strict=True,
                )
            ],
        }
        if self._cells and self._crs is not None:
            code = self._crs.to_epsg()
            reference = {"wkt": self._crs.to_wkt("WKT1_ESRI")} if code is None else {"wkid": code}
            for name, choose in (("MinCellSize", min), ("MaxCellSize", max)):
                x, y = (choose(axis) for axis in zip(*self._cells, strict=True))
                definition[name] = {"x": x, "y": y, "spatialReference": reference}
        return definition


def _write_place(path: Path, grid: Grid) -> None:
    """Write the world file, which tells the centre of the first pixel, and the reference system."""
    a, b, c, d, e, f = (grid.transform * Affine.translation(0.5, 0.5))[:6]
    text = "".join(f"{term!r}\n" for term in (a, d, b, e, c, f))
    path.with_suffix(_WORLD_FILES[path.suffix]).write_text(text, encoding="ascii")
    srs = escape(grid.crs.to_wkt("WKT2_2019"))
    aux = f"<PAMDataset><SRS>{srs}</SRS></PAMDataset>\n"
    path.with_name(f"{path.name}.aux.xml").write_text(aux, encoding="utf-8")


def _stats(contract: ChipContract, values: Mapping[str, int], counts: Mapping[str, int]) -> dict[str, Any]:
    total = sum(counts.values())
    per_class = [counts[name] for name in values]
    return {
        "Version": 3.0,
        "NumBands": len(contract.bands),
        "TileSizeX": contract.chip_pixels,
        "TileSizeY": contract.chip_pixels,
        "NumClasses": len(values),
        "NumTiles": total,
        "OutputFeatures": True,
        "MetaDataMode": MODE,
        "Classes": [{"ClassValue": value, "ClassName": name} for name, value in values.items()],
        "FeatureStats": {
            "NumClasses": len(values),
            "NumImagesTotal": total,
            "NumFeaturesTotal": total,
            "NumImagesPerClass": per_class,
            "NumFeaturesPerClass": per_class,
            "NumFeaturesPerImage": {"Min": 1, "Max": 1, "Mean": 1, "Sum": total, "Count": total},
        },
    }


def _stats_text(contract: ChipContract, values: Mapping[str, int], counts: Mapping[str, int]) -> str:
    side, total = contract.chip_pixels, sum(counts.values())
    rows = "".join(f"{name}  {value}  {counts[name]}  {counts[name]}\n" for name, value in values.items())
    return (
        f"images = {total} *{len(contract.bands)}*{side}*{side}\nfeatures = {total}\n"
        f"features per image = [min = 1, mean = 1.00, max = 1]\nclasses = {len(values)}\n"
        f"cls name  cls value  images  features\n{rows}"
    )
