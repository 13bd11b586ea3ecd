"""GDAL's settings for every access to imagery, in one place."""

from __future__ import annotations

import os

import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.env import set_gdal_config
from rasterio.errors import RasterioError

from edge_infer.sizes import LEAST_CACHE_BYTES

GDAL_ERRORS = (RasterioError, CPLE_BaseError, OSError, ValueError, MemoryError)
"""What rasterio lets through: its own errors, GDAL's unwrapped, and bad values out of broken headers."""

_OPTIONS = {
    # Side files are looked for by name: listing a folder of 10,000 images for each of them takes minutes.
    "GDAL_DISABLE_READDIR_ON_OPEN": "TRUE",
    # A VRT may name sources on the network. curl refuses these settings before it opens a connection.
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".offline",
    "GDAL_HTTP_PROXY": "offline://",
    "GDAL_HTTPS_PROXY": "offline://",
    # A VRT may hold Python code. Such a one is refused before; this is the second lock.
    "GDAL_VRT_ENABLE_PYTHON": "NO",
}


def gdal_environment(*, placed: bool = True) -> rasterio.Env:
    """Make the environment to be entered in each thread that opens rasters.

    placed: whether to find out where on the ground each of them lies; takes most of the time of opening one.
    """
    return rasterio.Env(**_OPTIONS, **({} if placed else {"GDAL_GEOREF_SOURCES": "NONE"}))


def bound_cache(size_bytes: int) -> None:
    """Bound GDAL's cache of decoded blocks, one for the process; GDAL_CACHEMAX in the environment wins.

    Blocks beyond the bound, those used least recently, are dropped.
    """
    if "GDAL_CACHEMAX" not in os.environ:
        set_gdal_config("GDAL_CACHEMAX", size_bytes)


bound_cache(LEAST_CACHE_BYTES)  # until a feed says what it needs: GDAL itself would take 5 % of the memory


def gdal_words(error: BaseException) -> str:
    """Give GDAL's own words in one line; where rasterio wraps an error they are in its cause."""
    return " ".join(str(error.__cause__ or error).split()) or type(error).__name__
