"""What a model is worth where it was not trained, with intervals, pictures and one page."""

from __future__ import annotations
