// The backward pass of the transformer block in training.
//
// Letters as in operators.h and attention_block.h; R tokens of a block. Each slot, of which there are as many as
// threads, takes its share of the images and adds up gradients of its own, which are summed in the order of the slots:
// results do not depend on which thread came first.
//
// With the softmax p of a head's scores and its result o = p v, and the gradient g by o: by v it is p^T g, and by the
// scores s = p (g v^T - g.o) element by element, from which q gets s k and k gets s^T q. The softmax is computed again
// from its rows' largest scores and sums, for some queries at a time: no matrix of M by M is ever in memory.
#pragma once

#include "attention_training.h"
#include "gradients.h"

namespace passl_xcit {

// Gradients as one slot adds them up. Matrices have rows of whole panels.
struct AttentionSums {
  float *q, *k, *v, *proj;      // [C, P]
  float *fc1, *fc2;             // [C, padded F], [F, P]
  float* qkv_bias;              // [3, P]
  float* fc1_bias;              // [padded F]
  float *proj_bias, *fc2_bias;  // [P]
  float *norm1, *norm2;         // [2, P], weight and bias
};

template <class Isa>
struct AttentionBlockBackward : AttentionBlockTraining<Isa> {
  using Base = AttentionBlockTraining<Isa>;
  using Vector = typename Isa::Vector;
  using Base::batch, Base::block_tokens, Base::blocks, Base::channels, Base::d, Base::heads, Base::hidden, Base::lanes,
      Base::op, Base::P, Base::S, Base::saved, Base::tile_rows, Base::tokens, Base::wide;
  using typename Base::Block;

  static constexpr int kRows = 48 / tile_rows * tile_rows;  // queries whose softmax is computed again at a time

  const AttentionGradients& out;
  const int F;                                                        // hidden, in whole panels
  Panels<Isa> q_back, k_back, v_back, proj_back, fc1_back, fc2_back;  // transposed
  AttentionSums sums[kMaxThreads];
  struct Slot {
    float *start, *end;       // memory of its sums
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
    pack_all<Isa>({{this->fc1, op.fc1_weight, hidden}}, team);
    pack_back(team);
    team.each(slots, [&](int slot, int) {
      const Slot& of = slot_of[slot];
      __builtin_memset(of.start, 0, (of.end - of.start) * sizeof(float));
      const int last = static_cast<long>(slot + 1) * batch / slots;
      for (int image = static_cast<long>(slot) * batch / slots; image < last; ++image)
        image_back(image, sums[slot], of);
    });
    finish(slots, team);
    return workspace.bytes();
  }

 private:
  void take(Workspace& workspace, int slots) {
    const auto panels = [&](int depth, int columns) {
      return Panels<Isa>{workspace.floats(Panels<Isa>::size(depth, columns)), depth, columns};
    };
    for (Panels<Isa>* square : {&q_back, &k_back, &v_back, &proj_back}) *square = panels(channels, channels);
    this->fc1 = panels(channels, hidden), fc1_back = panels(hidden, channels), fc2_back = panels(channels, hidden);
    const size_t rows = static_cast<size_t>(tokens) * P;
    for (int slot = 0; slot < slots; ++slot) {
      Slot& of = slot_of[slot];
      of.start = workspace.floats(0);
      take_sums(workspace, sums[slot]);
      of.end = workspace.floats(0);
      for (float** matrix : {&of.dx1, &of.dmixed, &of.dq, &of.dk, &of.dv}) *matrix = workspace.floats(rows);
      of.k = workspace.floats(Panels<Isa>::size(tokens, d));
      of.v_transposed = workspace.floats(Panels<Isa>::size(d, tokens));
      of.scratch = workspace.floats(scratch_floats());
    }
  }

  void take_sums(Workspace& workspace, AttentionSums& to) const {
    const size_t square = static_cast<size_t>(channels) * P;
    for (float** matrix : {&to.q, &to.k, &to.v, &to.proj}) *matrix = workspace.floats(square);
    to.fc1 = workspace.floats(static_cast<size_t>(channels) * F);
    to.fc2 = workspace.floats(static_cast<size_t>(hidden) * P);
    to.qkv_bias = workspace.floats(3 * P), to.fc1_bias = workspace.floats(F);
    for (float** row : {&to.proj_bias, &to.fc2_bias}) *row = workspace.floats(P);
    for (float** pair : {&to.norm1, &to.norm2}) *pair = workspace.floats(2 * P);
  }

  size_t scratch_floats() const {
    const size_t mlp = static_cast<size_t>(block_tokens) * (3 * P + 2 * kHidden);
    const size_t attention = 2 * static_cast<size_t>(kRows) * S;
    return (mlp > attention ? mlp : attention) + 16 * wide;
  }

  void pack_back(const Team& team) const {
    using Job = Packing<Isa>;
    const long three = 3 * channels;
    for (const Job& job : {Job{q_back, op.qkv_weight, three}, Job{k_back, op.qkv_weight + channels, three},
                           Job{v_back, op.qkv_weight + 2 * channels, three}, Job{proj_back, op.proj_weight, channels},
                           Job{fc1_back, op.fc1_weight, hidden}, Job{fc2_back, op.fc2_weight, channels}})
      team.each(job.to.count(), [&](int panel, int) { pack_transposed(job.to, panel, job.from, job.stride); });
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

  static float factor(const float* keep, int image) { return keep ? keep[image] : 1; }

  // A block of tokens: the MLP's gradients, and dx1.
  void mlp_back(int item, AttentionSums& to, const Slot& of) const {
    const Block block = this->block_of(item);
    const int R = block.count;
    const long size = static_cast<long>(block_tokens) * P;
    float *normed = of.scratch, *r = normed + size, *dn = r + size;       // each [R, P]
    float *active = dn + size, *slope = active + block_tokens * kHidden;  // each [R, kHidden]
    float *x1 = saved.x1 + block.row * P, *dx1 = of.dx1 + static_cast<long>(block.first) * P;
    const float* dy = out.dy + block.row * channels;
    const Vector keep = Isa::fill(factor(saved.keep2, block.image));
    for (long i = 0; i < R; ++i) {
      layer_norm<Isa>(x1 + i * P, op.norm2_weight, op.norm2_bias, channels, P, normed + i * P, op.epsilon2);
      for (int c = 0; c < P; c += lanes) {
        const Vector gradient = Isa::load(dy + i * channels + c, channels - c);
        Isa::store(dx1 + i * P + c, gradient);
        Isa::store(r + i * P + c, gradient * keep);
      }
    }
    add_rows<Isa>(R, r, P, P, to.fc2_bias);
    for (int first = 0; first < hidden; first += kHidden)
      hidden_back(R, first, hidden - first < kHidden ? hidden - first : kHidden, normed, r, active, slope, dn, to);
    for (long i = 0; i < R; ++i) {
      float of_row[2];
      moments<Isa>(x1 + i * P, channels, of_row, op.epsilon2);
      norm_back<Isa>(x1 + i * P, of_row[0], of_row[1], dn + i * P, op.norm2_weight, channels, to.norm2, to.norm2 + P,
                     dx1 + i * P);
    }
  }

  // The part of `count` hidden channels in the MLP's gradients and in dn.
  void hidden_back(int R, int first, int count, const float* normed, const float* r, float* active, float* slope,
                   float* dn, AttentionSums& to) const {
    for (int j = 0; j < count; j += wide)
      multiply_panel<Isa>(R, channels, {normed, P, 1}, this->fc1.panel((first + j) / wide), wide, j, count,
                          [&](int i, int column, Vector value) {
                            Vector a, s;
                            gelu_and_slope<Isa>(value + optional<Isa>(op.fc1_bias, first + column, hidden), a, s);
                            Isa::store(active + i * kHidden + column, a);
                            Isa::store(slope + i * kHidden + column, s);
                          });
    add_product<Isa>(count, R, active, kHidden, r, P, channels, to.fc2 + static_cast<long>(first) * P, P);
    for (int j = 0; j < count; j += wide)
      multiply_panel<Isa>(R, channels, {r, P, 1}, fc2_back.panel((first + j) / wide), wide, j, count,
                          [&](int i, int column, Vector value) {
                            float* by_hidden = slope + i * kHidden + column;
                            Isa::store(by_hidden, value * Isa::load(by_hidden));
                          });
    add_product<Isa>(channels, R, normed, P, slope, kHidden, count, to.fc1 + first, F);
    add_rows<Isa>(R, slope, kHidden, count, to.fc1_bias + first);
    for (int panel = 0; panel < fc1_back.count(); ++panel)
      multiply_panel<Isa>(R, count, {slope, kHidden, 1}, fc1_back.panel(panel, first), wide, panel * wide, channels,
                          [&](int i, int j, Vector value) {
                            float* sum = dn + static_cast<long>(i) * P + j;
                            Isa::store(sum, first ? value + Isa::load(sum) : value);
                          });
  }

  // A block of tokens: the projection's gradients, and dmixed.
  void project_back(int item, AttentionSums& to, const Slot& of) const {
    const Block block = this->block_of(item);
    const long first = static_cast<long>(block.first) * P;
    const Vector keep = Isa::fill(factor(saved.keep1, block.image));
    float* r = of.scratch;  // [R, P]
    for (long at = 0; at < static_cast<long>(block.count) * P; at += lanes)
      Isa::store(r + at, Isa::load(of.dx1 + first + at) * keep);
    add_product<Isa>(channels, block.count, saved.mixed + block.row * P, P, r, P, channels, to.proj, P);
    add_rows<Isa>(block.count, r, P, channels, to.proj_bias);
    multiply<Isa>(block.count, {r, P, 1}, proj_back, [&](int i, int j, Vector value) {
      Isa::store(of.dmixed + first + static_cast<long>(i) * P + j, value);
    });
  }

  // A head's keys as rows, and its values as columns.
  void turn(int image, int head, const Slot& of) const {
    const Panels<Isa> keys = this->keys_in(saved, image), values = this->values_in(saved, image, head);
    const Panels<Isa> k{of.k, tokens, d}, v{of.v_transposed, d, tokens};
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
    const Vector scale = Isa::fill(1 / __builtin_sqrtf(d));
    multiply<Isa>(R, {s, S, 1}, Panels<Isa>{of.k, tokens, d}, [&](int i, int j, Vector value) {
      Isa::store(of.dq + offset + static_cast<long>(i) * P + j, value * scale, d - j);
    });
    add_to_head(R, s, q.data, of.dk + head * d);
    add_to_head(R, p, g.data, of.dv + head * d);
  }

  void softmax_again(int image, int head, long row, const Rows& q, int R, float* p) const {
    const Panels<Isa> keys = this->keys_in(saved, image);
    const float* softmax = saved.softmax + (row * heads + head) * 2;
    for (int panel = 0; panel < keys.count(); ++panel)
      multiply_panel<Isa>(R, d, q, keys.panel(panel, head * d), wide, panel * wide, tokens,
                          [&](int i, int j, Vector value) {
                            const float* of_row = softmax + 2 * i * heads;
                            const Vector power = exponential<Isa>(value - Isa::fill(of_row[0]));
                            Isa::store(p + static_cast<long>(i) * S + j, power * Isa::fill(of_row[1]));
                          });
  }

  void scores_back(int head, long row, const Rows& g, int R, const float* p, float* s, const Slot& of) const {
    float dots[kRows];
    for (int i = 0; i < R; ++i) dots[i] = dot(g.data + i * P, saved.mixed + (row + i) * P + head * d);
    const Panels<Isa> values{of.v_transposed, d, tokens};
    for (int panel = 0; panel < values.count(); ++panel)
      multiply_panel<Isa>(R, d, g, values.panel(panel), wide, panel * wide, tokens, [&](int i, int j, Vector value) {
        const long at = static_cast<long>(i) * S + j;
        Isa::store(s + at, Isa::load(p + at) * (value - Isa::fill(dots[i])));
      });
  }

  // Of d floats.
  float dot(const float* a, const float* b) const {
    Vector sum = Isa::fill(0);
    for (int c = 0; c < d; c += lanes) sum = Isa::fma(Isa::load(a + c, d - c), Isa::load(b + c, d - c), sum);
    return Isa::sum(sum);
  }

  // The d columns of a head in rows of P += a^T b, for a [R, S] and b [R, d] in rows of P.
  void add_to_head(int R, const float* a, const float* b, float* to) const {
    for (int column = 0; column < d; column += wide)
      multiply_panel<Isa>(tokens, R, {a, 1, S}, b + column, P, column, d, [&](int i, int j, Vector value) {
        float* sum = to + static_cast<long>(i) * P + j;
        Isa::store(sum, Isa::load(sum, d - j) + value, d - j);
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
      layer_norm<Isa>(x + i * channels, op.norm1_weight, op.norm1_bias, channels, P, normed + i * P, op.epsilon1);
    const float* gradients[] = {of.dq + first, of.dk + first, of.dv + first};
    float* const weights[] = {to.q, to.k, to.v};
    const Panels<Isa> back[] = {q_back, k_back, v_back};
    for (int part = 0; part < 3; ++part) {
      add_product<Isa>(channels, R, normed, P, gradients[part], P, channels, weights[part], P);
      add_rows<Isa>(R, gradients[part], P, channels, to.qkv_bias + part * P);
      multiply<Isa>(R, {gradients[part], P, 1}, back[part], [&](int i, int j, Vector value) {
        float* sum = dn + static_cast<long>(i) * P + j;
        Isa::store(sum, part ? Isa::load(sum) + value : value);
      });
    }
    for (long i = 0; i < R; ++i) {
      float of_row[2];
      float* dx = out.dx + (block.row + i) * channels;
      moments<Isa>(x + i * channels, channels, of_row, op.epsilon1);
      copy<Isa>(of.dx1 + first + i * P, channels, dx);
      norm_back<Isa>(x + i * channels, of_row[0], of_row[1], dn + i * P, op.norm1_weight, channels, to.norm1,
                     to.norm1 + P, dx);
    }
  }

  // Adds the slots' sums in their order to those of the first one, and hands these out.
  void finish(int slots, const Team& team) const {
    const long size = slot_of[0].end - slot_of[0].start, piece = 1 << 14;
    team.each((size + piece - 1) / piece, [&](int index, int) {
      const long last = (index + 1) * piece < size ? (index + 1) * piece : size;
      for (int slot = 1; slot < slots; ++slot)
        for (long i = index * piece; i < last; ++i) slot_of[0].start[i] += slot_of[slot].start[i];
    });
    const AttentionSums& from = sums[0];
    for (long k = 0; k < channels; ++k) {
      copy<Isa>(from.proj + k * P, channels, out.proj_weight + k * channels);
      copy<Isa>(from.fc1 + k * F, hidden, out.fc1_weight + k * hidden);
      float* qkv = out.qkv_weight + k * 3 * channels;
      for (const float* part : {from.q, from.k, from.v}) qkv = copy<Isa>(part + k * P, channels, qkv);
    }
    for (long k = 0; k < hidden; ++k) copy<Isa>(from.fc2 + k * P, channels, out.fc2_weight + k * channels);
    for (int part = 0; part < 3 && out.qkv_bias; ++part)
      copy<Isa>(from.qkv_bias + part * P, channels, out.qkv_bias + part * channels);
    copy<Isa>(from.proj_bias, channels, out.proj_bias);
    copy<Isa>(from.fc1_bias, hidden, out.fc1_bias);
    copy<Isa>(from.fc2_bias, channels, out.fc2_bias);
    const auto pair = [&](const float* of, float* weight, float* bias) {
      copy<Isa>(of, channels, weight), copy<Isa>(of + P, channels, bias);
    };
    pair(from.norm1, out.norm1_weight, out.norm1_bias);
    pair(from.norm2, out.norm2_weight, out.norm2_bias);
  }
};

}  // namespace passl_xcit
