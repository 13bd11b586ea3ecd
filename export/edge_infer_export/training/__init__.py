"""From chips to a run folder: order, augmentation, loader, schedule, checkpoints."""

from __future__ import annotations
