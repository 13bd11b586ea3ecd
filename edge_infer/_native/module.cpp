// The Python module edge_infer._native._ext; edge_infer/sampler.py says what the arguments mean.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <initializer_list>
#include <optional>
#include <stdexcept>

#include "sampler.h"

namespace nb = nanobind;
using namespace nb::literals;
using edge_infer::Path;

namespace {

template <class Value, class Shape>
using Array = nb::ndarray<Value, Shape, nb::c_contig, nb::device::cpu>;

template <class Value>
void sample(const Array<const Value, nb::ndim<3>> &pixels,
            const std::optional<Array<const uint8_t, nb::ndim<2>>> &valid,
            const Array<const double, nb::shape<-1, 4>> &boxes, const Array<uint8_t, nb::ndim<4>> &out,
            const Array<float, nb::ndim<1>> &valid_fraction, double low, double high, int threads, Path path) {
    const size_t bands = pixels.shape(0), height = pixels.shape(1), width = pixels.shape(2);
    const size_t count = boxes.shape(0), side = out.shape(1);
    const bool fit = (!valid || (valid->shape(0) == height && valid->shape(1) == width)) && out.shape(0) == count &&
                     out.shape(2) == side && out.shape(3) == bands && valid_fraction.shape(0) == count;
    const bool sane = bands * height * width * side > 0 && height <= INT32_MAX && width <= INT32_MAX && bands <= 16 &&
                      side <= 4096 && threads > 0 && low < high && edge_infer::available(path);
    if (!fit || !sane) {
        throw std::invalid_argument("sample: the arrays do not fit together");
    }
    const edge_infer::Tile<Value> tile{pixels.data(), valid ? valid->data() : nullptr, static_cast<int>(bands),
                                       static_cast<int>(height), static_cast<int>(width)};
    const edge_infer::Chips chips{boxes.data(), out.data(), valid_fraction.data(), static_cast<int64_t>(count),
                                  static_cast<int>(side)};
    const edge_infer::Levels levels{static_cast<float>(low), static_cast<float>(255.0 / (high - low))};
    const nb::gil_scoped_release released;
    edge_infer::sample(tile, chips, levels, path, threads);
}

}  // namespace

NB_MODULE(_ext, module) {
    nb::enum_<Path> paths(module, "Path");
    paths.value("PIXELWISE", Path::pixelwise).value("BASELINE", Path::baseline).value("AVX2", Path::avx2);
    nb::list available;
    for (const Path path : {Path::pixelwise, Path::baseline, Path::avx2}) {
        if (edge_infer::available(path)) {
            available.append(path);
        }
    }
    module.attr("PATHS") = nb::tuple(available);

    const auto define = [&](auto function) {
        module.def("sample", function, "pixels"_a.noconvert(), "valid"_a.noconvert().none(), "boxes"_a.noconvert(),
                   "out"_a.noconvert(), "valid_fraction"_a.noconvert(), "low"_a, "high"_a, "threads"_a, "path"_a);
    };
    define(&sample<uint8_t>);
    define(&sample<uint16_t>);

    module.attr("CUDA_ARCHITECTURES") = EDGE_INFER_CUDA_ARCHITECTURES;
    module.attr("NVCC_VERSION") = EDGE_INFER_NVCC_VERSION;
    module.attr("CUDA_ABSENCE") = EDGE_INFER_CUDA_ABSENCE;
}
