"""Labelled chips: cut, kept on disk, read, and parted by place."""

from __future__ import annotations
