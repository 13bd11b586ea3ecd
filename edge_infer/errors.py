"""The one error tree, with the exit code that the command line gives for each branch.

EdgeInferError            1  anything else
├── OutputChanged         1  another program changed the output while it was being filled in
├── Refused               2  before anything was written: usage, input, contract
│   ├── FootprintsError      the footprints cannot be read or placed
│   ├── ImageryError         an image cannot be read or placed
│   ├── BundleError          the model bundle is broken or not a bundle
│   ├── ContractError        model and imagery do not fit together
│   ├── EngineError          the engine that was asked for is not to be had
│   └── OutputError          the output cannot be written, or would overwrite something
├── ReadError             -  one block of an image cannot be read (its footprints get `read_error`)
└── Stopped               4  stopped early in a clean state; `--resume` goes on

A message says what was found, what was wanted, and what to do, in one line.
"""

from __future__ import annotations

from typing import ClassVar


class EdgeInferError(Exception):
    """Root of every error that this project raises on purpose."""

    exit_code: ClassVar[int] = 1


class OutputChanged(EdgeInferError):
    """Another program moved the output, or took rows or the log from it; this run cannot go on with it."""


class Refused(EdgeInferError):
    """Nothing was written, because the request cannot be met as it stands."""

    exit_code: ClassVar[int] = 2


class FootprintsError(Refused):
    """The footprints cannot be read or placed on the ground."""


class ImageryError(Refused):
    """An image cannot be read or placed on the ground."""


class BundleError(Refused):
    """The model bundle is broken, tampered with, or no bundle at all."""


class ContractError(Refused):
    """Model and imagery do not fit together (ground size, bands, bit depth)."""


class EngineError(Refused):
    """The engine that was asked for is not to be had on this machine."""


class OutputError(Refused):
    """The output cannot be written, or would overwrite something."""


class ReadError(EdgeInferError):
    """One block of an image cannot be read; only its footprints suffer."""


class Stopped(EdgeInferError):
    """Stopped early in a clean state; a resumed run goes on from there."""

    exit_code: ClassVar[int] = 4
