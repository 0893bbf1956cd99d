// What backward passes share: products that are added up, LayerNorm's gradient. Sums are floats.
#pragma once

#include "elementwise.h"

namespace passl_xcit {

// to [rows, stride] += a^T b, for units of a [R, rows] and of b [R, columns].
template <class Isa>
void add_product(int rows, int R, RowUnits a, RowUnits b, int columns, float* to, long stride) {
  constexpr int wide = panel_columns<Isa>;
  for (int column = 0; column < columns; column += wide) {
    if (columns - column >= wide) {
      add_panel<Isa>(rows, units<Isa>(R), a.transposed(), b.data + column, b.stride, {to + column, stride});
      continue;
    }
    multiply_panel<Isa>(rows, units<Isa>(R), a.transposed(), b.data + column, b.stride, column, columns,
                        [&](int i, int j, typename Isa::Vector value) {
                          float* sum = to + i * stride + j;
                          Isa::store(sum, Isa::load(sum) + value);
                        });
  }
}

// The same for rows of floats, where a unit is one.
template <class Isa>
void add_product(int rows, int R, const float* a, long a_stride, const float* b, long b_stride, int columns, float* to,
                 long stride) {
  add_product<Isa>(rows, R, RowUnits{a, a_stride}, RowUnits{b, b_stride}, columns, to, stride);
}

// to [columns] += the sum of R rows of floats or elements.
template <class Isa, class Element>
void add_rows(int R, const Element* rows, long stride, int columns, float* to) {
  for (int c = 0; c < columns; c += Isa::lanes) {
    typename Isa::Vector sum = Isa::load(to + c);
    for (int i = 0; i < R; ++i) sum = sum + Isa::load(rows + i * stride + c);
    Isa::store(to + c, sum);
  }
}

// Adds to `dx`, a row, the gradient of LayerNorm's input x by dy; to `by_weight` and `by_bias` those of its parameters.
template <class Isa>
void norm_back(const float* x, float mean, float scale, const float* dy, const float* weight, int channels,
               float* by_weight, float* by_bias, float* dx) {
  using Vector = typename Isa::Vector;
  const Vector m = Isa::fill(mean), s = Isa::fill(scale);
  Vector sum = Isa::fill(0), product = Isa::fill(0);
  for (int c = 0; c < channels; c += Isa::lanes) {
    const int left = channels - c;
    const Vector normed = (Isa::load(x + c, left) - m) * s, dy_c = Isa::load(dy + c, left);
    const Vector by_normed = dy_c * Isa::load(weight + c, left);
    sum = sum + by_normed;
    product = Isa::fma(by_normed, normed, product);
    Isa::store(by_weight + c, Isa::fma(dy_c, normed, Isa::load(by_weight + c)), left);
    Isa::store(by_bias + c, Isa::load(by_bias + c) + dy_c, left);
  }
  const Vector a = Isa::fill(Isa::sum(sum) / channels), b = Isa::fill(Isa::sum(product) / channels);
  for (int c = 0; c < channels; c += Isa::lanes) {
    const int left = channels - c;
    const Vector normed = (Isa::load(x + c, left) - m) * s;
    const Vector by_normed = Isa::load(dy + c, left) * Isa::load(weight + c, left);
    Isa::store(dx + c, Isa::fma(s, by_normed - a - normed * b, Isa::load(dx + c, left)), left);
  }
}

template <class Isa>
float dot(const float* a, const float* b, int count) {
  typename Isa::Vector sum = Isa::fill(0);
  for (int c = 0; c < count; c += Isa::lanes)
    sum = Isa::fma(Isa::load(a + c, count - c), Isa::load(b + c, count - c), sum);
  return Isa::sum(sum);
}

// Slots, of which there are as many as threads, take their share of the images each and add up gradients of their own.
template <class Isa, class Task>
void each_image_of(int slot, int slots, int batch, const Task& task) {
  const int last = static_cast<long>(slot + 1) * batch / slots;
  for (int image = static_cast<long>(slot) * batch / slots; image < last; ++image) task(image);
}

// Adds the slots' floats, in the order of the slots, to those of the first one.
template <class Isa>
void add_slots(float* const* of_slot, int slots, long count, const Team& team) {
  constexpr long piece = 1 << 14;
  team.each((count + piece - 1) / piece, [&](int index, int) {
    const long last = (index + 1) * piece < count ? (index + 1) * piece : count;
    for (int slot = 1; slot < slots; ++slot)
      for (long i = index * piece; i < last; ++i) of_slot[0][i] += of_slot[slot][i];
  });
}

// Copies `count` floats; the address behind the last one written.
template <class Isa>
float* copy(const float* from, int count, float* to) {
  for (int i = 0; i < count; i += Isa::lanes) Isa::store(to + i, Isa::load(from + i, count - i), count - i);
  return to + count;
}

}  // namespace passl_xcit
