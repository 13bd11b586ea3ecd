"""State dicts from disk: torchvision's published weights, or those of an earlier run."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

import torch
from torch import nn

from edge_infer.errors import Refused
from edge_infer_export.network.resnet import BasicBlock, ResNet

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

LAST_LAYER = "fc."
"""Names of the last layer's weights begin so; it belongs to the classes."""

_COUNTER = ".num_batches_tracked"
"""Names of the batches that batch normalisation has seen end so."""


def load_tensors(path: Path, wanted: str) -> object:
    """Load what `torch.save` wrote, tensors and plain values only; no code in it is ever run.

    Args:
        path: the file.
        wanted: what should have been there, for messages.

    Raises:
        Refused: the file is missing, damaged or something else.

    """
    try:
        path.open("rb").close()  # PyTorch raises OSError for a file that is cut off, too
    except OSError as error:
        raise Refused(f"{path} cannot be read ({error.strerror or error}); wanted {wanted}") from error
    try:
        damaged = _damaged_member(path)
        loaded: object = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files make PyTorch raise almost anything
        raise Refused(f"{path} is damaged or something else; wanted {wanted}") from error
    if damaged:
        raise Refused(f"{path} is damaged (checksum of {damaged}); wanted {wanted}")
    return loaded


def save_tensors(values: object, path: Path) -> None:
    """Write tensors and plain values as `torch.save` does; `OSError` where the disk is full or refuses."""
    try:
        torch.save(values, path)
    except RuntimeError as error:  # so PyTorch's writer reports a full disk
        raise OSError(str(error).splitlines()[0]) from error


def load_state(path: Path, wanted: str) -> dict[str, Tensor]:
    """Load a state dict; arguments and errors as of `load_tensors`."""
    state = load_tensors(path, wanted)
    if not (isinstance(state, dict) and all(isinstance(tensor, torch.Tensor) for tensor in state.values())):
        raise Refused(f"{path} is no state dict of tensors; wanted {wanted}")
    return state


def _damaged_member(path: Path) -> str | None:
    """Find a member whose checksum does not hold: PyTorch reads none, and a flipped bit would train on."""
    if not zipfile.is_zipfile(path):  # as PyTorch wrote before 1.6, without checksums
        return None
    with zipfile.ZipFile(path) as archive:
        return archive.testzip()


def start_network(
    classes: Sequence[str], bands: int, *, blocks: Sequence[int], width: int, weights: Path | None
) -> tuple[ResNet, str]:
    """Make a network with random weights, from torch's global generator, or with those of a file.

    Returns:
        The network, and what it starts from, in words.

    Raises:
        Refused: the file cannot be read, or holds no weights of such a network.

    """
    network = ResNet(len(classes), in_channels=bands, blocks=blocks, width=width)
    if weights is not None:
        return network, _load_weights(network, weights)
    # Blocks that begin as identities make a deep network easy to start.
    # https://arxiv.org/abs/1706.02677, section 5.1
    for module in network.modules():
        if isinstance(module, BasicBlock):
            nn.init.zeros_(module.bn2.weight)
    return network, "random weights"


def _load_weights(network: ResNet, path: Path) -> str:
    state = load_state(path, "the state dict of a ResNet")
    own = network.state_dict()
    # Files from before PyTorch 0.4.1 lack the counters of batch normalisation, which decide nothing here.
    body = [
        name
        for name in own
        if not name.startswith(LAST_LAYER) and (name in state or not name.endswith(_COUNTER))
    ]
    for name in body:
        found = tuple(state[name].shape) if name in state else "none"
        if found != tuple(own[name].shape):
            raise Refused(
                f"{path}: {name} has shape {found}, wanted {tuple(own[name].shape)}: the same --network and "
                f"{network.conv1.in_channels} bands"
            )
    more = [name for name in state if name not in own]
    if more:
        raise Refused(
            f"{path} holds weights that the network lacks ({more[0]} and {len(more) - 1} more); wanted the "
            "same --network"
        )
    unusable = [name for name in body if not _usable(state[name])]
    if unusable:
        raise Refused(f"{path}: {unusable[0]} holds infinite numbers or none at all; take other weights")
    network.load_state_dict({name: state[name] for name in body}, strict=False)
    was = state.get(f"{LAST_LAYER}bias")
    before = "none" if was is None else f"{len(was)} classes"
    now = network.fc.out_features
    return f"the weights in {path}; the last layer ({before} there) is new, for {now} classes"


def _usable(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
