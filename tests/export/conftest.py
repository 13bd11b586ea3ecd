"""What several tests of the export share: small networks with random weights."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from edge_infer.manifest import ChipContract
from edge_infer_export.chips.dataset import ChipRecord, ChipWriter
from edge_infer_export.evaluation.figures import Judged, evaluate
from edge_infer_export.evaluation.thresholds import Thresholds
from edge_infer_export.network.graph import Classifier
from edge_infer_export.network.resnet import ResNet

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

    from edge_infer_export.evaluation.figures import Evaluation

RUN_CONTRACT = ChipContract(
    ground_metres=30, chip_pixels=32, bands=("red", "green", "blue"), coarsest_gsd_metres=0.5
)


@pytest.fixture
def make_network() -> Callable[..., ResNet]:
    """Make a small network whose batch normalisation does something."""

    def make(classes: int = 3, bands: int = 3, seed: int = 0) -> ResNet:
        torch.manual_seed(seed)
        network = ResNet(classes, in_channels=bands, blocks=(1, 2, 1, 1), width=8)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.uniform_(module.bias, -0.5, 0.5)
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 2.0)
        # Large, so that the probabilities of different chips differ.
        torch.nn.init.normal_(network.fc.weight)
        return network

    return make


@pytest.fixture
def make_classifier(make_network: Callable[..., ResNet]) -> Callable[..., Classifier]:
    """Make a classifier of a small network, its bands normalised differently."""

    def make(classes: int = 3, bands: int = 3, temperature: float = 1.5) -> Classifier:
        return Classifier(
            make_network(classes, bands),
            mean=[100.0 + 10 * band for band in range(bands)],
            std=[50.0 + 5 * band for band in range(bands)],
            temperature=temperature,
        )

    return make


@pytest.fixture
def make_chips() -> Callable[..., npt.NDArray[np.uint8]]:
    """Make random chips, uint8 (n, side, side, bands), each of its own brightness."""

    def make(count: int = 5, side: int = 32, bands: int = 3) -> npt.NDArray[np.uint8]:
        random = np.random.default_rng(1)
        brightest = random.integers(20, 256, (count, 1, 1, bands))
        return random.integers(0, brightest + 1, (count, side, side, bands)).astype(np.uint8)

    return make


@pytest.fixture(scope="session")
def squares_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 240 chips: squares that are lighter or darker than what surrounds them, at random brightness."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, 240)
    pixels = rng.normal(rng.uniform(80, 170, (240, 1, 1, 1)), 10, (240, 16, 16, 3))
    pixels[:, 5:11, 5:11] += np.where(targets == 1, 45, -45)[:, None, None, None]
    places = np.stack([-95 + rng.uniform(0, 0.02, 240), 37 + rng.uniform(0, 0.02, 240)], axis=1)
    classes = ("darker", "lighter")
    contract = ChipContract(
        ground_metres=30, chip_pixels=16, bands=("red", "green", "blue"), coarsest_gsd_metres=0.5
    )
    folder = tmp_path_factory.mktemp("squares") / "chips"
    with ChipWriter(folder) as writer:
        for k, chip in enumerate(np.clip(pixels, 0, 255).astype(np.uint8)):
            record = ChipRecord(
                id=k,
                source_fid=k,
                label=classes[targets[k]],
                image="a.tif",
                gsd_metres=0.4,
                ground_metres=30.0,
                valid_fraction=1.0,
                longitude=float(places[k, 0]),
                latitude=float(places[k, 1]),
            )
            writer.add(chip, record)
        writer.finish(contract, classes, statuses={"ok": len(targets)}, options={})
    return folder


@pytest.fixture(scope="session")
def make_evaluation() -> Callable[..., Evaluation]:
    """Make the evaluation of a model that is mostly right, on chips in blocks of four."""

    def make(
        count: int = 240, classes: tuple[str, ...] = ("burnt", "intact", "unclear"), **options: object
    ) -> Evaluation:
        rng = np.random.default_rng(5)
        targets = np.arange(count) % len(classes)
        logits = rng.normal(0, 1, (count, len(classes)))
        logits[np.arange(count), targets] += 2
        judged = Judged(
            rows=np.arange(count),
            targets=targets,
            logits=logits,
            blocks=np.arange(count) // 4,
            events=np.where(np.arange(count) < count // 3, "flood", "fire").astype(object),
            areas=np.full(count, "", object),
        )
        values: dict[str, object] = {
            "model": "town",
            "side": "test",
            "temperature": 1.5,
            "thresholds": {name: Thresholds(0.9, 0.2) for name in classes},
            "split": {"kind": "place", "words": "Split by place."},
            **options,
        }
        return evaluate(judged, classes, **values)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def evaluation(make_evaluation: Callable[..., Evaluation]) -> Evaluation:
    """Give such an evaluation as it comes."""
    return make_evaluation()


@pytest.fixture
def write_chips(tmp_path: Path) -> Callable[..., Path]:
    """Write a folder of chips, uint8 (n, S, S, C), ten metres apart, and give its path."""

    def write(
        pixels: npt.NDArray[np.uint8],
        labels: list[str],
        contract: ChipContract,
        *,
        name: str = "chips",
        classes: tuple[str, ...] | None = None,
        gsd_metres: float = 0.3,
    ) -> Path:
        folder = tmp_path / name
        with ChipWriter(folder) as writer:
            for number, (chip, label) in enumerate(zip(pixels, labels, strict=True)):
                writer.add(
                    chip,
                    ChipRecord(
                        id=number,
                        source_fid=number,
                        label=label,
                        image="town.tif",
                        gsd_metres=gsd_metres,
                        ground_metres=contract.ground_metres,
                        valid_fraction=1.0,
                        longitude=13.0 + 1e-4 * number,
                        latitude=52.0,
                        event="flood" if number % 2 else "fire",
                        place=f"quarter {number % 3}",
                    ),
                )
            writer.finish(
                contract, classes or tuple(sorted(set(labels))), statuses={"ok": len(labels)}, options={}
            )
        return folder

    return write


@pytest.fixture
def train_json() -> dict[str, object]:
    """What train.json of a small run holds."""
    return {
        "format": 1,
        "name": "town",
        "created": "2025-06-01T12:00:00Z",
        "architecture": {"blocks": [1, 2, 1, 1], "width": 8},
        "contract": RUN_CONTRACT.to_json(),
        "classes": ["burnt", "intact", "unclear"],
        "colors": ["#d73027", "#1a9850", "#808080"],
        "mean": [100.0, 110.0, 120.0],
        "std": [50.0, 55.0, 60.0],
        "temperature": 1.5,
        "facts": {"epochs": 3},
    }


@pytest.fixture
def run(
    tmp_path: Path,
    make_network: Callable[..., ResNet],
    make_chips: Callable[..., npt.NDArray[np.uint8]],
    evaluation: Evaluation,
    train_json: dict[str, object],
) -> Path:
    """Make a run folder, as a training leaves it behind."""
    folder = tmp_path / "run"
    folder.mkdir()
    torch.save(make_network().state_dict(), folder / "model.pt")
    np.save(folder / "golden.npy", make_chips(count=40))
    (folder / "train.json").write_text(json.dumps(train_json))
    (folder / "evaluation.json").write_text(json.dumps(evaluation.to_json()))
    return folder
