// The arithmetic of one chip pixel, the same on a CPU and in a CUDA kernel.
//
// The filter is the one of Pillow's resize(BILINEAR, box=...): a triangle as wide as two chip pixels, but never
// narrower than two tile pixels. Taps beyond the tile are dropped and the rest made to sum to one. Sums run over rows
// first, then over columns, in single precision and without fused multiply-adds, so that every machine makes the same
// chip to the last bit.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define EDGE_INFER_BOTH __host__ __device__ inline
#else
#define EDGE_INFER_BOTH inline
#endif

namespace edge_infer {

// A decoded piece of an image.
template <class Value>
struct Tile {
    const Value *pixels;   // (bands, height, width), C-contiguous
    const uint8_t *valid;  // (height, width), 0 = invalid; null: every pixel is valid
    int bands, height, width;
};

// What turns a source value into a chip level of 0..255.
struct Levels {
    float low;     // this value becomes 0
    float factor;  // levels for each unit of value
};

EDGE_INFER_BOTH uint8_t level_of(float value, Levels levels) {
    float level = (value - levels.low) * levels.factor;
    level = level > 0.0f ? level : 0.0f;
    level = level < 255.0f ? level : 255.0f;
    return static_cast<uint8_t>(static_cast<int>(level + 0.5f));
}

// One axis of one window: from chip pixels to tile pixels.
struct Axis {
    double origin;    // tile position of the window's edge
    double step;      // tile pixels for each chip pixel
    double support;   // half the width of the filter in tile pixels
    float sharpness;  // 1 / support
    int size;         // tile pixels along this axis
};

// Windows come out of coordinate transforms: what they miss whole pixels by is noise, and no shift that was meant.
constexpr double kNoisePixels = 1e-6;

EDGE_INFER_BOTH Axis make_axis(double origin, double extent, int chip_pixels, int size) {
    const double whole = nearbyint(origin);
    if (fabs(extent - chip_pixels) < kNoisePixels && fabs(origin - whole) < kNoisePixels) {
        origin = whole;
        extent = chip_pixels;
    }
    const double step = extent / chip_pixels;
    const double support = step > 1.0 ? step : 1.0;
    return {origin, step, support, static_cast<float>(1.0 / support), size};
}

// The tile pixels that make one chip pixel along one axis.
struct Taps {
    int centre;   // tile pixel that the chip pixel's centre lies on
    int first;    // first tile pixel
    int count;    // 0 where the centre lies outside the tile
    float peak;   // where the filter is highest, in tile pixels from the edge of `first`
    float scale;  // makes the weights sum to one
};

EDGE_INFER_BOTH float raw_weight(const Axis &axis, float peak, int tap) {
    const float height = 1.0f - fabsf(static_cast<float>(tap) + 0.5f - peak) * axis.sharpness;
    return height > 0.0f ? height : 0.0f;
}

EDGE_INFER_BOTH Taps taps_of(const Axis &axis, int chip_pixel) {
    const double centre = axis.origin + (chip_pixel + 0.5) * axis.step;
    if (!(centre >= 0.0 && centre < axis.size)) {
        return {0, 0, 0, 0.0f, 0.0f};
    }
    const double lowest = floor(centre - axis.support + 0.5);
    const double beyond = floor(centre + axis.support + 0.5);
    const int first = lowest > 0.0 ? static_cast<int>(lowest) : 0;
    const int count = (beyond < axis.size ? static_cast<int>(beyond) : axis.size) - first;
    const float peak = static_cast<float>(centre - first);
    float total = 0.0f;
    for (int tap = 0; tap < count; ++tap) {
        total += raw_weight(axis, peak, tap);
    }
    return {static_cast<int>(centre), first, count, peak, 1.0f / total};
}

EDGE_INFER_BOTH float weight_of(const Axis &axis, const Taps &taps, int tap) {
    return raw_weight(axis, taps.peak, tap) * taps.scale;
}

// Writes the chip pixel with these taps, of all bands; returns false, and writes zeros, where its centre is no valid pixel of the tile.
template <class Value>
EDGE_INFER_BOTH bool sample_pixel(const Tile<Value> &tile, Levels levels, const Axis &x_axis, const Axis &y_axis,
                                  const Taps &x, const Taps &y, uint8_t *chip_pixel) {
    const int64_t width = tile.width;
    if (x.count == 0 || y.count == 0 || (tile.valid && !tile.valid[y.centre * width + x.centre])) {
        for (int band = 0; band < tile.bands; ++band) {
            chip_pixel[band] = 0;
        }
        return false;
    }
    for (int band = 0; band < tile.bands; ++band) {
        const Value *plane = tile.pixels + band * tile.height * width;
        float sum = 0.0f, share = 0.0f, whole = 0.0f;
        for (int column = 0; column < x.count; ++column) {
            float column_sum = 0.0f, column_share = 0.0f, column_whole = 0.0f;
            for (int row = 0; row < y.count; ++row) {
                const int64_t at = (y.first + row) * width + x.first + column;
                const float weight = weight_of(y_axis, y, row);
                const float counted = tile.valid && !tile.valid[at] ? 0.0f : weight;
                column_sum += counted * static_cast<float>(plane[at]);
                column_share += counted;
                column_whole += weight;
            }
            const float weight = weight_of(x_axis, x, column);
            sum += weight * column_sum;
            share += weight * column_share;
            whole += weight * column_whole;
        }
        chip_pixel[band] = level_of(share == whole ? sum : sum / share, levels);
    }
    return true;
}

}  // namespace edge_infer
