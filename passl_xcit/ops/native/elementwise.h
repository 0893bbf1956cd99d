// Functions of vectors and of rows: exponential, GELU, softmax, LayerNorm.
#pragma once

#include "matmul.h"

namespace passl_xcit {

// e^x with a relative error of 2e-7; 0 below -87, and no larger than e^88.
template <class Isa>
typename Isa::Vector exponential(typename Isa::Vector x) {
  using Vector = typename Isa::Vector;
  const Vector bounded = Isa::max(Isa::fill(-87), Isa::min(Isa::fill(88), x));
  const Vector power = Isa::round(bounded * Isa::fill(1.44269504f));
  // ln 2 in two parts, so that what is left of x is exact; then its Taylor series.
  Vector rest = Isa::fma(power, Isa::fill(-0.693145752f), bounded);
  rest = Isa::fma(power, Isa::fill(-1.42860677e-6f), rest);
  Vector sum = Isa::fill(1 / 720.0f);
  for (float coefficient : {1 / 120.0f, 1 / 24.0f, 1 / 6.0f, 0.5f, 1.0f, 1.0f})
    sum = Isa::fma(sum, rest, Isa::fill(coefficient));
  return sum * Isa::power_of_two(power);
}

// sum of coefficients[i] u^(degree - i)
template <class Isa, int Count>
typename Isa::Vector polynomial(const float (&coefficients)[Count], typename Isa::Vector u) {
  typename Isa::Vector sum = Isa::fill(coefficients[0]);
#pragma GCC unroll 15
  for (int i = 1; i < Count; ++i) sum = Isa::fma(sum, u, Isa::fill(coefficients[i]));
  return sum;
}

// Where 1 - Phi(t) is taken for zero; Phi is the normal distribution.
template <class Isa>
constexpr float tail_end = Isa::per_unit == 2 ? 4.0f : 5.2f;

// 1 - Phi(t) for t from 0 to its end, as a polynomial (least maximal error of max(t, 0.5) (1 - Phi(t)), by Lawson's
// iteration). GELU is x Phi(x) = max(x, 0) - t (1 - Phi(t)) with t = |x|; beyond the end the second part is below 6e-7,
// or 1.3e-4. GELU's absolute error is below 6e-7, or below 2.2e-4 where it is rounded to bfloat16.
template <class Isa>
typename Isa::Vector normal_tail(typename Isa::Vector t) {
  using Vector = typename Isa::Vector;
  constexpr float fine[] = {
      -0.0035341004841029644f, 0.0056472597643733025f, 0.015160691924393177f, -0.03556383401155472f,
      -0.011630424298346043f,  0.09117041528224945f,   -0.06632866710424423f, -0.08334498107433319f,
      0.190455362200737f,      -0.10479982197284698f,  -0.10963398963212967f, 0.2528640329837799f,
      -0.22917288541793823f,   0.11936578899621964f,   -0.03531593084335327f, 0.004661197774112225f};
  constexpr float coarse[] = {-0.0006460692966356874f, 0.00998123362660408f, -0.05799617990851402f,
                              0.14151056110858917f,    -0.04568755626678467f, -0.3881799876689911f,
                              0.4995802640914917f};
  if constexpr (Isa::per_unit == 2) return polynomial<Isa>(coarse, t);
  else return polynomial<Isa>(fine, Isa::fma(t, Isa::fill(2 / tail_end<Isa>), Isa::fill(-1)));
}

template <class Isa>
typename Isa::Vector gelu(typename Isa::Vector x) {
  const typename Isa::Vector t = Isa::min(Isa::fill(tail_end<Isa>), Isa::abs(x));
  return Isa::max(Isa::fill(0), x) - t * normal_tail<Isa>(t);
}

// GELU and its derivative Phi(x) + x phi(x), phi the normal density.
template <class Isa>
void gelu_and_slope(typename Isa::Vector x, typename Isa::Vector& value, typename Isa::Vector& slope) {
  using Vector = typename Isa::Vector;
  const Vector t = Isa::min(Isa::fill(tail_end<Isa>), Isa::abs(x)), tail = normal_tail<Isa>(t);
  value = Isa::max(Isa::fill(0), x) - t * tail;
  if constexpr (Isa::per_unit == 2) {
    // The slope at -t, within 4e-4: least maximal error, too.
    constexpr float coarse[] = {0.00042996794218197465f, -0.006439620163291693f, 0.034369781613349915f,
                                -0.06116921082139015f,   -0.08447607606649399f,  0.3815842270851135f,
                                -0.06003382429480553f,   -0.7869583368301392f,   0.4996809959411621f};
    slope = Isa::fill(0.5f) + Isa::with_sign_of(Isa::fill(0.5f) - polynomial<Isa>(coarse, t), x);
  } else {
    const Vector below = Isa::fill(0.5f) + Isa::with_sign_of(Isa::fill(0.5f) - tail, x);
    slope = Isa::fma(x * Isa::fill(0.398942280f), exponential<Isa>(x * x * Isa::fill(-0.5f)), below);
  }
}

// Mean and 1 / sqrt(variance + epsilon) of a row.
template <class Isa>
void moments(const float* x, int channels, float* to, float epsilon = 1e-6f) {
  using Vector = typename Isa::Vector;
  Vector sum = Isa::fill(0), squares = Isa::fill(0);
  for (int c = 0; c < channels; c += Isa::lanes) sum = sum + Isa::load(x + c, channels - c);
  const float mean = Isa::sum(sum) / channels;
  for (int c = 0; c < channels; c += Isa::lanes) {
    const Vector centred = Isa::keep(Isa::load(x + c, channels - c) - Isa::fill(mean), channels - c);
    squares = Isa::fma(centred, centred, squares);
  }
  to[0] = mean;
  to[1] = 1 / __builtin_sqrtf(Isa::sum(squares) / channels + epsilon);
}

// A row of C floats, normalised, times weight plus bias, into a row of `length` elements, zero beyond C. May be done in
// place.
template <class Isa>
void layer_norm(const float* x, const float* weight, const float* bias, int channels, int length,
                typename Isa::Element* y, float epsilon = 1e-6f) {
  using Vector = typename Isa::Vector;
  float of_row[2];
  moments<Isa>(x, channels, of_row, epsilon);
  const Vector mean = Isa::fill(of_row[0]), scale = Isa::fill(of_row[1]);
  for (int c = 0; c < length; c += Isa::lanes) {
    const int left = channels - c;
    const Vector value = (Isa::load(x + c, left) - mean) * scale;
    const Vector affine = Isa::fma(value, Isa::load(weight + c, left), Isa::load(bias + c, left));
    Isa::store(y + c, Isa::keep(affine, left), length - c);
  }
}

// A row that may be absent: zeros then.
template <class Isa>
typename Isa::Vector optional(const float* row, int c, int channels) {
  return row ? Isa::load(row + c, channels - c) : Isa::fill(0);
}

// What drop path multiplies an image's update by.
template <class Isa>
typename Isa::Vector factor_of(const float* keep, long image) {
  return Isa::fill(keep ? keep[image] : 1);
}

template <class Isa>
void softmax(float* row, int length) {
  using Vector = typename Isa::Vector;
  float most = row[0];
  for (int i = 1; i < length; ++i) most = row[i] > most ? row[i] : most;
  Vector sum = Isa::fill(0);
  for (int i = 0; i < length; i += Isa::lanes) {
    const Vector power = Isa::keep(exponential<Isa>(Isa::load(row + i, length - i) - Isa::fill(most)), length - i);
    Isa::store(row + i, power, length - i);
    sum = sum + power;
  }
  const Vector scale = Isa::fill(1 / Isa::sum(sum));
  for (int i = 0; i < length; i += Isa::lanes) Isa::store(row + i, Isa::load(row + i, length - i) * scale, length - i);
}

constexpr int kHidden = 512;  // hidden channels of an MLP that are computed at a time

// use(i, j, gelu(x W1 + b1) W2) for rows x [rows, stride]; `active` [rows, kHidden] and `sums` [rows, padded columns]
// are scratch. `kept` [rows, padded hidden] gets what goes into GELU, or is null.
template <class Isa, class Use>
void mlp_rows(int rows, const typename Isa::Element* x, long stride, const Panels<Isa>& fc1, const float* fc1_bias,
              const Panels<Isa>& fc2, typename Isa::Element* active, float* sums, typename Isa::Element* kept,
              const Use& use) {
  using Vector = typename Isa::Vector;
  constexpr int wide = panel_columns<Isa>;
  const int hidden = fc1.columns, length = padded<Isa>(fc2.columns);
  const long F = padded<Isa>(hidden);
  for (int first = 0; first < hidden; first += kHidden) {
    const int count = hidden - first < kHidden ? hidden - first : kHidden;
    for (int j = 0; j < count; j += wide)
      multiply_panel<Isa>(rows, units<Isa>(fc1.depth), rows_of<Isa>(x, stride), fc1.panel((first + j) / wide), wide, j,
                          count, [&](int i, int column, Vector value) {
                            const Vector before = value + optional<Isa>(fc1_bias, first + column, hidden);
                            if (kept) Isa::store(kept + i * F + first + column, before);
                            Isa::store(active + i * kHidden + column, gelu<Isa>(before));
                          });
    const bool last = first + count == hidden;
    for (int panel = 0; panel < fc2.count(); ++panel)
      multiply_panel<Isa>(rows, units<Isa>(count), rows_of<Isa>(active, kHidden), fc2.panel(panel, first), wide,
                          panel * wide, fc2.columns, [&](int i, int j, Vector value) {
                            float* sum = sums + static_cast<long>(i) * length + j;
                            if (first) value = value + Isa::load(sum);
                            if (last) use(i, j, value);
                            else Isa::store(sum, value);
                          });
  }
}

}  // namespace passl_xcit
