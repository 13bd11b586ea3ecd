// Chips out of a decoded tile, on the CPU.
#pragma once

#include "sampling.h"

namespace edge_infer {

// Chips to fill, one for each window.
struct Chips {
    const double *boxes;    // (count, 4): x, y, width, height in tile pixels
    uint8_t *levels;        // (count, side, side, bands)
    float *valid_fraction;  // (count,): share of chip pixels whose centre is a valid pixel of the tile
    int64_t count;
    int side;
};

// Ways to the same chips, slowest first.
enum class Path {
    pixelwise,  // sample_pixel(), as a CUDA kernel runs it: the reference
    baseline,   // vectors that every processor of this kind has
    avx2,
};

bool available(Path path);

// Fills every chip; `threads` threads share the windows. Throws std::invalid_argument, before anything is written, for
// a window that is not finite, has no extent, or is too large or too far away to be meant.
template <class Value>
void sample(const Tile<Value> &tile, const Chips &chips, Levels levels, Path path, int threads);

}  // namespace edge_infer
