// Sixteen chip rows of one window at a time: the inner loops of the sampler, compiled once for each kind of vectors.
#pragma once

#include "sampling.h"

namespace edge_infer {

// Numbers are read and written sixteen at a time: rows of a buffer are padded to a multiple of it.
constexpr int kLanes = 16;

static constexpr int padded(int count) { return (count + kLanes - 1) / kLanes * kLanes; }

// The taps of every chip pixel along one axis of one window.
struct AxisTaps {
    int begin, end;        // chip pixels whose centre lies on the tile
    int lowest, span;      // tile pixels that they use
    int widest;            // stride of `weights`
    const int *centre;     // (side,): tile pixel that the centre lies on
    const int *first;      // (side,): first tap, counted from `lowest`
    const int *count;      // (side,)
    const float *weights;  // (side, widest)
};

// One window, and the memory in which its blocks are made.
template <class Value>
struct Window {
    const Value *pixels;  // first plane, at the lowest tap of both axes; rows may be read to the padded span
    int64_t row_stride, plane_stride;
    int bands;
    // Where some pixels are invalid they are 0 in every band, and two planes follow the bands: one with 1 for valid and
    // 0 for invalid pixels, one with 1 for all.
    bool masked;
    int planes;
    Levels levels;
    AxisTaps x, y;
    float *rows;     // (kLanes, padded x.span)
    float *columns;  // (padded x.span, planes, kLanes)
    uint8_t *bytes;  // (padded side * bands, kLanes)
    uint8_t *chip;   // (side, side, bands)
    int side;
};

// Fill the chip between x.begin and x.end, from `chip_row` to y.end or kLanes rows on, whichever comes first.
namespace baseline {
void fill_block(const Window<uint8_t> &window, int chip_row);
void fill_block(const Window<uint16_t> &window, int chip_row);
}  // namespace baseline
namespace avx2 {
void fill_block(const Window<uint8_t> &window, int chip_row);
void fill_block(const Window<uint16_t> &window, int chip_row);
}  // namespace avx2

}  // namespace edge_infer
