"""GDAL's settings for every access to imagery, in one place."""

from __future__ import annotations

import os

import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.env import set_gdal_config
from rasterio.errors import RasterioError

from edge_infer.sizes import available_cores, choose_cache_bytes, installed_memory_bytes

BLOCK_CACHE_BYTES = choose_cache_bytes(cores=available_cores(), memory_bytes=installed_memory_bytes())
"""GDAL's cache of decoded blocks, shared by all threads; GDAL_CACHEMAX in the environment wins."""

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


def gdal_environment() -> rasterio.Env:
    """Make the environment to be entered in each thread that opens rasters.

    The bound of the block cache is one for the process and stays when the environment is left: a reader
    that ends must not lift it for the others.
    """
    if "GDAL_CACHEMAX" not in os.environ:
        set_gdal_config("GDAL_CACHEMAX", BLOCK_CACHE_BYTES)
    return rasterio.Env(**_OPTIONS)


def gdal_words(error: BaseException) -> str:
    """Give GDAL's own words in one line; where rasterio wraps an error they are in its cause."""
    return " ".join(str(error.__cause__ or error).split()) or type(error).__name__
