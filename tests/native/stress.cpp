// Random tiles, masks and windows, sound and absurd, through the sampler: built with sanitizers by test_sanitizers.py.
// Every buffer is a heap block of exactly its size, so that one byte too far is seen.
//
//     stress SEED SECONDS
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <random>
#include <stdexcept>

#include "sampler.h"

namespace {

using edge_infer::Path;

class Draw {
public:
    explicit Draw(unsigned seed) : engine_(seed) {}

    int whole(int low, int high) { return std::uniform_int_distribution<int>(low, high)(engine_); }
    double real(double low, double high) { return std::uniform_real_distribution<double>(low, high)(engine_); }

    // A side of a window: mostly usual, sometimes extreme or no number at all.
    double position(double size) {
        static const double odd[] = {0.0, -0.0, 1e-300, 5e-324, 65536.0, -65536.0, 2147483648.0, -2147483648.0, 1e300,
                                     std::numeric_limits<double>::infinity(), std::nan("")};
        switch (whole(0, 9)) {
            case 0: return odd[whole(0, 10)];
            case 1: return whole(-3, static_cast<int>(size) + 3);
            case 2: return real(-1e6, 1e6);
            case 3: return std::ldexp(1.0, whole(-60, 40));
            default: return real(-0.5, 1.5) * size;
        }
    }

private:
    std::mt19937 engine_;
};

template <class Value>
bool sample_once(Draw &draw) {
    const int bands = draw.whole(1, 16), height = draw.whole(1, 70), width = draw.whole(1, 70);
    const int side = draw.whole(1, draw.whole(1, 60)), count = draw.whole(0, 4);
    const size_t area = static_cast<size_t>(height) * width, chip = static_cast<size_t>(side) * side * bands;
    const std::unique_ptr<Value[]> pixels(new Value[area * bands]);
    for (size_t i = 0; i < area * bands; ++i) {
        pixels[i] = static_cast<Value>(draw.whole(0, std::numeric_limits<Value>::max()));
    }
    std::unique_ptr<uint8_t[]> valid;
    if (draw.whole(0, 1)) {
        valid.reset(new uint8_t[area]);
        const int share = draw.whole(0, 10);
        for (size_t i = 0; i < area; ++i) {
            valid[i] = draw.whole(0, 9) < share;
        }
    }
    const std::unique_ptr<double[]> boxes(new double[4 * count]);
    for (int i = 0; i < count; ++i) {
        for (int k = 0; k < 4; ++k) {
            boxes[4 * i + k] = draw.position(k % 2 ? height : width);
        }
    }
    const std::unique_ptr<uint8_t[]> levels(new uint8_t[chip * count]);
    const std::unique_ptr<float[]> fractions(new float[count]);
    static const Path paths[] = {Path::pixelwise, Path::baseline, Path::avx2};
    const Path path = paths[draw.whole(0, edge_infer::available(Path::avx2) ? 2 : 1)];
    try {
        edge_infer::sample(edge_infer::Tile<Value>{pixels.get(), valid.get(), bands, height, width},
                           edge_infer::Chips{boxes.get(), levels.get(), fractions.get(), count, side},
                           edge_infer::Levels{static_cast<float>(draw.real(-10, 10)), static_cast<float>(draw.real(0.001, 10))},
                           path, draw.whole(1, 3));
    } catch (const std::invalid_argument &) {
        return false;
    }
    for (int i = 0; i < count; ++i) {
        if (!(fractions[i] >= 0.0f && fractions[i] <= 1.0f)) {
            std::printf("valid fraction %f\n", static_cast<double>(fractions[i]));
            std::exit(1);
        }
    }
    return true;
}

}  // namespace

int main(int, char **arguments) {
    Draw draw(static_cast<unsigned>(std::atoi(arguments[1])));
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(std::atoi(arguments[2]));
    long done = 0, refused = 0;
    while (std::chrono::steady_clock::now() < end) {
        (draw.whole(0, 1) ? sample_once<uint8_t>(draw) : sample_once<uint16_t>(draw)) ? ++done : ++refused;
    }
    std::printf("%ld sampled, %ld refused\n", done, refused);
    return done > 0 && refused > 0 ? 0 : 1;
}
