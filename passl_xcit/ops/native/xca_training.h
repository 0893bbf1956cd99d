// The XCA block in training: the forward pass, which saves what the backward pass needs, and what both share.
//
// Letters as in operators.h and xca_block.h.
#pragma once

#include "xca_block.h"

namespace passl_xcit {

// What the forward pass saves.
template <class Isa>
struct XcaSaved {
  typename Isa::Element* qk;      // [B, N, Q]
  typename Isa::Element* v;       // [B, N, P]
  float* norms;                   // [B, blocks, 2P], squares of the columns of q and k
  float* cosines;                 // [B, h, d, d], normalised Gram matrices
  float* attention;               // [B, h, d, d]
  float* x1;                      // [B, N, P], after the attention
  float* moments;                 // [B, N, 2], mean and 1 / deviation of the rows of x1
  float* convolved;               // [B, N, P], the first convolution of LPI with its bias
  float* statistics;              // [2, P], mean and 1 / deviation of BatchNorm's input
  float* x2;                      // [B, N, P], after LPI
  typename Isa::Element* hidden;  // [B, N, padded F], what goes into the MLP's GELU
};

template <class Isa>
struct XcaBlockTraining : XcaBlockForward<Isa> {
  using Base = XcaBlockForward<Isa>;
  using Vector = typename Isa::Vector;
  using Element = typename Isa::Element;
  using Base::block_tokens, Base::blocks, Base::channels, Base::d, Base::heads, Base::hidden, Base::lanes, Base::op,
      Base::P, Base::Q, Base::tokens, Base::wide;
  using typename Base::Images;

  const XcaTraining& training;
  const int batch;
  XcaSaved<Isa> saved;
  size_t saved_bytes;

  explicit XcaBlockTraining(const XcaTraining& of) : Base(of.block), training(of), batch(of.block.batch) {
    Workspace memory(of.saved);
    take_saved(memory);
    saved_bytes = memory.bytes();
  }

  size_t run(void* memory, const Team& team) {
    Workspace workspace(memory);
    this->take_weights(workspace);
    Images to{};
    to.gram = workspace.floats(static_cast<size_t>(batch) * blocks * channels * d);
    to.mixed = workspace.floats(batch * Panels<Isa>::size(channels, channels));
    float* sums = workspace.floats(static_cast<size_t>(batch) * 2 * P);
    to.scratch = workspace.floats(team.threads * this->scratch_size());
    if (!memory) return workspace.bytes();
    to.v = saved.v, to.qk = saved.qk, to.norms = saved.norms, to.cosines = saved.cosines;
    to.x1 = saved.x1, to.moments = saved.moments;
    this->pack_weights(team);
    const auto scratch = [&](int thread) { return to.scratch + thread * this->scratch_size(); };
    const int panels = panels_of<Isa>(channels);
    team.each(batch * blocks, [&](int item, int thread) { this->project_in(op.x, item, to, scratch(thread)); });
    team.each(batch * heads, [&](int item, int thread) {
      this->attend(item, to, scratch(thread));
      __builtin_memcpy(saved.attention + static_cast<long>(item) * d * d, scratch(thread), d * d * sizeof(float));
    });
    team.each(batch * blocks, [&](int item, int) { this->project_out(op.x, item, to, training.keep1); });
    team.each(batch * panels, [&](int item, int thread) { first_convolution(item, sums, scratch(thread)); });
    for (int c = 0; c < channels; ++c) statistics_of(c, sums);
    team.each(batch * panels, [&](int item, int thread) { second_convolution(item, scratch(thread)); });
    team.each(batch * blocks, [&](int item, int thread) {
      this->mlp(item, saved.x2, P, op.y, scratch(thread), training.keep2, saved.hidden);
    });
    return workspace.bytes();
  }

 protected:
  void take_saved(Workspace& memory) {
    const size_t rows = static_cast<size_t>(batch) * tokens, grams = static_cast<size_t>(batch) * channels * d;
    saved.qk = reinterpret_cast<Element*>(memory.floats(rows * Q / Isa::per_unit));
    saved.v = reinterpret_cast<Element*>(memory.floats(rows * P / Isa::per_unit));
    saved.norms = memory.floats(static_cast<size_t>(batch) * blocks * 2 * P);
    saved.cosines = memory.floats(grams), saved.attention = memory.floats(grams);
    saved.x1 = memory.floats(rows * P), saved.moments = memory.floats(rows * 2);
    saved.convolved = memory.floats(rows * P), saved.statistics = memory.floats(2 * P);
    saved.x2 = memory.floats(rows * P);
    saved.hidden = reinterpret_cast<Element*>(memory.floats(rows * padded<Isa>(hidden) / Isa::per_unit));
  }

  // Floats before the first of an image's, in rows of P.
  long start_of(int image) const { return static_cast<long>(image) * tokens * P; }

  // LPI's first convolution for an image and a panel of channels; the mean of GELU of it, and the squares around that.
  void first_convolution(int item, float* sums, float* scratch) const {
    const int panels = panels_of<Isa>(channels), image = item / panels, first = item % panels * wide;
    this->normalise_grid(saved.x1 + start_of(image) + first, saved.moments + static_cast<long>(image) * tokens * 2,
                         first, scratch);
    for (int c = first; c < first + wide; c += lanes) {
      const Vector bias = optional<Isa>(op.conv1_bias, c, channels);
      float* to = saved.convolved + start_of(image) + c;
      Vector sum = Isa::fill(0), squares = Isa::fill(0);
      this->convolve(scratch + (c - first), this->conv1 + c, [&](int row, int column, Vector value) {
        Isa::store(to + (row * op.width + column) * P, value + bias);
        sum = sum + gelu<Isa>(value + bias);
      });
      const Vector mean = sum * Isa::fill(1.0f / tokens);
      for (long token = 0; token < tokens; ++token) {
        const Vector centred = gelu<Isa>(Isa::load(to + token * P)) - mean;
        squares = Isa::fma(centred, centred, squares);
      }
      Isa::store(sums + static_cast<long>(image) * 2 * P + c, mean);
      Isa::store(sums + static_cast<long>(image) * 2 * P + P + c, squares);
    }
  }

  // Of channel c over the batch, from those of its images.
  void statistics_of(int c, const float* sums) const {
    double mean = 0, squares = 0;
    for (int image = 0; image < batch; ++image) mean += sums[static_cast<long>(image) * 2 * P + c];
    mean /= batch;
    for (int image = 0; image < batch; ++image) {
      const float* of = sums + static_cast<long>(image) * 2 * P + c;
      squares += of[P] + (of[0] - mean) * (of[0] - mean) * tokens;
    }
    const double variance = squares / (static_cast<double>(batch) * tokens);
    training.mean[c] = mean, training.variance[c] = variance;
    saved.statistics[c] = mean;
    saved.statistics[P + c] = 1 / __builtin_sqrt(variance + 1e-5);
  }

  // BatchNorm as a factor and a sum, for channels c on.
  void batch_norm(int c, Vector& scale, Vector& shift) const {
    scale = optional<Isa>(op.bn_weight, c, channels) * Isa::load(saved.statistics + P + c, channels - c);
    shift = optional<Isa>(op.bn_bias, c, channels) - Isa::load(saved.statistics + c, channels - c) * scale;
  }

  // x2 = x1 + g3 LPI, from the first convolution on.
  void second_convolution(int item, float* grid) const {
    const int panels = panels_of<Isa>(channels), image = item / panels, first = item % panels * wide;
    normalised_activation(image, first, grid);
    for (int c = first; c < first + wide; c += lanes) {
      const Vector gamma = optional<Isa>(op.gamma3, c, channels) * factor_of<Isa>(training.keep3, image);
      const Vector bias = optional<Isa>(op.conv2_bias, c, channels);
      const long start = start_of(image) + c;
      this->convolve(grid + (c - first), this->conv2 + c, [&](int row, int column, Vector value) {
        const long at = start + (row * op.width + column) * P;
        Isa::store(saved.x2 + at, Isa::fma(gamma, value + bias, Isa::load(saved.x1 + at)));
      });
    }
  }

  // The input of the second convolution, as a grid.
  void normalised_activation(int image, int first, float* grid) const {
    this->clear_edges(grid);
    for (int c = first; c < first + wide; c += lanes) {
      Vector scale, shift;
      batch_norm(c, scale, shift);
      const float* from = saved.convolved + start_of(image) + c;
      for (int row = 0; row < op.height; ++row)
        for (int column = 0; column < op.width; ++column) {
          const Vector active = gelu<Isa>(Isa::load(from + (row * op.width + column) * P));
          Isa::store(grid + this->place(row, column) + (c - first), Isa::fma(active, scale, shift));
        }
    }
  }
};

}  // namespace passl_xcit
