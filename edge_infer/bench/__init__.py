"""`edge-infer bench`: how fast, how steady and at what cost in energy a model runs on this machine.

    stats        percentiles, steadiness, intervals: pure arithmetic
    scenario     an engine loaded one batch at a time, or with all it takes (MLPerf's two)
    watch        power, heat and throttling, sampled in a thread while something runs
    chips        real chips to feed it with
    alone        the engine alone, over precisions and batches
    pagecache    whether imagery lies in memory, and how to get it out
    whole        runs over real footprints, from a cold and a warm cache, and what they are over
    validity     why figures are not to be trusted
    session      all of it, in order: one document
    document     that document as a file, and read again
    table        ... in words
    compare      two of them, with intervals
    plot         a picture of latency against batch, where Matplotlib is

A part of the document is made by a module of its own (`alone`, `whole`), which gives its reasons for doubt.
"""
