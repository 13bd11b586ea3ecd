// The sampler on a GPU: one thread makes one chip pixel with the arithmetic that the CPU uses.
//
// Launch: blocks of kBlockColumns x kBlockRows threads over (chip columns, chip rows), one z for each window. The host
// refuses windows that are not sound before it launches, as sampler.cpp does. `valid_pixels` starts at zero.
#include "sampling.h"

namespace {

constexpr int kBlockColumns = 32, kBlockRows = 8;

template <class Value>
__device__ void sample(const Value *pixels, const uint8_t *valid, int bands, int height, int width, const double *boxes,
                       int side, float low, float factor, uint8_t *levels, unsigned *valid_pixels) {
    // Taps take double precision, of which most GPUs have little: once for each column and row of the block.
    __shared__ edge_infer::Taps x_taps[kBlockColumns], y_taps[kBlockRows];
    const int first_column = blockIdx.x * kBlockColumns, first_row = blockIdx.y * kBlockRows;
    const int64_t window = blockIdx.z;
    const double *box = boxes + 4 * window;
    const edge_infer::Axis x_axis = edge_infer::make_axis(box[0], box[2], side, width);
    const edge_infer::Axis y_axis = edge_infer::make_axis(box[1], box[3], side, height);
    if (threadIdx.y == 0) {
        x_taps[threadIdx.x] = edge_infer::taps_of(x_axis, first_column + threadIdx.x);
    } else if (threadIdx.y == 1 && threadIdx.x < kBlockRows) {
        y_taps[threadIdx.x] = edge_infer::taps_of(y_axis, first_row + threadIdx.x);
    }
    __syncthreads();

    const int column = first_column + threadIdx.x, row = first_row + threadIdx.y;
    bool is_valid = false;
    if (column < side && row < side) {
        uint8_t *chip_pixel = levels + ((window * side + row) * side + column) * bands;
        is_valid = edge_infer::sample_pixel<Value>({pixels, valid, bands, height, width}, {low, factor}, x_axis, y_axis,
                                                   x_taps[threadIdx.x], y_taps[threadIdx.y], chip_pixel);
    }
    const int count = __syncthreads_count(is_valid);
    if (threadIdx.x == 0 && threadIdx.y == 0 && count > 0) {
        atomicAdd(valid_pixels + window, static_cast<unsigned>(count));
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kBlockColumns * kBlockRows)
    sample_uint8(const uint8_t *pixels, const uint8_t *valid, int bands, int height, int width, const double *boxes,
                 int side, float low, float factor, uint8_t *levels, unsigned *valid_pixels) {
    sample(pixels, valid, bands, height, width, boxes, side, low, factor, levels, valid_pixels);
}

extern "C" __global__ void __launch_bounds__(kBlockColumns * kBlockRows)
    sample_uint16(const uint16_t *pixels, const uint8_t *valid, int bands, int height, int width, const double *boxes,
                  int side, float low, float factor, uint8_t *levels, unsigned *valid_pixels) {
    sample(pixels, valid, bands, height, width, boxes, side, low, factor, levels, valid_pixels);
}
