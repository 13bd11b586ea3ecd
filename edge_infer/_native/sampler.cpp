#include "sampler.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <future>
#include <stdexcept>
#include <string>
#include <vector>

#include "block.h"

namespace edge_infer {
namespace {

constexpr double kLargestSide = 65536.0;    // tile pixels: bounds the memory that one window can ask for
constexpr double kFarthest = 2147483648.0;  // tile pixels: no raster is larger

void check(const Chips &chips) {
    const auto near = [](double position) { return std::fabs(position) <= kFarthest; };  // false for NaN, as below
    const auto sound = [](double extent) { return extent > 0.0 && extent <= kLargestSide; };
    for (int64_t i = 0; i < chips.count; ++i) {
        const double *box = chips.boxes + 4 * i;
        if (!(near(box[0]) && near(box[1]) && sound(box[2]) && sound(box[3]))) {
            throw std::invalid_argument(
                "window " + std::to_string(i) + " starts at (" + std::to_string(box[0]) + ", " +
                std::to_string(box[1]) + ") and measures " + std::to_string(box[2]) + " x " + std::to_string(box[3]) +
                " tile pixels; sides must be positive and at most 65536, positions within 2^31");
        }
    }
}

// Works out taps, and owns the memory that they lie in.
class AxisPlan {
public:
    const AxisTaps &make(const Axis &axis, int side) {
        const int widest = static_cast<int>(std::min<double>(axis.size, std::ceil(2.0 * axis.support) + 1.0));
        centre_.resize(side);
        first_.resize(side);
        count_.resize(side);
        weights_.resize(static_cast<size_t>(side) * widest);
        taps_ = {0, 0, 0, 0, widest, centre_.data(), first_.data(), count_.data(), weights_.data()};
        for (int i = 0; i < side; ++i) {
            const Taps taps = taps_of(axis, i);
            if (taps.count == 0) {
                continue;
            }
            if (taps_.end == 0) {
                taps_.begin = i;
                taps_.lowest = taps.first;
            }
            taps_.end = i + 1;
            float *weights = weights_.data() + static_cast<size_t>(i) * widest;
            int count = 0;
            for (int tap = 0; tap < taps.count; ++tap) {
                weights[tap] = weight_of(axis, taps, tap);
                count = weights[tap] > 0.0f ? tap + 1 : count;  // where nothing is resampled one tap is left
            }
            centre_[i] = taps.centre;
            first_[i] = taps.first - taps_.lowest;
            count_[i] = count;
            taps_.span = std::max(taps_.span, first_[i] + count);
        }
        return taps_;
    }

private:
    AxisTaps taps_;
    std::vector<int> centre_, first_, count_;
    std::vector<float> weights_;
};

// Makes the chips of one thread, one after the other.
template <class Value>
class Sampler {
public:
    Sampler(const Tile<Value> &tile, Levels levels, int side, Path path)
        : tile_(tile), levels_(levels), side_(side), path_(path) {}

    // Makes one chip and returns its valid fraction.
    float make(const double *box, uint8_t *chip) {
        const Axis x_axis = make_axis(box[0], box[2], side_, tile_.width);
        const Axis y_axis = make_axis(box[1], box[3], side_, tile_.height);
        const int64_t valid =
            path_ == Path::pixelwise ? make_pixelwise(x_axis, y_axis, chip) : make_blocks(x_axis, y_axis, chip);
        return static_cast<float>(static_cast<double>(valid) / (static_cast<double>(side_) * side_));
    }

private:
    int64_t make_pixelwise(const Axis &x_axis, const Axis &y_axis, uint8_t *chip) const {
        int64_t valid = 0;
        for (int row = 0; row < side_; ++row) {
            for (int column = 0; column < side_; ++column, chip += tile_.bands) {
                valid += sample_pixel(tile_, levels_, x_axis, y_axis, taps_of(x_axis, column), taps_of(y_axis, row),
                                      chip);
            }
        }
        return valid;
    }

    int64_t make_blocks(const Axis &x_axis, const Axis &y_axis, uint8_t *chip) {
        const AxisTaps &x = x_plan_.make(x_axis, side_);
        const AxisTaps &y = y_plan_.make(y_axis, side_);
        const int64_t inside = static_cast<int64_t>(x.end - x.begin) * (y.end - y.begin);
        const int64_t whole = static_cast<int64_t>(side_) * side_;
        if (inside < whole) {
            std::memset(chip, 0, whole * tile_.bands);
        }
        if (inside == 0) {
            return 0;
        }
        const bool masked = tile_.valid && any_invalid(x, y);
        Window<Value> window{};
        window.bands = tile_.bands;
        window.masked = masked;
        window.planes = masked ? tile_.bands + 2 : tile_.bands;
        window.levels = levels_;
        window.x = x;
        window.y = y;
        window.chip = chip;
        window.side = side_;
        provide_pixels(window);
        provide_memory(window);
        for (int row = y.begin; row < y.end; row += kLanes) {
#ifdef EDGE_INFER_AVX2
            if (path_ == Path::avx2) {
                avx2::fill_block(window, row);
                continue;
            }
#endif
            baseline::fill_block(window, row);
        }
        return masked ? blank_invalid(x, y, chip) : inside;
    }

    // Offset of a pixel in its plane.
    int64_t at(int row, int column) const { return static_cast<int64_t>(row) * tile_.width + column; }

    bool any_invalid(const AxisTaps &x, const AxisTaps &y) const {
        for (int row = y.lowest; row < y.lowest + y.span; ++row) {
            if (std::memchr(tile_.valid + at(row, x.lowest), 0, x.span)) {
                return true;
            }
        }
        return false;
    }

    // The tile itself, or a copy of a piece of it: where the mask has to be applied, or padded rows would reach past
    // the tile's last pixel.
    void provide_pixels(Window<Value> &window) {
        const AxisTaps &x = window.x, &y = window.y;
        const int64_t plane = at(tile_.height, 0);
        const int64_t reach = (tile_.bands - 1) * plane + at(y.lowest + y.span - 1, x.lowest) + padded(x.span);
        if (!window.masked && reach <= tile_.bands * plane) {
            window.pixels = tile_.pixels + at(y.lowest, x.lowest);
            window.row_stride = tile_.width;
            window.plane_stride = plane;
            return;
        }
        window.row_stride = padded(x.span);
        window.plane_stride = y.span * window.row_stride;
        piece_.resize(window.planes * window.plane_stride);
        window.pixels = piece_.data();
        Value *to = piece_.data();
        for (int p = 0; p < window.planes; ++p) {
            for (int row = y.lowest; row < y.lowest + y.span; ++row, to += window.row_stride) {
                const Value *from = p < tile_.bands ? tile_.pixels + p * plane + at(row, x.lowest) : nullptr;
                const uint8_t *valid = window.masked && p <= tile_.bands ? tile_.valid + at(row, x.lowest) : nullptr;
                copy_valid(from, valid, x.span, to);
            }
        }
    }

    // A row of pixels, ones where `from` is null, and zeros where the mask is zero, if there is one.
    static void copy_valid(const Value *__restrict from, const uint8_t *__restrict valid, int count,
                           Value *__restrict to) {
        if (from) {
            std::copy_n(from, count, to);
        } else {
            std::fill_n(to, count, Value{1});
        }
        if (valid) {
            for (int i = 0; i < count; ++i) {
                to[i] = valid[i] ? to[i] : Value{0};
            }
        }
    }

    void provide_memory(Window<Value> &window) {
        const size_t columns = padded(window.x.span);
        rows_.resize(kLanes * columns);
        columns_.resize(kLanes * columns * window.planes);
        bytes_.resize(static_cast<size_t>(kLanes) * padded(side_ * tile_.bands));
        window.rows = rows_.data();
        window.columns = columns_.data();
        window.bytes = bytes_.data();
    }

    // Clears the pixels whose centre is invalid; returns how many are valid.
    int64_t blank_invalid(const AxisTaps &x, const AxisTaps &y, uint8_t *chip) const {
        int64_t count = 0;
        for (int row = y.begin; row < y.end; ++row) {
            const uint8_t *valid = tile_.valid + at(y.centre[row], 0);
            uint8_t *levels = chip + static_cast<int64_t>(row) * side_ * tile_.bands;
            for (int column = x.begin; column < x.end; ++column) {
                if (valid[x.centre[column]]) {
                    ++count;
                    continue;
                }
                for (int band = 0; band < tile_.bands; ++band) {
                    levels[column * tile_.bands + band] = 0;
                }
            }
        }
        return count;
    }

    const Tile<Value> tile_;
    const Levels levels_;
    const int side_;
    const Path path_;
    AxisPlan x_plan_, y_plan_;
    std::vector<Value> piece_;
    std::vector<float> rows_, columns_;
    std::vector<uint8_t> bytes_;
};

}  // namespace

bool available(Path path) {
    if (path != Path::avx2) {
        return true;
    }
#ifdef EDGE_INFER_AVX2
    return __builtin_cpu_supports("avx2");
#else
    return false;
#endif
}

template <class Value>
void sample(const Tile<Value> &tile, const Chips &chips, Levels levels, Path path, int threads) {
    check(chips);
    const int64_t chip_size = static_cast<int64_t>(chips.side) * chips.side * tile.bands;
    std::atomic<int64_t> next{0};
    const auto work = [&] {
        Sampler<Value> sampler(tile, levels, chips.side, path);
        for (int64_t i; (i = next++) < chips.count;) {
            chips.valid_fraction[i] = sampler.make(chips.boxes + 4 * i, chips.levels + i * chip_size);
        }
    };
    std::vector<std::future<void>> helpers;  // a future waits for its thread when it goes, and hands on what it threw
    for (int64_t i = 1; i < std::min<int64_t>(threads, chips.count); ++i) {
        helpers.push_back(std::async(std::launch::async, work));
    }
    work();
    for (std::future<void> &helper : helpers) {
        helper.get();
    }
}

template void sample(const Tile<uint8_t> &, const Chips &, Levels, Path, int);
template void sample(const Tile<uint16_t> &, const Chips &, Levels, Path, int);

}  // namespace edge_infer
