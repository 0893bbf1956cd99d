// CrossViT's fusion in training: the forward pass, which keeps its values, and the backward pass.
//
// Letters as in operators.h, class_attention.h and class_attention_backward.h.
#pragma once

#include "class_attention_backward.h"
#include "cross_attention.h"

namespace passl_xcit {

template <class Isa>
struct CrossTrainingForward : CrossAttentionForward<Isa> {
  using Base = CrossAttentionForward<Isa>;

  const float* keep;
  size_t saved_bytes;

  explicit CrossTrainingForward(const CrossTraining& of) : Base(of.block), keep(of.keep) {
    Workspace saved(of.saved);
    this->take_values(saved);
    saved_bytes = saved.bytes();
  }

  size_t run(void* memory, const Team& team) {
    Workspace workspace(memory);
    this->take_weights(workspace);
    if (!memory) return workspace.bytes();
    this->pack_weights(team);
    this->compute(keep, team);
    return workspace.bytes();
  }
};

template <class Isa>
struct CrossTrainingBackward : ClassAttentionBackward<Isa, CrossTrainingForward<Isa>> {
  using Base = ClassAttentionBackward<Isa, CrossTrainingForward<Isa>>;
  using Vector = typename Isa::Vector;
  using Base::batch, Base::blocks, Base::by_projected, Base::channels, Base::heads, Base::keep, Base::lanes, Base::of,
      Base::P, Base::tokens;

  const CrossGradients& out;
  float* rows;     // [B blocks, 2, P], gradients of LayerNorm's weight and bias by each block of tokens
  float* scratch;  // of each thread

  explicit CrossTrainingBackward(const CrossBackward& backward) : Base(backward.forward), out(backward.gradients) {}

  size_t run(void* memory, const Team& team) {
    Workspace workspace(memory);
    const size_t rows_size = static_cast<size_t>(batch) * blocks * 2 * P;
    this->take_back(workspace);
    rows = workspace.floats(rows_size);
    scratch = workspace.floats(team.threads * scratch_size());
    if (!memory) return workspace.bytes();
    this->pack_attention_back(team);
    __builtin_memset(rows, 0, rows_size * sizeof(float));
    for (int image = 0; image < batch; ++image) read_gradient(image);
    this->attention_back(team);
    team.each(batch * blocks, [&](int item, int thread) { tokens_back(item, scratch + thread * scratch_size()); });
    this->query_weights({channels, out.wq_weight, out.wk_weight, out.wv_weight, out.proj_weight, out.wq_bias,
                         out.wv_bias, out.proj_bias},
                        team);
    this->sum_rows_of(batch * blocks, rows, 2 * P, nullptr, channels, out.norm_weight);
    this->sum_rows_of(batch * blocks, rows + P, 2 * P, nullptr, channels, out.norm_bias);
    return workspace.bytes();
  }

 private:
  size_t scratch_size() const { return static_cast<size_t>(kBlockRows) * (2 * heads + P) + this->wide; }

  void read_gradient(int image) const {
    const Vector factor = factor_of<Isa>(keep, image);
    for (int c = 0; c < P; c += lanes)
      Isa::store(by_projected + static_cast<long>(image) * P + c,
                 factor * optional<Isa>(out.dy + static_cast<long>(image) * channels, c, channels));
  }

  // A block of tokens: du, then LayerNorm and dx.
  void tokens_back(int item, float* du) const {
    const typename Base::Block block = this->block_of(item);
    float *sums = rows + static_cast<long>(item) * 2 * P, *weights = du + kBlockRows * P;
    this->tokens_gradient(block, du, weights);
    for (int token = block.first; token < block.last; ++token) {
      const long row = (static_cast<long>(block.image) * tokens + token) * channels;
      const float* residual = token ? nullptr : out.dy + static_cast<long>(block.image) * channels;
      float of_row[2];
      moments<Isa>(of.x + row, channels, of_row, of.epsilon);
      for (int c = 0; c < channels; c += lanes)
        Isa::store(out.dx + row + c, optional<Isa>(residual, c, channels), channels - c);
      norm_back<Isa>(of.x + row, of_row[0], of_row[1], du + static_cast<long>(token - block.first) * P, of.norm_weight,
                     channels, sums, sums + P, out.dx + row);
    }
  }
};

}  // namespace passl_xcit
