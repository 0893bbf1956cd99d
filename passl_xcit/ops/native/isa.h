// Vectors of floats, one struct an instruction set; everything above this file is a template of it.
//
// The operands of matrix products are elements, floats or bfloat16, in units of 32 bits: one float, or two bfloat16
// that follow one another in the depth of the product. `dot` adds the products of two units. Sums are floats always.
// `Float` is the struct for products of floats.
//
// Each .cc file that includes this is compiled with the flags of its own instruction set. Nothing here or in the other
// headers may be an ordinary inline function: the linker would keep one copy for all sets.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace passl_xcit {

#ifdef __AVX2__
struct Avx2 {
  using Vector = __m256;
  using Element = float;
  using Float = Avx2;
  static constexpr int per_unit = 1;
  static constexpr int lanes = 8;
  static constexpr int tile_rows = 6;  // rows of a tile: 6 x 2 sums, 2 of B and 1 of A in 16 registers

  static Vector load(const float* from) { return _mm256_loadu_ps(from); }
  static Vector load(const float* from, int count) {
    return count >= lanes ? load(from) : _mm256_maskload_ps(from, first(count));
  }
  static void store(float* to, Vector x) { _mm256_storeu_ps(to, x); }
  static void store(float* to, Vector x, int count) {
    if (count >= lanes) store(to, x);
    else _mm256_maskstore_ps(to, first(count), x);
  }
  // The first `count` elements, then zeros.
  static Vector keep(Vector x, int count) {
    return count >= lanes ? x : _mm256_and_ps(x, _mm256_castsi256_ps(first(count)));
  }
  static Vector fill(float x) { return _mm256_set1_ps(x); }
  static Vector fma(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
  static Vector dot(Vector a, Vector b, Vector sum) { return fma(a, b, sum); }
  static Vector max(Vector a, Vector b) { return _mm256_max_ps(a, b); }  // b where one is NaN
  static Vector min(Vector a, Vector b) { return _mm256_min_ps(a, b); }
  static Vector abs(Vector x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
  static Vector sqrt(Vector x) { return _mm256_sqrt_ps(x); }
  static Vector with_sign_of(Vector x, Vector sign) {
    return _mm256_xor_ps(x, _mm256_and_ps(_mm256_set1_ps(-0.0f), sign));
  }
  static Vector round(Vector x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  // 2^x of whole numbers from -126 to 127
  static Vector power_of_two(Vector x) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(x), _mm256_set1_epi32(127)), 23));
  }
  static float sum(Vector x) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
  }

 private:
  static __m256i first(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
};
#endif

#ifdef __AVX512F__
struct Avx512 {
  using Vector = __m512;
  using Element = float;
  using Float = Avx512;
  static constexpr int per_unit = 1;
  static constexpr int lanes = 16;
  static constexpr int tile_rows = 12;  // 12 x 2 sums, 2 of B and 1 of A in 32 registers

  static Vector load(const float* from) { return _mm512_loadu_ps(from); }
  static Vector load(const float* from, int count) {
    return count >= lanes ? load(from) : _mm512_maskz_loadu_ps(first(count), from);
  }
  static void store(float* to, Vector x) { _mm512_storeu_ps(to, x); }
  static void store(float* to, Vector x, int count) {
    if (count >= lanes) store(to, x);
    else _mm512_mask_storeu_ps(to, first(count), x);
  }
  // The first `count` elements, then zeros.
  static Vector keep(Vector x, int count) { return count >= lanes ? x : _mm512_maskz_mov_ps(first(count), x); }
  static Vector fill(float x) { return _mm512_set1_ps(x); }
  static Vector fma(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
  static Vector dot(Vector a, Vector b, Vector sum) { return fma(a, b, sum); }
  static Vector max(Vector a, Vector b) { return _mm512_max_ps(a, b); }  // b where one is NaN
  static Vector min(Vector a, Vector b) { return _mm512_min_ps(a, b); }
  static Vector abs(Vector x) { return _mm512_abs_ps(x); }
  static Vector sqrt(Vector x) { return _mm512_sqrt_ps(x); }
  static Vector with_sign_of(Vector x, Vector sign) {
    return _mm512_xor_ps(x, _mm512_and_ps(_mm512_set1_ps(-0.0f), sign));
  }
  static Vector round(Vector x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  // 2^x of whole numbers from -126 to 127
  static Vector power_of_two(Vector x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(x), _mm512_set1_epi32(127)), 23));
  }
  static float sum(Vector x) { return _mm512_reduce_add_ps(x); }

 protected:
  static __mmask16 first(int count) { return static_cast<__mmask16>((1u << (count > 0 ? count : 0)) - 1); }
};
#endif

#ifdef __AVX512BF16__
struct Avx512Bf16 : Avx512 {
  using Element = uint16_t;
  static constexpr int per_unit = 2;

  using Avx512::load;
  using Avx512::store;
  static Vector load(const uint16_t* from) { return _mm512_castsi512_ps(_mm512_slli_epi32(wide(from), 16)); }
  static Vector load(const uint16_t* from, int count) {
    const __m256i low = _mm256_maskz_loadu_epi16(count >= lanes ? 0xffff : first(count), from);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(low), 16));
  }
  static void store(uint16_t* to, Vector x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), rounded(x)); }
  static void store(uint16_t* to, Vector x, int count) {
    if (count >= lanes) store(to, x);
    else _mm256_mask_storeu_epi16(to, first(count), rounded(x));
  }
  static Vector dot(Vector a, Vector b, Vector sum) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
  // Units of two rows.
  static Vector pair(Vector low, Vector high) { return _mm512_castsi512_ps(_mm512_or_si512(bits(low), upper(high))); }
  static Vector pair(const float* low, const float* high) { return pair(load(low), load(high)); }
  static Vector pair(const uint16_t* low, const uint16_t* high) {
    return _mm512_castsi512_ps(_mm512_or_si512(wide(low), _mm512_slli_epi32(wide(high), 16)));
  }
  // `units` with x in their upper halves.
  static Vector with_upper(Vector units, Vector x) {
    return _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(units), upper(x)));
  }

 private:
  static __m256i rounded(Vector x) { return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)); }
  static __m512i wide(const uint16_t* from) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static __m512i bits(Vector x) { return _mm512_cvtepu16_epi32(rounded(x)); }
  static __m512i upper(Vector x) { return _mm512_slli_epi32(bits(x), 16); }
};
#endif

}  // namespace passl_xcit
