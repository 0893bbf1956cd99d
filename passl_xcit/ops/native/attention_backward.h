// The backward pass of the transformer block in training.
//
// Letters as in operators.h and attention_block.h; R tokens of a block. Slots add up gradients of their share of the
// images, which are summed in the order of the slots: results do not depend on which thread came first.
//
// With the softmax p of a head's scores and its result o = p v, and the gradient g by o: by v it is p^T g, and by the
// scores s = p (g v^T - g.o) element by element, from which q gets s k and k gets s^T q. The softmax is computed again
// from its rows' largest scores and sums, for some queries at a time: no matrix of M by M is ever in memory.
#pragma once

#include "attention_training.h"
#include "mlp_backward.h"

namespace passl_xcit {

// Gradients as one slot adds them up. Matrices have rows of whole panels.
struct AttentionSums {
  float *q, *k, *v, *proj;  // [C, P]
  MlpSums mlp;              // and LayerNorm 2
  float* qkv_bias;          // [3, P]
  float* proj_bias;         // [P]
  float* norm1;             // [2, P], weight and bias
};

template <class Isa>
struct AttentionBlockBackward : AttentionBlockTraining<Isa> {
  using Base = AttentionBlockTraining<Isa>;
  using Vector = typename Isa::Vector;
  using Float = typename Isa::Float;
  using Base::batch, Base::block_tokens, Base::blocks, Base::channels, Base::d, Base::heads, Base::hidden, Base::lanes,
      Base::op, Base::P, Base::S, Base::saved, Base::tile_rows, Base::tokens, Base::wide;
  using typename Base::Block;

  static constexpr int kRows = 48 / tile_rows * tile_rows;  // queries whose softmax is computed again at a time

  const AttentionGradients& out;
  const int F;                                      // hidden, in whole panels
  Panels<Float> q_back, k_back, v_back, proj_back;  // transposed
  Panels<Isa> fc1_back, fc2_back;                   // transposed
  AttentionSums sums[kMaxThreads];
  float *starts[kMaxThreads], *ends[kMaxThreads];  // memory of a slot's sums
  struct Slot {
    float* dx1;               // [M, P], gradient by x1
    float* dmixed;            // [M, P], by the heads' results
    float *dq, *dk, *dv;      // each [M, P]
    float *k, *v_transposed;  // panels of a head's keys [M, d], and of its values [d, M]
    float* scratch;
  } slot_of[kMaxThreads];

  explicit AttentionBlockBackward(const AttentionBackward& backward)
      : Base(backward.forward), out(backward.gradients), F(padded<Isa>(backward.forward.block.hidden)) {}

  size_t run(void* memory, const Team& team) {
    Workspace workspace(memory);
    const int slots = team.threads < batch ? team.threads : batch;
    take(workspace, slots);
    if (!memory) return workspace.bytes();
    pack_back(team);
    team.each(slots, [&](int slot, int) {
      const Slot& of = slot_of[slot];
      __builtin_memset(starts[slot], 0, (ends[slot] - starts[slot]) * sizeof(float));
      each_image_of<Isa>(slot, slots, batch, [&](int image) { image_back(image, sums[slot], of); });
    });
    finish(slots, team);
    return workspace.bytes();
  }

 private:
  void take(Workspace& workspace, int slots) {
    for (Panels<Float>* square : {&q_back, &k_back, &v_back, &proj_back})
      *square = take_panels<Float>(workspace, channels, channels);
    fc1_back = take_panels<Isa>(workspace, hidden, channels), fc2_back = take_panels<Isa>(workspace, channels, hidden);
    const size_t rows = static_cast<size_t>(tokens) * P;
    for (int slot = 0; slot < slots; ++slot) {
      Slot& of = slot_of[slot];
      starts[slot] = workspace.floats(0);
      take_sums(workspace, sums[slot]);
      ends[slot] = workspace.floats(0);
      for (float** matrix : {&of.dx1, &of.dmixed, &of.dq, &of.dk, &of.dv}) *matrix = workspace.floats(rows);
      of.k = workspace.floats(Panels<Float>::size(tokens, d));
      of.v_transposed = workspace.floats(Panels<Float>::size(d, tokens));
      of.scratch = workspace.floats(scratch_floats());
    }
  }

  void take_sums(Workspace& workspace, AttentionSums& to) const {
    const size_t square = static_cast<size_t>(channels) * P;
    for (float** matrix : {&to.q, &to.k, &to.v, &to.proj}) *matrix = workspace.floats(square);
    to.mlp = take_mlp_sums<Isa>(workspace, channels, hidden);
    to.qkv_bias = workspace.floats(3 * P), to.proj_bias = workspace.floats(P), to.norm1 = workspace.floats(2 * P);
  }

  size_t scratch_floats() const {
    const size_t mlp = mlp_backward().scratch_floats(), attention = 2 * static_cast<size_t>(kRows) * S;
    return (mlp > attention ? mlp : attention) + 16 * wide;
  }

  void pack_back(const Team& team) const {
    pack_all_transposed<Float>({{q_back, op.qkv_weight, 3 * channels},
                                {k_back, op.qkv_weight + channels, 3 * channels},
                                {v_back, op.qkv_weight + 2 * channels, 3 * channels},
                                {proj_back, op.proj_weight, channels}},
                               team);
    pack_all_transposed<Isa>({{fc1_back, op.fc1_weight, hidden}, {fc2_back, op.fc2_weight, channels}}, team);
  }

  void image_back(int image, AttentionSums& to, const Slot& of) const {
    for (int block = 0; block < blocks; ++block) {
      mlp_back(image * blocks + block, to, of);
      project_back(image * blocks + block, to, of);
    }
    for (float* matrix : {of.dk, of.dv}) __builtin_memset(matrix, 0, static_cast<size_t>(tokens) * P * sizeof(float));
    for (int head = 0; head < heads; ++head) {
      turn(image, head, of);
      for (int first = 0; first < tokens; first += kRows)
        look_back(image, head, first, tokens - first < kRows ? tokens - first : kRows, of);
    }
    for (int block = 0; block < blocks; ++block) qkv_back(image * blocks + block, to, of);
  }

  MlpBackward<Isa> mlp_backward() const {
    const float epsilon = op.epsilon2;
    return {block_tokens, op.norm2_weight, op.norm2_bias, epsilon, fc1_back, fc2_back, nullptr};
  }

  // A block of tokens: the MLP's gradients, and dx1.
  void mlp_back(int item, AttentionSums& to, const Slot& of) const {
    const Block block = this->block_of(item);
    mlp_backward().rows_back(block.count, saved.x1 + block.row * P, saved.hidden + block.row * F,
                             out.dy + block.row * channels, factor_of<Isa>(saved.keep2, block.image),
                             of.dx1 + static_cast<long>(block.first) * P, to.mlp, of.scratch);
  }

  // A block of tokens: the projection's gradients, and dmixed.
  void project_back(int item, AttentionSums& to, const Slot& of) const {
    const Block block = this->block_of(item);
    const long first = static_cast<long>(block.first) * P;
    const Vector keep = factor_of<Isa>(saved.keep1, block.image);
    float* r = of.scratch;  // [R, P]
    for (long at = 0; at < static_cast<long>(block.count) * P; at += lanes)
      Float::store(r + at, Float::load(of.dx1 + first + at) * keep);
    add_product<Float>(channels, block.count, saved.mixed + block.row * P, P, r, P, channels, to.proj, P);
    add_rows<Float>(block.count, r, P, channels, to.proj_bias);
    multiply<Float>(block.count, {r, P, 1}, proj_back, [&](int i, int j, Vector value) {
      Float::store(of.dmixed + first + static_cast<long>(i) * P + j, value);
    });
  }

  // A head's keys as rows, and its values as columns.
  void turn(int image, int head, const Slot& of) const {
    const Panels<Float> keys = this->keys_in(saved, image), values = this->values_in(saved, image, head);
    const Panels<Float> k{of.k, tokens, d}, v{of.v_transposed, d, tokens};
    for (int token = 0; token < tokens; ++token) {
      const float* key = keys.panel(token / wide, head * d) + token % wide;
      float* value = v.panel(token / wide) + token % wide;
      for (int c = 0; c < d; ++c) {
        k.panel(c / wide, token)[c % wide] = key[c * wide];
        value[c * wide] = values.panel(c / wide, token)[c % wide];
      }
    }
  }

  // The attention of a head for R queries from `first` on: dq, and their part in dk and dv.
  void look_back(int image, int head, int first, int R, const Slot& of) const {
    const long row = static_cast<long>(image) * tokens + first, offset = static_cast<long>(first) * P + head * d;
    const Rows q{saved.q + row * P + head * d, P, 1}, g{of.dmixed + offset, P, 1};
    float *p = of.scratch, *s = p + kRows * S;  // [R, S]: softmax, and gradient by the scores
    softmax_again(image, head, row, q, R, p);
    scores_back(head, row, g, R, p, s, of);
    const Vector scale = Float::fill(1 / __builtin_sqrtf(d));
    multiply<Float>(R, {s, S, 1}, Panels<Float>{of.k, tokens, d}, [&](int i, int j, Vector value) {
      Float::store(of.dq + offset + static_cast<long>(i) * P + j, value * scale, d - j);
    });
    add_to_head(R, s, q.data, of.dk + head * d);
    add_to_head(R, p, g.data, of.dv + head * d);
  }

  void softmax_again(int image, int head, long row, const Rows& q, int R, float* p) const {
    const Panels<Float> keys = this->keys_in(saved, image);
    const float* softmax = saved.softmax + (row * heads + head) * 2;
    for (int panel = 0; panel < keys.count(); ++panel)
      multiply_panel<Float>(R, d, q, keys.panel(panel, head * d), wide, panel * wide, tokens,
                          [&](int i, int j, Vector value) {
                            const float* of_row = softmax + 2 * i * heads;
                            const Vector power = exponential<Float>(value - Float::fill(of_row[0]));
                            Float::store(p + static_cast<long>(i) * S + j, power * Float::fill(of_row[1]));
                          });
  }

  void scores_back(int head, long row, const Rows& g, int R, const float* p, float* s, const Slot& of) const {
    float dots[kRows];
    for (int i = 0; i < R; ++i) dots[i] = dot<Float>(g.data + i * P, saved.mixed + (row + i) * P + head * d, d);
    const Panels<Float> values{of.v_transposed, d, tokens};
    for (int panel = 0; panel < values.count(); ++panel)
      multiply_panel<Float>(R, d, g, values.panel(panel), wide, panel * wide, tokens, [&](int i, int j, Vector value) {
        const long at = static_cast<long>(i) * S + j;
        Float::store(s + at, Float::load(p + at) * (value - Float::fill(dots[i])));
      });
  }

  // The d columns of a head in rows of P += a^T b, for a [R, S] and b [R, d] in rows of P.
  void add_to_head(int R, const float* a, const float* b, float* to) const {
    for (int column = 0; column < d; column += wide)
      multiply_panel<Float>(tokens, R, {a, 1, S}, b + column, P, column, d, [&](int i, int j, Vector value) {
        float* sum = to + static_cast<long>(i) * P + j;
        Float::store(sum, Float::load(sum, d - j) + value, d - j);
      });
  }

  // A block of tokens: the gradients of q, k and v's weights and of LayerNorm 1, and dx.
  void qkv_back(int item, AttentionSums& to, const Slot& of) const {
    const Block block = this->block_of(item);
    const int R = block.count;
    const long first = static_cast<long>(block.first) * P;
    float *normed = of.scratch, *dn = normed + static_cast<long>(block_tokens) * P;  // each [R, P]
    const float* x = op.x + block.row * channels;
    for (long i = 0; i < R; ++i)
      layer_norm<Float>(x + i * channels, op.norm1_weight, op.norm1_bias, channels, P, normed + i * P, op.epsilon1);
    const float* gradients[] = {of.dq + first, of.dk + first, of.dv + first};
    float* const weights[] = {to.q, to.k, to.v};
    const Panels<Float> back[] = {q_back, k_back, v_back};
    for (int part = 0; part < 3; ++part) {
      add_product<Float>(channels, R, normed, P, gradients[part], P, channels, weights[part], P);
      add_rows<Float>(R, gradients[part], P, channels, to.qkv_bias + part * P);
      multiply<Float>(R, {gradients[part], P, 1}, back[part], [&](int i, int j, Vector value) {
        float* sum = dn + static_cast<long>(i) * P + j;
        Float::store(sum, part ? Float::load(sum) + value : value);
      });
    }
    for (long i = 0; i < R; ++i) {
      float of_row[2];
      float* dx = out.dx + (block.row + i) * channels;
      moments<Float>(x + i * channels, channels, of_row, op.epsilon1);
      copy<Float>(of.dx1 + first + i * P, channels, dx);
      norm_back<Float>(x + i * channels, of_row[0], of_row[1], dn + i * P, op.norm1_weight, channels, to.norm1,
                     to.norm1 + P, dx);
    }
  }

  // Adds the slots' sums in their order to those of the first one, and hands these out.
  void finish(int slots, const Team& team) const {
    add_slots<Float>(starts, slots, ends[0] - starts[0], team);
    const AttentionSums& from = sums[0];
    for (long k = 0; k < channels; ++k) {
      copy<Float>(from.proj + k * P, channels, out.proj_weight + k * channels);
      copy<Float>(from.mlp.fc1 + k * F, hidden, out.fc1_weight + k * hidden);
      float* qkv = out.qkv_weight + k * 3 * channels;
      for (const float* part : {from.q, from.k, from.v}) qkv = copy<Float>(part + k * P, channels, qkv);
    }
    for (long k = 0; k < hidden; ++k) copy<Float>(from.mlp.fc2 + k * P, channels, out.fc2_weight + k * channels);
    for (int part = 0; part < 3 && out.qkv_bias; ++part)
      copy<Float>(from.qkv_bias + part * P, channels, out.qkv_bias + part * channels);
    copy<Float>(from.proj_bias, channels, out.proj_bias);
    copy<Float>(from.mlp.fc1_bias, hidden, out.fc1_bias);
    copy<Float>(from.mlp.fc2_rows, channels, out.fc2_bias);
    const auto pair = [&](const float* of, float* weight, float* bias) {
      copy<Float>(of, channels, weight), copy<Float>(of + P, channels, bias);
    };
    pair(from.norm1, out.norm1_weight, out.norm1_bias);
    pair(from.mlp.norm, out.norm2_weight, out.norm2_bias);
  }
};

}  // namespace passl_xcit
