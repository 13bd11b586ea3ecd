"""TensorRT: engines built on the device that runs them, kept as plans in a cache.

library, messages                   which TensorRT there is, and what it says
network -> builder -> layers        from an ONNX file to a plan, and what is in it
cache, timing, inventory            what is kept between runs, and when it may be used
plans, auto                         the plan to run now, found or built; which precision
runtime                             batches through a plan

Nothing here imports TensorRT before it is asked for. The calls are those that 8.6, 10.x and 11.x share; where
they differ, versions are compared as tuples.
"""

from __future__ import annotations
