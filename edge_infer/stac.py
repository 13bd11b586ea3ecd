"""The manifest as JSON: a STAC item with the Machine Learning Model extension (MLM).

So a catalogue can list a bundle like any other model. What the runtime itself reads stands under the prefix
`edge:`, because MLM has no fields for a ground-size contract, a parity check or an INT8 gate.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge_infer.errors import BundleError, ContractError
from edge_infer.manifest import ChipContract, Manifest

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT = 1
"""Version of the bundle format; a reader refuses any other."""

MLM_SCHEMA = "https://stac-extensions.github.io/mlm/v1.5.1/schema.json"
FILE_SCHEMA = "https://stac-extensions.github.io/file/v2.1.0/schema.json"

_TASKS = ["scene-classification"]
_PREFIX = "edge:"
_FORMAT_KEY = f"{_PREFIX}format"
_OWN_KEYS = frozenset(
    f"{_PREFIX}{name}" for name in ("format", "contract", "classes", "normalisation", "temperature")
)


@dataclass(frozen=True, slots=True)
class Member:
    """What is known of one file in a bundle."""

    size_bytes: int
    sha256: str
    """64 lower-case hexadecimal digits."""


def to_item(manifest: Manifest, members: Mapping[str, Member]) -> dict[str, Any]:
    """Shape a manifest as a STAC item, with one asset for each of `members` (by name in the bundle)."""
    contract = manifest.contract
    bands = [{"name": band} for band in contract.bands]
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [MLM_SCHEMA, FILE_SCHEMA],
        "id": manifest.name,
        "geometry": None,
        "properties": {
            "datetime": manifest.created,
            "bands": bands,
            "mlm:name": manifest.name,
            "mlm:architecture": manifest.architecture,
            "mlm:tasks": _TASKS,
            "mlm:framework": "ONNX",
            "mlm:total_parameters": manifest.parameters,
            "mlm:input": [_model_input(contract)],
            "mlm:output": [_model_output(manifest)],
            _FORMAT_KEY: FORMAT,
            f"{_PREFIX}contract": contract.to_json(),
            f"{_PREFIX}classes": [
                {"name": name, "color": color}
                for name, color in zip(manifest.classes, manifest.colors, strict=True)
            ],
            f"{_PREFIX}normalisation": {"mean": list(manifest.mean), "std": list(manifest.std)},
            f"{_PREFIX}temperature": manifest.temperature,
            **{f"{_PREFIX}{key}": value for key, value in manifest.facts.items()},
        },
        "links": [],
        "assets": {name: _asset(name, member, bands) for name, member in members.items()},
    }


def from_item(item: Mapping[str, Any]) -> Manifest:
    """Read what `to_item` wrote.

    Raises:
        BundleError: another format version, or something missing or malformed.

    """
    properties = read_properties(item)
    try:
        classes = properties[f"{_PREFIX}classes"]
        normalisation = properties[f"{_PREFIX}normalisation"]
        return Manifest(
            name=_text(properties["mlm:name"]),
            created=_text(properties["datetime"]),
            architecture=_text(properties["mlm:architecture"]),
            parameters=int(properties["mlm:total_parameters"]),
            classes=tuple(_text(entry["name"]) for entry in classes),
            colors=tuple(_text(entry["color"]) for entry in classes),
            contract=ChipContract.from_json(properties[f"{_PREFIX}contract"]),
            mean=tuple(float(value) for value in normalisation["mean"]),
            std=tuple(float(value) for value in normalisation["std"]),
            temperature=float(properties[f"{_PREFIX}temperature"]),
            facts={
                key.removeprefix(_PREFIX): value
                for key, value in properties.items()
                if key.startswith(_PREFIX) and key not in _OWN_KEYS
            },
        )
    except ContractError as error:
        raise BundleError(f"the manifest does not do: {error}") from error
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise BundleError(f"the manifest is incomplete or malformed: {error!r}") from error


def read_properties(item: Mapping[str, Any]) -> dict[str, Any]:
    """Properties of an item, which is then known to be a manifest of this format version.

    Raises:
        BundleError: it is no manifest, or one of another version.

    """
    properties = item.get("properties")
    if not isinstance(properties, dict) or _FORMAT_KEY not in properties:
        raise BundleError(f"the manifest names no {_FORMAT_KEY}, so this is not a model bundle")
    found = properties[_FORMAT_KEY]
    if found != FORMAT:
        raise BundleError(
            f"bundle format {found!r}, wanted {FORMAT}; update edge-infer or export the model again"
        )
    return properties


def _model_input(contract: ChipContract) -> dict[str, Any]:
    # Normalisation is a node of the graph. MLM's value_scaling is what a user does before the model,
    # so naming mean and std there would have the chips normalised twice.
    side = contract.chip_pixels
    return {
        "name": "chips",
        "description": "Chips as sampled, 0..255. Normalisation, temperature and softmax are in the graph.",
        "bands": list(contract.bands),
        "input": {
            "shape": [-1, side, side, len(contract.bands)],
            "dim_order": ["batch", "height", "width", "bands"],
            "data_type": "uint8",
        },
        "value_scaling": _value_scaling(contract),
        "resize_type": "interpolation-linear",
    }


def _value_scaling(contract: ChipContract) -> list[dict[str, Any]] | None:
    low, high = contract.value_range
    if contract.dtype == "uint8" and (low, high) == (0.0, 255.0):
        return None
    expression = f"numpy.rint(numpy.clip((A - {low!r}) * 255 / {high - low!r}, 0, 255))"
    return [{"type": "processing", "format": "gdal-calc", "expression": expression}]


def _model_output(manifest: Manifest) -> dict[str, Any]:
    return {
        "name": "probabilities",
        "tasks": _TASKS,
        "result": {
            "shape": [-1, len(manifest.classes)],
            "dim_order": ["batch", "class"],
            "data_type": "float32",
        },
        "classification:classes": [
            {
                "value": value,
                # The classification extension allows letters, digits, '-' and '_' in a name.
                "name": re.sub(r"[^0-9A-Za-z_-]+", "-", name),
                "description": name,
                "color_hint": color.removeprefix("#").upper(),
            }
            for value, (name, color) in enumerate(zip(manifest.classes, manifest.colors, strict=True))
        ],
    }


def _asset(name: str, member: Member, bands: list[dict[str, str]]) -> dict[str, Any]:
    asset: dict[str, Any] = {
        "href": f"./{name}",
        "type": "application/json" if name.endswith(".json") else "application/octet-stream",
        "roles": ["metadata"] if name.endswith(".json") else ["data"],
        "file:size": member.size_bytes,
        # A multihash: 12 is SHA-256, 20 its length of 32 bytes.
        "file:checksum": f"1220{member.sha256}",
    }
    if name.endswith(".onnx"):
        asset["roles"] = ["mlm:model"]
        asset["mlm:artifact_type"] = "onnx"
        # MLM asks for them in the item's properties; STAC allows them there only if an asset has them too.
        asset["bands"] = bands
    return asset


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"wanted text, got {value!r}")
    return value
