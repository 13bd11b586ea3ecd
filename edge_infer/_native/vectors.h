// Vectors of floats and bytes. The plain ones are sixteen bytes wide, as every x86-64 and every aarch64 has them; a
// file compiled for AVX2 gets floats of twice that width.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "block.h"

#define EDGE_INFER_INLINED __attribute__((always_inline)) inline

#ifdef __clang__
#define EDGE_INFER_PICK(Lanes, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define EDGE_INFER_PICK(Lanes, a, b, ...) __builtin_shuffle(a, b, Lanes{__VA_ARGS__})
#endif

namespace edge_infer {
namespace {

#ifdef __AVX2__
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif
constexpr int kParts = kLanes / kWidth;

typedef uint8_t Bytes __attribute__((vector_size(16)));
typedef uint16_t Shorts __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(4 * kWidth)));
typedef float Floats __attribute__((vector_size(4 * kWidth)));

// Sixteen numbers.
struct Sixteen {
    Floats part[kParts];
};

template <class Vector>
EDGE_INFER_INLINED Vector load(const void *from) {
    Vector vector;
    std::memcpy(&vector, from, sizeof vector);
    return vector;
}

template <class Vector>
EDGE_INFER_INLINED void store(void *to, const Vector &vector) {
    std::memcpy(to, &vector, sizeof vector);
}

EDGE_INFER_INLINED Sixteen load_sixteen(const float *from) {
    Sixteen numbers;
    for (int i = 0; i < kParts; ++i) {
        numbers.part[i] = load<Floats>(from + kWidth * i);
    }
    return numbers;
}

EDGE_INFER_INLINED void store_sixteen(float *to, const Sixteen &numbers) {
    for (int i = 0; i < kParts; ++i) {
        store(to + kWidth * i, numbers.part[i]);
    }
}

// Lanes of two vectors in turn, a0 b0 a1 b1 ...: of their first halves into `low`, of their second halves into `high`.
EDGE_INFER_INLINED void interleave(const Bytes &a, const Bytes &b, Bytes &low, Bytes &high) {
    low = EDGE_INFER_PICK(Bytes, a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    high = EDGE_INFER_PICK(Bytes, a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

EDGE_INFER_INLINED void interleave(const Shorts &a, const Shorts &b, Shorts &low, Shorts &high) {
    low = EDGE_INFER_PICK(Shorts, a, b, 0, 8, 1, 9, 2, 10, 3, 11);
    high = EDGE_INFER_PICK(Shorts, a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}

// The same within each sixteen bytes.
EDGE_INFER_INLINED void interleave(const Floats &a, const Floats &b, Floats &low, Floats &high) {
#ifdef __AVX2__
    low = EDGE_INFER_PICK(Ints, a, b, 0, 8, 1, 9, 4, 12, 5, 13);
    high = EDGE_INFER_PICK(Ints, a, b, 2, 10, 3, 11, 6, 14, 7, 15);
#else
    low = EDGE_INFER_PICK(Ints, a, b, 0, 4, 1, 5);
    high = EDGE_INFER_PICK(Ints, a, b, 2, 6, 3, 7);
#endif
}

// A square of lanes becomes its transpose: each round interleaves the first half of its rows with the second.
template <class Vector, int N>
EDGE_INFER_INLINED void transpose(Vector (&rows)[N]) {
    for (int round = 1; round < N; round *= 2) {
        Vector next[N];
#pragma GCC unroll 8
        for (int i = 0; i < N / 2; ++i) {
            interleave(rows[i], rows[i + N / 2], next[2 * i], next[2 * i + 1]);
        }
        for (int i = 0; i < N; ++i) {
            rows[i] = next[i];
        }
    }
}

#ifdef __AVX2__

EDGE_INFER_INLINED Sixteen load_sixteen(const uint8_t *from) {
    const auto eight = [](const uint8_t *at) {
        return (Floats)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(at))));
    };
    return {{eight(from), eight(from + 8)}};
}

EDGE_INFER_INLINED Sixteen load_sixteen(const uint16_t *from) {
    const __m128i *shorts = reinterpret_cast<const __m128i *>(from);
    return {{_mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(_mm_loadu_si128(shorts))),
             _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(_mm_loadu_si128(shorts + 1)))}};
}

// Four columns of eight rows that lie `stride` apart: part j is column j.
EDGE_INFER_INLINED void load_columns(const float *rows, int64_t stride, Floats (&columns)[4]) {
    for (int i = 0; i < 4; ++i) {
        columns[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(rows + i * stride)),
                                          _mm_loadu_ps(rows + (i + 4) * stride), 1);
    }
    transpose(columns);
}

// Sixteen numbers of 0..255 as bytes, those of one lane beside each other.
EDGE_INFER_INLINED Bytes pack(const Ints (&numbers)[kParts]) {
    const __m256i pairs = (__m256i)(numbers[0] | numbers[1] << 16);
    return (Bytes)_mm_packus_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
}

#else

EDGE_INFER_INLINED Sixteen widen(const Shorts &first, const Shorts &second) {
    Shorts quarters[4];
    interleave(first, Shorts{}, quarters[0], quarters[1]);
    interleave(second, Shorts{}, quarters[2], quarters[3]);
    Sixteen numbers;
    for (int i = 0; i < 4; ++i) {
        numbers.part[i] = __builtin_convertvector((Ints)quarters[i], Floats);
    }
    return numbers;
}

EDGE_INFER_INLINED Sixteen load_sixteen(const uint8_t *from) {
    Bytes halves[2];
    interleave(load<Bytes>(from), Bytes{}, halves[0], halves[1]);
    return widen((Shorts)halves[0], (Shorts)halves[1]);
}

EDGE_INFER_INLINED Sixteen load_sixteen(const uint16_t *from) {
    return widen(load<Shorts>(from), load<Shorts>(from + 8));
}

// Four columns of four rows that lie `stride` apart: part j is column j.
EDGE_INFER_INLINED void load_columns(const float *rows, int64_t stride, Floats (&columns)[4]) {
    for (int i = 0; i < 4; ++i) {
        columns[i] = load<Floats>(rows + i * stride);
    }
    transpose(columns);
}

// Sixteen numbers of 0..255 as bytes, those of one lane beside each other.
EDGE_INFER_INLINED Bytes pack(const Ints (&numbers)[kParts]) {
    return (Bytes)(numbers[0] | numbers[1] << 8 | numbers[2] << 16 | numbers[3] << 24);
}

#endif

#undef EDGE_INFER_PICK

}  // namespace
}  // namespace edge_infer
