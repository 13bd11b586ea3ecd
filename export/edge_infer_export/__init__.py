"""The office side: labelled chips, training, and the export of a trained network as a bundle.

The runtime never imports this package; the two meet in the bundle only. Importing it loads nothing heavy.
"""

from __future__ import annotations
