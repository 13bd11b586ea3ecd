// Compiled once with EDGE_INFER_VECTORS=baseline and, where the processor may have it, once with avx2.
//
// The sums over rows are weighted sums of whole source rows, which suits vectors. The sums over columns do not, so the
// half-made rows are transposed in between: from then on the lanes of a vector are chip rows, and the sums over columns
// are weighted sums of vectors too. The finished levels are transposed back on their way into the chip. Products are
// added up in the order of sample_pixel(), so that both come to the same last bit.
//
// What is compiled here for AVX2 must not be found by others under a common name: a machine without it would run it.
// Everything is therefore local to this file or inlined, and templates of the standard library are not used.
#include "block.h"

#include "vectors.h"

namespace edge_infer {
namespace {

// weights[0] * numbers[0...] + weights[1] * numbers[stride...] + ..., sixteen of each.
template <class Number>
EDGE_INFER_INLINED Sixteen weigh(const Number *numbers, int64_t stride, const float *weights, int count) {
    Sixteen sum = load_sixteen(numbers);
    for (int i = 0; i < kParts; ++i) {
        sum.part[i] *= weights[0];
    }
    for (int k = 1; k < count; ++k) {
        const Sixteen more = load_sixteen(numbers + k * stride);
        for (int i = 0; i < kParts; ++i) {
            sum.part[i] += weights[k] * more.part[i];
        }
    }
    return sum;
}

template <class Value>
EDGE_INFER_INLINED void weigh_row(const Value *rows, int64_t stride, const float *weights, int count, int columns,
                                  float *sums) {
    for (int column = 0; column < columns; column += kLanes) {
        store_sixteen(sums + column, weigh(rows + column, stride, weights, count));
    }
}

// One plane's sums over rows, transposed: chip row `lane * kParts + part` goes where pack() wants it.
template <class Value>
EDGE_INFER_INLINED void sum_rows(const Window<Value> &window, int plane, int chip_row, int rows) {
    const AxisTaps &y = window.y;
    const int columns = padded(window.x.span);
    const int64_t stride = window.row_stride;
    for (int row = 0; row < rows; ++row) {
        const int at = chip_row + row;
        const Value *from = window.pixels + plane * window.plane_stride + y.first[at] * stride;
        const float *weights = y.weights + static_cast<int64_t>(at) * y.widest;
        float *sums = window.rows + row * columns;
        if (at + kLanes < y.end) {
            const Value *soon = window.pixels + plane * window.plane_stride + y.first[at + kLanes] * stride;
            for (int column = 0; column < columns; column += 64 / sizeof(Value)) {
                __builtin_prefetch(soon + column);
            }
        }
        switch (y.count[at]) {  // usual counts as constants: their loops unroll and their weights stay in registers
            case 2: weigh_row(from, stride, weights, 2, columns, sums); break;
            case 3: weigh_row(from, stride, weights, 3, columns, sums); break;
            case 4: weigh_row(from, stride, weights, 4, columns, sums); break;
            default: weigh_row(from, stride, weights, y.count[at], columns, sums);
        }
    }
    const int64_t column_stride = window.planes * kLanes;
    for (int column = 0; column < columns; column += 4) {
        float *to = window.columns + column * column_stride + plane * kLanes;
        for (int part = 0; part < kParts; ++part) {
            Floats square[4];
            load_columns(window.rows + part * columns + column, kParts * columns, square);
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                store(to + i * column_stride + part * kWidth, square[i]);
            }
        }
    }
}

// One chip column's sums over `count` columns, as levels of all bands: (bands, kLanes).
template <class Value>
EDGE_INFER_INLINED void sum_columns(const Window<Value> &window, const float *columns, const float *weights, int count,
                                    uint8_t *bytes) {
    const int bands = window.bands;
    const bool masked = window.masked;
    const Levels levels = window.levels;
    const bool plain = sizeof(Value) == 1 && !masked && levels.low == 0.0f && levels.factor == 1.0f;
    const int64_t stride = window.planes * kLanes;
    Sixteen share{}, whole{};
    if (masked) {
        share = weigh(columns + bands * kLanes, stride, weights, count);
        whole = weigh(columns + (bands + 1) * kLanes, stride, weights, count);
    }
    for (int band = 0; band < bands; ++band) {
        const Sixteen sum = weigh(columns + band * kLanes, stride, weights, count);
        Ints numbers[kParts];
        for (int i = 0; i < kParts; ++i) {
            Floats level = sum.part[i];
            if (masked) {
                level = share.part[i] == whole.part[i] ? level : level / share.part[i];
            }
            if (!plain) {  // a mean of 8-bit levels is a level as it stands
                level = (level - levels.low) * levels.factor;
                level = level > 0.0f ? level : Floats{};
                level = level < 255.0f ? level : Floats{} + 255.0f;
            }
            numbers[i] = __builtin_convertvector(level + 0.5f, Ints);
        }
        store(bytes + band * kLanes, pack(numbers));
    }
}

template <class Value>
EDGE_INFER_INLINED void fill(const Window<Value> &window, int chip_row) {
    const AxisTaps x = window.x;
    const int bands = window.bands;
    const int rows = window.y.end - chip_row < kLanes ? window.y.end - chip_row : kLanes;
    for (int plane = 0; plane < window.planes; ++plane) {
        sum_rows(window, plane, chip_row, rows);
    }
    for (int at = x.begin; at < x.end; ++at) {
        const float *columns = window.columns + static_cast<int64_t>(x.first[at]) * window.planes * kLanes;
        const float *weights = x.weights + static_cast<int64_t>(at) * x.widest;
        uint8_t *bytes = window.bytes + static_cast<int64_t>(at - x.begin) * bands * kLanes;
        switch (x.count[at]) {
            case 2: sum_columns(window, columns, weights, 2, bytes); break;
            case 3: sum_columns(window, columns, weights, 3, bytes); break;
            case 4: sum_columns(window, columns, weights, 4, bytes); break;
            default: sum_columns(window, columns, weights, x.count[at], bytes);
        }
    }
    const int width = (x.end - x.begin) * bands;
    const int64_t stride = static_cast<int64_t>(window.side) * bands;
    uint8_t *chip = window.chip + chip_row * stride + x.begin * bands;
    for (int at = 0; at < width; at += kLanes) {
        Bytes square[kLanes];
        for (int i = 0; i < kLanes; ++i) {
            square[i] = load<Bytes>(window.bytes + static_cast<int64_t>(at + i) * kLanes);
        }
        transpose(square);
        if (rows == kLanes && width - at >= kLanes) {
#pragma GCC unroll 16
            for (int row = 0; row < kLanes; ++row) {
                store(chip + row * stride + at, square[row]);
            }
        } else {
            for (int row = 0; row < rows; ++row) {
                std::memcpy(chip + row * stride + at, &square[row], width - at < kLanes ? width - at : kLanes);
            }
        }
    }
}

}  // namespace

namespace EDGE_INFER_VECTORS {
void fill_block(const Window<uint8_t> &window, int chip_row) { fill(window, chip_row); }
void fill_block(const Window<uint16_t> &window, int chip_row) { fill(window, chip_row); }
}  // namespace EDGE_INFER_VECTORS

}  // namespace edge_infer
