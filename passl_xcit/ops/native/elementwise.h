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

// x Phi(x), Phi the normal distribution: max(x, 0) - t (1 - Phi(t)) with t = |x|, and 1 - Phi as a polynomial (least
// maximal error of t (1 - Phi), by Lawson's iteration) up to 5.2, from where the product is below 6e-7. The absolute
// error is below 6e-7, or below 2e-5 where the result is rounded to bfloat16.
template <class Isa>
typename Isa::Vector gelu(typename Isa::Vector x) {
  using Vector = typename Isa::Vector;
  constexpr float fine[] = {
      -0.003496029879897833f, 0.005579348653554916f, 0.015093794092535973f,  -0.03539321571588516f,
      -0.011611641384661198f, 0.09100951254367828f,  -0.06630230695009232f,  -0.08327388763427734f,
      0.1904352605342865f,    -0.1048148050904274f,  -0.10962901264429092f,  0.25286537408828735f,
      -0.22917333245277405f,  0.11936575174331665f,  -0.035315923392772675f, 0.004661197774112225f};
  constexpr float coarse[] = {0.02635854482650757f,  -0.05590961501002312f, -0.03220975026488304f,
                              0.17380410432815552f,  -0.12379678338766098f, -0.10257553309202194f,
                              0.2560013234615326f,   -0.23024697601795197f, 0.1191837415099144f,
                              -0.03527340665459633f, 0.004662805702537298f};
  const Vector t = Isa::min(Isa::fill(5.2f), Isa::abs(x));
  const Vector u = Isa::fma(t, Isa::fill(2 / 5.2f), Isa::fill(-1));
  Vector tail;
  if constexpr (Isa::per_unit == 2) tail = polynomial<Isa>(coarse, u);
  else tail = polynomial<Isa>(fine, u);
  return Isa::max(Isa::fill(0), x) - t * tail;
}

// Mean and 1 / sqrt(variance + 1e-6) of a row.
template <class Isa>
void moments(const float* x, int channels, float* to) {
  using Vector = typename Isa::Vector;
  Vector sum = Isa::fill(0), squares = Isa::fill(0);
  for (int c = 0; c < channels; c += Isa::lanes) sum = sum + Isa::load(x + c, channels - c);
  const float mean = Isa::sum(sum) / channels;
  for (int c = 0; c < channels; c += Isa::lanes) {
    const Vector centred = Isa::keep(Isa::load(x + c, channels - c) - Isa::fill(mean), channels - c);
    squares = Isa::fma(centred, centred, squares);
  }
  to[0] = mean;
  to[1] = 1 / __builtin_sqrtf(Isa::sum(squares) / channels + 1e-6f);
}

// A row of C floats, normalised, times weight plus bias, into a row of `length` elements, zero beyond C. May be done in
// place.
template <class Isa>
void layer_norm(const float* x, const float* weight, const float* bias, int channels, int length,
                typename Isa::Element* y) {
  using Vector = typename Isa::Vector;
  float of_row[2];
  moments<Isa>(x, channels, of_row);
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
// are scratch.
template <class Isa, class Use>
void mlp_rows(int rows, const typename Isa::Element* x, long stride, const Panels<Isa>& fc1, const float* fc1_bias,
              const Panels<Isa>& fc2, typename Isa::Element* active, float* sums, const Use& use) {
  using Vector = typename Isa::Vector;
  constexpr int wide = panel_columns<Isa>;
  const int hidden = fc1.columns, length = padded<Isa>(fc2.columns);
  for (int first = 0; first < hidden; first += kHidden) {
    const int count = hidden - first < kHidden ? hidden - first : kHidden;
    for (int j = 0; j < count; j += wide)
      multiply_panel<Isa>(rows, units<Isa>(fc1.depth), rows_of<Isa>(x, stride), fc1.panel((first + j) / wide), wide, j,
                          count, [&](int i, int column, Vector value) {
                            const Vector bias = optional<Isa>(fc1_bias, first + column, hidden);
                            Isa::store(active + i * kHidden + column, gelu<Isa>(value + bias));
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
