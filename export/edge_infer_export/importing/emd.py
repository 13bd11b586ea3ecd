"""Reads Esri's `.emd` files: what a model, or an export of training chips, says of its chips.

Only metadata is read: out of a `.dlpk` the weights are never touched and no code is run. A template that was
left half filled in ("e.g. 256") says nothing there. Colours are not read: Esri draws them at random.
"""

from __future__ import annotations

import json
import math
import re
import zipfile
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyproj import CRS
from pyproj.exceptions import CRSError

from edge_infer.errors import Refused

if TYPE_CHECKING:
    from pathlib import Path

_MOST_BYTES = 4 * 2**20
"""More than any such file holds."""

_GDAL_NAMES = {"nearinfrared": "nir", "rededge": "rededge", "coastalaerosol": "coastal"}
"""Esri's names for bands that GDAL knows by another."""

_DAMAGE = (
    *(OSError, UnicodeDecodeError, zipfile.BadZipFile, NotImplementedError, RuntimeError),
    *(zlib.error, EOFError, ValueError),
)
"""What a damaged file, or an archive with a password or an odd compression, raises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EsriModel:
    """What an `.emd` file says; None where it says nothing."""

    path: Path
    classes: dict[str, str]
    """{value, as text: name}; empty where none are listed."""
    model_type: str | None
    """Such as ObjectClassification."""
    metadata_mode: str | None
    """Of an export: Labeled_Tiles, Imagenet, ..."""
    chip_pixels: int | None
    bands: tuple[int, ...] | None
    """1-based band numbers of the source (`ExtractBands` counts from 0)."""
    band_names: tuple[str, ...] | None
    """As GDAL names them where it does, else in lower case."""
    fixed_size: bool | None
    """True: a chip of one size centred on the feature. False: the smallest rectangle around it."""
    blacken: bool | None
    cell_size: float | None
    """Side of a pixel in units of `crs`, where all pixels are equally large and square."""
    crs: CRS | None


def chip_options(model: EsriModel) -> dict[str, Any]:
    """Give the options of `edge-infer chips` that make chips like those of an Esri model.

    How much ground a chip covers is none of them: such a file does not say it.

    Raises:
        Refused: the model does not classify whole objects.

    """
    if model.model_type not in {None, "ObjectClassification"}:
        raise Refused(
            f"{model.path} describes a model of type {model.model_type}, wanted ObjectClassification: one "
            "class for each footprint"
        )
    window = {True: "fixed", False: "footprint", None: None}[model.fixed_size]
    options = {
        "classes": model.classes or None,
        "chip_pixels": model.chip_pixels,
        "bands": model.bands,
        "blacken": model.blacken,
        "window": window,
        # Esri's chip of variable size is the rectangle around its feature, no more.
        "context": 1.0 if window == "footprint" else None,
    }
    return {name: value for name, value in options.items() if value is not None}


def read_emd(path: Path) -> EsriModel:
    """Read an `.emd` file, or the one in a `.dlpk`.

    Raises:
        Refused: it cannot be read, or is no such file.

    """
    try:
        values = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise Refused(f"{path} is no .emd file: {error}; wanted JSON as ArcGIS writes it") from error
    if not isinstance(values, dict):
        raise Refused(f"{path} is no .emd file: wanted a JSON object, found {type(values).__name__}")
    height, width = _integer(values.get("ImageHeight")), _integer(values.get("ImageWidth"))
    least, greatest = (_cell_size(values.get(name)) for name in ("MinCellSize", "MaxCellSize"))
    crop = values.get("CropTileMode")
    crop_fixed = values.get("CropSizeFixed")
    return EsriModel(
        path=path,
        classes=_classes(values.get("Classes"), path),
        model_type=_word(values.get("ModelType")),
        metadata_mode=_word(values.get("MetaDataMode")),
        chip_pixels=height if height == width else None,
        bands=_bands(values.get("ExtractBands")),
        band_names=_band_names(values.get("InputRastersProps")),
        fixed_size=_flag(crop_fixed) if crop is None else str(crop).lower() == "fixed_size",
        blacken=_flag(values.get("BlackenAroundFeature")),
        cell_size=least[0]
        if least and greatest and math.isclose(least[0], greatest[0], rel_tol=0.01)
        else None,
        crs=least[1] if least else None,
    )


def _text(path: Path) -> str:
    try:
        if path.suffix.lower() == ".dlpk":
            with zipfile.ZipFile(path) as archive:
                found = [name for name in archive.namelist() if name.lower().endswith(".emd")]
                if len(found) != 1:
                    raise Refused(
                        f"{path} holds {len(found)} .emd files, wanted one; name the right one itself"
                    )
                content = archive.open(found[0]).read(_MOST_BYTES)
        else:
            with path.open("rb") as stream:
                content = stream.read(_MOST_BYTES)
        return content.decode("utf-8-sig")
    except _DAMAGE as error:
        raise Refused(f"{path} cannot be read as an .emd file: {error}") from error


def _classes(entries: object, path: Path) -> dict[str, str]:
    """Read {value: name} from either spelling; refuse one value with two names."""
    classes: dict[str, str] = {}
    for entry in entries if isinstance(entries, list) else []:
        if not isinstance(entry, dict):
            continue
        value = entry.get("Value", entry.get("ClassValue"))
        name = entry.get("Name", entry.get("ClassName"))
        if value is None or name is None or not str(name).strip():
            continue
        value, name = str(value).strip(), str(name).strip()
        if classes.setdefault(value, name) != name:
            raise Refused(f"{path} calls the value {value} both {classes[value]!r} and {name!r}; mend it")
    return classes


def _word(value: object) -> str | None:
    return value if isinstance(value, str) and value and not value.startswith("e.g.") else None


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _flag(value: object) -> bool | None:
    return bool(value) if value in (0, 1) else None


def _bands(value: object) -> tuple[int, ...] | None:
    if not isinstance(value, list) or not all(_integer(band) is not None and band >= 0 for band in value):
        return None
    return tuple(band + 1 for band in value) or None


def _band_names(value: object) -> tuple[str, ...] | None:
    names = value.get("BandNames") if isinstance(value, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        return None
    return tuple(_gdal_name(name) for name in names) or None


def _gdal_name(name: str) -> str:
    """Name a band as GDAL does, for `run` looks for it by that name."""
    return _GDAL_NAMES.get(re.sub(r"[ _-]", "", name.lower()), name.lower())


def _cell_size(value: object) -> tuple[float, CRS | None] | None:
    """Side of a pixel, where x and y agree, with its reference system as far as that can be told."""
    if not isinstance(value, dict):
        return None
    try:
        x, y = float(value["x"]), float(value["y"])
    except (KeyError, TypeError, ValueError):
        return None
    if not (math.isfinite(x) and x > 0 and math.isclose(x, y, rel_tol=0.01)):
        return None
    return x, _crs(value.get("spatialReference"))


def _crs(value: Any) -> CRS | None:  # noqa: ANN401 - JSON
    """Find the reference system that Esri means by a number (EPSG's or its own) or by text."""
    if not isinstance(value, dict):
        return None
    number = value.get("latestWkid", value.get("wkid"))
    named = (f"EPSG:{number}", f"ESRI:{number}", value.get("wkt"))
    return next((crs for text in named if isinstance(text, str) and (crs := _try_crs(text))), None)


def _try_crs(text: str) -> CRS | None:
    try:
        return CRS.from_user_input(text)
    except CRSError:
        return None
