// The backward pass of a residual MLP, x + g keep MLP(LN x), for a block of rows: that of the XCA block, and without g
// that of the vision transformer's.
//
// Letters as in operators.h, and P = C, padded F = F in whole panels; R rows. With r the gradient by the update's sum,
// D = active^T r and s = sum of r are the gradients of fc2's weight and bias but for the factor g.
#pragma once

#include "gradients.h"

namespace passl_xcit {

constexpr int kPart = 256;            // hidden channels whose gradients are computed at a time
constexpr int kPartRow = kPart + 16;  // no power of two: rows would share a part of the cache

// Gradients as they are added up.
struct MlpSums {
  float* norm;      // [2, P], weight and bias
  float* fc1;       // [C, padded F]
  float* fc1_bias;  // [padded F]
  float* fc2;       // [F, P], D
  float* fc2_rows;  // [P], s
};

template <class Isa>
MlpSums take_mlp_sums(Workspace& workspace, int channels, int hidden) {
  const size_t P = padded<Isa>(channels), F = padded<Isa>(hidden);
  MlpSums to;
  to.norm = workspace.floats(2 * P);
  to.fc1 = workspace.floats(channels * F), to.fc1_bias = workspace.floats(F);
  to.fc2 = workspace.floats(hidden * P), to.fc2_rows = workspace.floats(P);
  return to;
}

template <class Isa>
struct MlpBackward {
  using Vector = typename Isa::Vector;
  using Element = typename Isa::Element;
  static constexpr int lanes = Isa::lanes;
  static constexpr int wide = panel_columns<Isa>;

  int block_rows;  // rows of a block, at most
  const float *norm_weight, *norm_bias;
  float epsilon;
  Panels<Isa> fc1_back, fc2_back;  // transposed
  const float* gamma;              // [C], or null

  size_t scratch_floats() const {
    const size_t rows = block_rows, pairs = 2 * pairs_size<Isa>(block_rows, P()) + pairs_size<Isa>(block_rows, kPart);
    return rows * (4 * P() + 2 * kPartRow) + pairs;
  }

  // From x [R, P], what went into GELU [R, padded F] and dy [R, C] to dx [R, P].
  void rows_back(int R, const float* x, const Element* before, const float* dy, Vector keep, float* dx,
                 const MlpSums& to, float* memory) const {
    const long size = static_cast<long>(block_rows) * P();
    float* dn = memory;  // [R, P]
    Element *normed = reinterpret_cast<Element*>(dn + size), *r = normed + size, *scaled = r + size;  // each [R, P]
    for (long i = 0; i < R; ++i) {
      layer_norm<Isa>(x + i * P(), norm_weight, norm_bias, channels(), P(), normed + i * P(), epsilon);
      for (int c = 0; c < P(); c += lanes) {
        const Vector gradient = optional<Isa>(dy + i * channels(), c, channels());
        Isa::store(dx + i * P() + c, gradient);
        Isa::store(r + i * P() + c, gradient * keep);
        if (gamma) Isa::store(scaled + i * P() + c, gradient * keep * optional<Isa>(gamma, c, channels()));
      }
    }
    add_rows<Isa>(R, r, P(), P(), to.fc2_rows);
    layers_back(R, normed, before, r, gamma ? scaled : r, dn, to, reinterpret_cast<float*>(scaled + size));
    for (long i = 0; i < R; ++i) {
      float of_row[2];
      moments<Isa>(x + i * P(), channels(), of_row, epsilon);
      norm_back<Isa>(x + i * P(), of_row[0], of_row[1], dn + i * P(), norm_weight, channels(), to.norm, to.norm + P(),
                     dx + i * P());
    }
  }

 private:
  int channels() const { return fc1_back.columns; }
  int hidden() const { return fc1_back.depth; }
  int P() const { return padded<Isa>(channels()); }
  long F() const { return padded<Isa>(hidden()); }

  // The gradients of both layers, and dn, by the LayerNorm's output.
  void layers_back(int R, const Element* normed, const Element* before, const Element* r, const Element* scaled,
                   float* dn, const MlpSums& to, float* memory) const {
    const long part_size = static_cast<long>(block_rows) * kPartRow;
    Element *active = reinterpret_cast<Element*>(memory), *slope = active + part_size;  // each [R, kPartRow]
    float* pairs = reinterpret_cast<float*>(slope + part_size);
    const RowUnits r_units = pair_rows<Isa>(R, r, P(), channels(), pairs);
    pairs += pairs_size<Isa>(block_rows, P());
    const RowUnits normed_units = pair_rows<Isa>(R, normed, P(), channels(), pairs);
    pairs += pairs_size<Isa>(block_rows, P());
    for (int first = 0; first < hidden(); first += kPart) {
      const int count = hidden() - first < kPart ? hidden() - first : kPart;
      activate(R, count, before + first, active, slope);
      add_product<Isa>(count, R, pair_rows<Isa>(R, active, kPartRow, count, pairs), r_units, channels(),
                       to.fc2 + static_cast<long>(first) * P(), P());
      hidden_back(R, first, count, scaled, slope);
      const RowUnits slope_units = pair_rows<Isa>(R, slope, kPartRow, count, pairs);
      add_product<Isa>(channels(), R, normed_units, slope_units, count, to.fc1 + first, F());
      add_rows<Isa>(R, slope, kPartRow, count, to.fc1_bias + first);
      add_normed(R, first, count, slope, dn);
    }
  }

  // GELU and its slope of `count` hidden channels.
  void activate(int R, int count, const Element* before, Element* active, Element* slope) const {
    for (long i = 0; i < R; ++i)
      for (int j = 0; j < count; j += lanes) {
        Vector a, s;
        gelu_and_slope<Isa>(Isa::load(before + i * F() + j), a, s);
        Isa::store(active + i * kPartRow + j, a);
        Isa::store(slope + i * kPartRow + j, s);
      }
  }

  // The slopes become gradients of the hidden channels before GELU.
  void hidden_back(int R, int first, int count, const Element* scaled, Element* slope) const {
    for (int j = 0; j < count; j += wide)
      multiply_panel<Isa>(R, units<Isa>(channels()), rows_of<Isa>(scaled, P()), fc2_back.panel((first + j) / wide),
                          wide, j, count, [&](int i, int column, Vector value) {
                            Element* gradient = slope + i * kPartRow + column;
                            Isa::store(gradient, value * Isa::load(gradient));
                          });
  }

  // What these hidden channels add to dn.
  void add_normed(int R, int first, int count, const Element* by_hidden, float* dn) const {
    for (int panel = 0; panel < fc1_back.count(); ++panel)
      multiply_panel<Isa>(R, units<Isa>(count), rows_of<Isa>(by_hidden, kPartRow), fc1_back.panel(panel, first), wide,
                          panel * wide, channels(), [&](int i, int j, Vector value) {
                            float* sum = dn + static_cast<long>(i) * P() + j;
                            Isa::store(sum, first ? value + Isa::load(sum) : value);
                          });
  }
};

}  // namespace passl_xcit
