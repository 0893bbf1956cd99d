// The class-attention block of CaiT as XCiT has it: the class token attends to all tokens and gets an MLP; the others
// get g1 LN1(x), and are doubled at the end.
//
// Letters as in operators.h; the attention is that of class_attention.h.
#pragma once

#include "class_attention.h"

namespace passl_xcit {

template <class Isa>
struct ClassBlockForward : ClassAttention<Isa> {
  using Base = ClassAttention<Isa>;
  using Vector = typename Isa::Vector;
  using Base::batch, Base::blocks, Base::channels, Base::lanes, Base::P, Base::proj, Base::tokens, Base::u, Base::wide;
  using typename Base::Block;

  const ClassBlock& op;
  const int hidden;

  Panels<Isa> fc1, fc2;
  float *attended, *cls, *update;  // each [B, P]
  float* active;                   // [B, padded F]

  explicit ClassBlockForward(const ClassBlock& block) : Base(query_of(block)), op(block), hidden(block.hidden) {}

  size_t run(void* memory, const Team& team) {
    Workspace workspace(memory), packed(op.packed);
    take_weights(op.packed ? packed : workspace);
    take_values(workspace);
    if (memory && !op.packed) pack_weights(team);
    if (memory) compute(team);
    return workspace.bytes();
  }

  void take_weights(Workspace& workspace) {
    this->take_attention(workspace);
    fc1 = take_panels<Isa>(workspace, channels, hidden), fc2 = take_panels<Isa>(workspace, hidden, channels);
  }

  void pack_weights(const Team& team) const {
    this->pack_attention(team);
    pack_all<Isa>({{fc1, op.fc1_weight, hidden}, {fc2, op.fc2_weight, channels}}, team);
  }

 protected:
  void compute(const Team& team) const {
    this->attend(team);
    team.each(proj.count(), [&](int panel, int) { this->project(panel, op.gamma1, attended, P); });
    for (int image = 0; image < batch; ++image) normalise_class(image);
    team.each(fc1.count(), [&](int panel, int) { first_layer(panel); });
    team.each(fc2.count(), [&](int panel, int) { second_layer(panel); });
    team.each(batch * blocks, [&](int item, int) { hand_on(item); });
  }

  static ClassQuery query_of(const ClassBlock& op) {
    const int64_t C = op.channels;
    const float *weight = op.qkv_weight, *bias = op.qkv_bias;
    ClassQuery query{op.batch, op.tokens, C, op.heads, 3 * C, op.x, op.norm1_weight, op.norm1_bias, 1e-6};
    if (weight) query.q_weight = weight, query.k_weight = weight + C, query.v_weight = weight + 2 * C;
    query.q_bias = bias, query.v_bias = bias ? bias + 2 * C : nullptr;
    query.proj_weight = op.proj_weight, query.proj_bias = op.proj_bias;
    return query;
  }

  void take_values(Workspace& workspace) {
    Base::take_values(workspace);
    for (float** rows : {&attended, &cls, &update}) *rows = workspace.floats(static_cast<size_t>(batch) * P);
    active = workspace.floats(static_cast<size_t>(batch) * padded<Isa>(hidden));
  }

  void normalise_class(int image) const {
    const long row = static_cast<long>(image) * P;
    layer_norm<Isa>(attended + row, op.norm2_weight, op.norm2_bias, channels, P, cls + row);
  }

  void first_layer(int panel) const {
    multiply_panel<Isa>(batch, channels, {cls, P, 1}, fc1.panel(panel), wide, panel * wide, hidden,
                        [&](int image, int j, Vector value) {
                          const Vector bias = optional<Isa>(op.fc1_bias, j, hidden);
                          Isa::store(active + static_cast<long>(image) * padded<Isa>(hidden) + j,
                                     gelu<Isa>(value + bias));
                        });
  }

  void second_layer(int panel) const {
    multiply_panel<Isa>(batch, hidden, {active, padded<Isa>(hidden), 1}, fc2.panel(panel), wide, panel * wide, channels,
                        [&](int image, int j, Vector value) {
                          const Vector sum = value + optional<Isa>(op.fc2_bias, j, channels);
                          Isa::store(update + static_cast<long>(image) * P + j, sum);
                          const Vector before = Isa::load(cls + static_cast<long>(image) * P + j);
                          const Vector gamma = optional<Isa>(op.gamma2, j, channels);
                          Isa::store(op.y + static_cast<long>(image) * tokens * channels + j,
                                     Isa::fma(gamma, sum, before), channels - j);
                        });
  }

  // The other tokens: 2 (x + g1 u), or 2 LN2 of that.
  void hand_on(int item) const {
    const Block block = this->block_of(item);
    for (int token = block.first ? block.first : 1; token < block.last; ++token) {
      const long row = static_cast<long>(block.image) * tokens + token;
      const float* x = op.x + row * channels;
      float* y = op.y + row * channels;
      for (int c = 0; c < channels; c += lanes) {
        const Vector gamma = optional<Isa>(op.gamma1, c, channels);
        Isa::store(y + c, Isa::fma(gamma, Isa::load(u + row * P + c), optional<Isa>(x, c, channels)), channels - c);
      }
      if (op.tokens_norm) layer_norm<Isa>(y, op.norm2_weight, op.norm2_bias, channels, channels, y);
      for (int c = 0; c < channels; c += lanes) {
        const Vector value = optional<Isa>(y, c, channels);
        Isa::store(y + c, value + value, channels - c);
      }
    }
  }
};

}  // namespace passl_xcit
