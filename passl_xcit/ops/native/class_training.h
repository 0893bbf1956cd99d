// The class-attention block in training: the forward pass, which keeps its values, and the backward pass.
//
// Letters as in operators.h, class_attention.h and class_attention_backward.h.
#pragma once

#include "class_attention_backward.h"
#include "class_block.h"

namespace passl_xcit {

template <class Isa>
struct ClassTrainingForward : ClassBlockForward<Isa> {
  using Base = ClassBlockForward<Isa>;

  size_t saved_bytes;

  explicit ClassTrainingForward(const ClassTraining& of) : Base(of.block) {
    Workspace saved(of.saved);
    this->take_values(saved);
    saved_bytes = saved.bytes();
  }

  size_t run(void* memory, const Team& team) {
    Workspace workspace(memory);
    this->take_weights(workspace);
    if (!memory) return workspace.bytes();
    this->pack_weights(team);
    this->compute(team);
    return workspace.bytes();
  }
};

template <class Isa>
struct ClassTrainingBackward : ClassAttentionBackward<Isa, ClassTrainingForward<Isa>> {
  using Base = ClassAttentionBackward<Isa, ClassTrainingForward<Isa>>;
  using Vector = typename Isa::Vector;
  using Base::batch, Base::blocks, Base::by_projected, Base::channels, Base::heads, Base::hidden, Base::lanes, Base::op,
      Base::P, Base::tokens, Base::u, Base::wide;
  using typename Base::Block;

  const ClassGradients& out;
  const int F;                                // hidden, in whole panels
  Panels<Isa> fc1_back, fc2_back;             // transposed
  float *dy, *scaled, *by_cls, *by_attended;  // gradients of the class tokens, each [B, P]
  float* by_hidden;                           // [B, F]
  float* scratch;                             // of each thread
  // Of each block of tokens, and then of each class token.
  struct Sums {
    float *norm1_weight, *norm1_bias, *norm2_weight, *norm2_bias, *gamma1;  // [P]
  };
  float* rows;  // [B (blocks + 1), 5, P], of Sums

  explicit ClassTrainingBackward(const ClassBackward& backward)
      : Base(backward.forward), out(backward.gradients), F(padded<Isa>(backward.forward.block.hidden)) {}

  size_t run(void* memory, const Team& team) {
    Workspace workspace(memory);
    take(workspace, team.threads);
    if (!memory) return workspace.bytes();
    pack_back(team);
    __builtin_memset(rows, 0, rows_size() * sizeof(float));
    for (int image = 0; image < batch; ++image) read_gradient(image);
    team.each(fc2_back.count(), [&](int panel, int) { hidden_back(panel); });
    team.each(fc1_back.count(), [&](int panel, int) { cls_back(panel); });
    for (int image = 0; image < batch; ++image) norm2_back(image);
    this->attention_back(team);
    team.each(batch * blocks, [&](int item, int thread) { tokens_back(item, scratch + thread * scratch_size()); });
    finish_weights(team);
    finish_rows();
    return workspace.bytes();
  }

 private:
  void take(Workspace& workspace, int threads) {
    this->take_back(workspace);
    for (Panels<Isa>* wider : {&this->fc1, &fc2_back}) *wider = take_panels<Isa>(workspace, channels, hidden);
    fc1_back = take_panels<Isa>(workspace, hidden, channels);
    const size_t images = batch;
    for (float** row : {&dy, &scaled, &by_cls, &by_attended}) *row = workspace.floats(images * P);
    by_hidden = workspace.floats(images * F);
    rows = workspace.floats(rows_size());
    scratch = workspace.floats(threads * scratch_size());
  }

  size_t rows_size() const { return static_cast<size_t>(batch) * (blocks + 1) * 5 * P; }
  size_t scratch_size() const { return static_cast<size_t>(kBlockRows) * (2 * heads + P) + 2 * P + wide; }

  Sums sums_of(int item) const {
    float* of = rows + static_cast<long>(item) * 5 * P;
    return {of, of + P, of + 2 * P, of + 3 * P, of + 4 * P};
  }

  void pack_back(const Team& team) const {
    pack_all<Isa>({{this->fc1, op.fc1_weight, hidden}}, team);
    this->pack_attention_back(team);
    pack_all_transposed<Isa>({{fc1_back, op.fc1_weight, hidden}, {fc2_back, op.fc2_weight, channels}}, team);
  }

  // Of the class token of an image.
  void read_gradient(int image) const {
    const float* from = out.dy + static_cast<long>(image) * tokens * channels;
    for (int c = 0; c < P; c += lanes) {
      const Vector gradient = optional<Isa>(from, c, channels);
      Isa::store(dy + static_cast<long>(image) * P + c, gradient);
      Isa::store(scaled + static_cast<long>(image) * P + c, gradient * optional<Isa>(op.gamma2, c, channels));
    }
  }

  // Some hidden channels of the MLP, before GELU.
  void hidden_back(int panel) const {
    const auto store = [&](int image, int j, Vector value) {
      Isa::store(by_hidden + static_cast<long>(image) * F + j, value);
    };
    multiply_panel<Isa>(batch, channels, {this->cls, P, 1}, this->fc1.panel(panel), wide, panel * wide, hidden,
                        [&](int image, int j, Vector value) {
                          Vector active, slope;
                          gelu_and_slope<Isa>(value + optional<Isa>(op.fc1_bias, j, hidden), active, slope);
                          store(image, j, slope);
                        });
    multiply_panel<Isa>(batch, channels, {scaled, P, 1}, fc2_back.panel(panel), wide, panel * wide, hidden,
                        [&](int image, int j, Vector value) {
                          store(image, j, value * Isa::load(by_hidden + static_cast<long>(image) * F + j));
                        });
  }

  void cls_back(int panel) const {
    multiply_panel<Isa>(batch, hidden, {by_hidden, F, 1}, fc1_back.panel(panel), wide, panel * wide, channels,
                        [&](int image, int j, Vector value) {
                          const long at = static_cast<long>(image) * P + j;
                          Isa::store(by_cls + at, value + Isa::load(dy + at));
                        });
  }

  // LayerNorm 2 of a class token, and what its attention is scaled by.
  void norm2_back(int image) const {
    const long row = static_cast<long>(image) * P;
    const Sums to = sums_of(batch * blocks + image);
    float of_row[2];
    moments<Isa>(this->attended + row, channels, of_row);
    __builtin_memset(by_attended + row, 0, P * sizeof(float));
    norm_back<Isa>(this->attended + row, of_row[0], of_row[1], by_cls + row, op.norm2_weight, channels, to.norm2_weight,
                   to.norm2_bias, by_attended + row);
    for (int c = 0; c < channels; c += lanes) {
      const Vector gradient = Isa::load(by_attended + row + c);
      Isa::store(to.gamma1 + c, gradient * Isa::load(this->projected + row + c));
      Isa::store(by_projected + row + c, gradient * optional<Isa>(op.gamma1, c, channels));
    }
  }

  // A block of tokens: du, then LayerNorm 1 and dx.
  void tokens_back(int item, float* memory) const {
    const Block block = this->block_of(item);
    const int count = block.last - block.first;
    const long first = static_cast<long>(block.image) * tokens + block.first;
    const Sums to = sums_of(item);
    float *du = memory, *row = du + kBlockRows * P, *weights = row + 2 * P;
    this->tokens_gradient(block, du, weights);
    for (int i = 0; i < count; ++i) {
      const float* x = op.x + (first + i) * channels;
      float* dx = out.dx + (first + i) * channels;
      if (block.first + i) handed_on_back(first + i, row, du + i * P, dx, to);
      else class_token_back(block.image, dx);
      float of_row[2];
      moments<Isa>(x, channels, of_row);
      norm_back<Isa>(x, of_row[0], of_row[1], du + i * P, op.norm1_weight, channels, to.norm1_weight, to.norm1_bias,
                     dx);
    }
  }

  // dx without LayerNorm 1.
  void class_token_back(int image, float* dx) const {
    for (int c = 0; c < channels; c += lanes)
      Isa::store(dx + c, Isa::load(by_attended + static_cast<long>(image) * P + c), channels - c);
  }

  // The same for another token, of 2 w or 2 LN2 w with w = x + g1 u; `rows` are two of scratch.
  void handed_on_back(long token, float* rows, float* du, float* dx, const Sums& to) const {
    const float *from = out.dy + token * channels, *x = op.x + token * channels, *normed = u + token * P;
    float *doubled = rows, *w = rows + P;
    for (int c = 0; c < channels; c += lanes) {
      const Vector gradient = optional<Isa>(from, c, channels), gamma = optional<Isa>(op.gamma1, c, channels);
      Isa::store(doubled + c, gradient + gradient);
      Isa::store(w + c, Isa::fma(gamma, Isa::load(normed + c), optional<Isa>(x, c, channels)));
      Isa::store(dx + c, op.tokens_norm ? Isa::fill(0) : gradient + gradient, channels - c);
    }
    if (op.tokens_norm) {
      float of_row[2];
      moments<Isa>(w, channels, of_row);
      norm_back<Isa>(w, of_row[0], of_row[1], doubled, op.norm2_weight, channels, to.norm2_weight, to.norm2_bias, dx);
    }
    for (int c = 0; c < channels; c += lanes) {
      const Vector by_w = optional<Isa>(dx, c, channels);
      Isa::store(du + c, Isa::fma(optional<Isa>(op.gamma1, c, channels), by_w, Isa::load(du + c)));
      Isa::store(to.gamma1 + c, Isa::fma(by_w, Isa::load(normed + c), Isa::load(to.gamma1 + c)));
    }
  }

  void finish_weights(const Team& team) const {
    const int64_t C = channels;
    float *weight = out.qkv_weight, *bias = out.qkv_bias;
    ClassQueryGradients to{3 * C, weight, weight + C, weight + 2 * C, out.proj_weight, bias};
    to.v_bias = bias ? bias + 2 * C : nullptr, to.proj_bias = out.proj_bias;
    this->query_weights(to, team);
    if (bias) __builtin_memset(bias + C, 0, C * sizeof(float));
    team.each(panels_of<Isa>(hidden), [&](int panel, int) {
      this->product(panel, channels, this->cls, P, by_hidden, F, hidden, out.fc1_weight, hidden);
    });
    team.each(panels_of<Isa>(channels), [&](int panel, int) {
      this->product(panel, hidden, this->active, F, scaled, P, channels, out.fc2_weight, channels);
    });
  }

  void finish_rows() const {
    this->sum_rows_of(batch, by_hidden, F, nullptr, hidden, out.fc1_bias);
    this->sum_rows_of(batch, scaled, P, nullptr, channels, out.fc2_bias);
    this->sum_rows_of(batch, dy, P, this->update, channels, out.gamma2);
    float* const to[] = {out.norm1_weight, out.norm1_bias, out.norm2_weight, out.norm2_bias, out.gamma1};
    for (int i = 0; i < 5; ++i)
      this->sum_rows_of(batch * (blocks + 1), rows + static_cast<long>(i) * P, 5L * P, nullptr, channels, to[i]);
  }
};

}  // namespace passl_xcit
