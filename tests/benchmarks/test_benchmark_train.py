"""Training beside a plain PyTorch loop, what the loader costs, and which number formats and layouts pay.

Rates of one run can be compared with each other; between runs a busy machine moves them.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from edge_infer.manifest import ChipContract
from edge_infer_export.chips.dataset import ChipRecord, ChipWriter, read_chips
from edge_infer_export.network.resnet import ResNet
from edge_infer_export.training.augment import Augmentation, augment
from edge_infer_export.training.learner import Learner
from edge_infer_export.training.loader import Batch, CachedChips, Loader
from edge_infer_export.training.options import TrainOptions
from edge_infer_export.training.order import epoch_batches

SIDE, COUNT, BATCH = 96, 128, 32
OPTIONS = TrainOptions(batch=BATCH, learning_rate=1e-3)
ROUNDS = 2


@pytest.fixture(scope="module")
def chips(tmp_path_factory):
    """Chips about as hard to decode as aerial images: grain on smooth shapes."""
    rng = np.random.default_rng(0)
    contract = ChipContract(
        ground_metres=32, chip_pixels=SIDE, bands=("red", "green", "blue"), coarsest_gsd_metres=1
    )
    folder = tmp_path_factory.mktemp("bench") / "chips"
    with ChipWriter(folder) as writer:
        for k in range(COUNT):
            coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).resize((SIDE, SIDE))
            chip = np.clip(np.asarray(coarse) + rng.normal(0, 8, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
            writer.add(
                chip,
                ChipRecord(
                    id=k,
                    source_fid=k,
                    label=("a", "b")[k % 2],
                    image="a.tif",
                    gsd_metres=0.25,
                    ground_metres=32.0,
                    valid_fraction=1.0,
                    longitude=k * 1e-3,
                    latitude=37.0,
                ),
            )
        writer.finish(contract, ("a", "b"), statuses={}, options={})
    return read_chips([folder])


class Files(Dataset[tuple[torch.Tensor, int]]):
    """What a tutorial has: one chip decoded a call, floats, no augmentation."""

    def __init__(self, chips):
        self.files, self.targets = chips.file, chips.targets

    def __len__(self):
        return len(self.files)

    def __getitem__(self, row):
        with Image.open(self.files[row]) as picture:
            pixels = np.array(picture)
        return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255, int(self.targets[row])


def plain_epoch(chips, network, optimizer):
    """Seconds of an epoch of the plain loop, workers started before the clock."""
    batches = iter(DataLoader(Files(chips), BATCH, shuffle=True, num_workers=2, drop_last=True))
    first = next(batches)
    network.train()
    started = time.perf_counter()
    for images, targets in (first, *batches):
        loss = functional.cross_entropy(network(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
    return time.perf_counter() - started


def make_learner(network, chips, options):
    return Learner(
        network,
        chips.targets,
        np.ones(2, np.float32),
        options,
        mean=(120.0,) * 3,
        std=(60.0,) * 3,
        steps_per_epoch=COUNT // BATCH,
    )


def our_epoch(chips, learner, loader, epoch):
    """Seconds of an epoch of ours, everything included."""
    rows = np.arange(COUNT)
    started = time.perf_counter()
    batches = epoch_batches(rows, chips.targets, BATCH, balance="none", seed=0, epoch=epoch)
    for batch in loader.training(batches, epoch=epoch):
        float(learner.learn(batch, 1e-3, 0.9))
    return time.perf_counter() - started


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "from disk"])
def test_training_beside_a_plain_loop(benchmark, chips, cached):
    """Whole epochs of ResNet34 in turn; the loader decodes and augments, the plain loop only decodes."""
    network = ResNet(2)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    learner = make_learner(ResNet(2), chips, OPTIONS)
    source = CachedChips(chips, (COUNT, SIDE, SIDE, 3), megabytes=1000 if cached else 0)
    plain, ours = [], []
    with Loader(source, OPTIONS.augmentation, seed=0) as loader:
        our_epoch(chips, learner, loader, 0)
        loader.wait_seconds = 0.0
        for epoch in range(ROUNDS):
            plain.append(plain_epoch(chips, network, optimizer))
            ours.append(our_epoch(chips, learner, loader, epoch + 1))
        waited = loader.wait_seconds / sum(ours)
        benchmark.pedantic(our_epoch, (chips, learner, loader, ROUNDS + 1), rounds=1)
    benchmark.extra_info.update(
        chips_per_second=round(COUNT / min(ours), 1),
        plain_chips_per_second=round(COUNT / min(plain), 1),
        ratio=round(min(plain) / min(ours), 2),
        wait_share=round(waited, 4),
    )
    print("\n", benchmark.extra_info)
    assert waited < 0.05


@pytest.mark.parametrize("side", [64, 128])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("layout", ["planar", "channels last"])
def test_a_step(benchmark, chips, side, precision, layout):
    """One step of ResNet34 on 16 chips, in each number format and layout."""
    benchmark.group = f"step of 16 chips of {side} px"
    learner = make_learner(ResNet(2), chips, replace(OPTIONS, precision=precision))
    if layout == "planar":
        learner.network.to(memory_format=torch.contiguous_format)
        normalise = learner._normalise
        learner._normalise = lambda pixels: normalise(pixels).contiguous()
    batch = Batch(np.arange(16), np.random.default_rng(0).integers(0, 256, (16, side, side, 3), np.uint8))
    benchmark.pedantic(lambda: float(learner.learn(batch, 1e-3, 0.9)), rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("average_epochs", [0.0, 1.0])
def test_the_moving_average(benchmark, chips, average_epochs):
    """What averaging the weights adds to a step."""
    benchmark.group = "moving average of the weights"
    learner = make_learner(ResNet(2), chips, replace(OPTIONS, average_epochs=average_epochs))
    batch = Batch(np.arange(16), np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3), np.uint8))
    benchmark.pedantic(lambda: float(learner.learn(batch, 1e-3, 0.9)), rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("side", [64, 128, 224])
def test_augmentation(benchmark, side):
    """One chip, mean over many draws."""
    chip = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    rng, how = np.random.default_rng(1), Augmentation()
    benchmark(lambda: [augment(chip, rng, how) for _ in range(20)])
