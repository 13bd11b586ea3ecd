"""Chips of other programs, and theirs of ours: Esri's Labeled_Tiles, class folders, `.emd`."""

from __future__ import annotations
