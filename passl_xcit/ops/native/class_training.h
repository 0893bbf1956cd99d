// The class-attention block in training: the forward pass, which keeps its values, and the backward pass.
//
// Letters as in operators.h and class_attention.h. As forward, neither keys nor values of the tokens are needed. With
// the attention A_h of a head, its sums t_h = A_h u, its keys of the query g_h = Wk_h q_h and its scores u g_h: dA_h =
// u dt_h, the softmax's gradient dS_h of that, dg_h = dS_h u, and du = sum_h A_h dt_h + dS_h g_h. The keys' bias
// changes no attention, so that its gradient is zero.
//
// Every gradient is added up in one order, whatever the number of threads: products over the images by one thread each,
// sums over the tokens block by block.
#pragma once

#include "class_block.h"
#include "gradients.h"

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
    if (memory) this->compute(team);
    return workspace.bytes();
  }
};

template <class Isa>
struct ClassTrainingBackward : ClassTrainingForward<Isa> {
  using Base = ClassTrainingForward<Isa>;
  using Vector = typename Isa::Vector;
  using Base::batch, Base::blocks, Base::channels, Base::d, Base::H, Base::heads, Base::hidden, Base::lanes, Base::op,
      Base::P, Base::tokens, Base::u, Base::wide;
  using typename Base::Block;

  const ClassGradients& out;
  const int F;                                        // hidden, in whole panels
  Panels<Isa> q_back, proj_back, fc1_back, fc2_back;  // transposed
  float *keys_back, *values_back;                     // of each head: panels of Wk_h [C, d], and of Wv_h^T [d, C]
  float *dy, *scaled, *by_cls, *by_attended, *by_projected;  // gradients, each [B, P]; of the class tokens
  float *by_mixed, *by_query, *by_asking;  // the same; by_asking: by the class token's u, for the query
  float* by_hidden;                        // [B, F]
  float* pairs;                            // [B, 2h, P], dt_h and then g_h
  float* by_keys;                          // [B, h, P], dg_h
  float* by_scores;                        // [B, M, H]
  float* scratch;                          // of each thread
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
    team.each(proj_back.count(), [&](int panel, int) { mixed_back(panel); });
    team.each(heads, [&](int head, int) { sums_back(head); });
    team.each(batch, [&](int image, int) { look_back(image); });
    team.each(heads, [&](int head, int) { query_back(head); });
    team.each(q_back.count(), [&](int panel, int) { asking_back(panel); });
    team.each(batch * blocks, [&](int item, int thread) { tokens_back(item, scratch + thread * scratch_size()); });
    finish_weights(team);
    finish_rows();
    return workspace.bytes();
  }

 private:
  void take(Workspace& workspace, int threads) {
    const auto panels = [&](int depth, int columns) {
      return Panels<Isa>{workspace.floats(Panels<Isa>::size(depth, columns)), depth, columns};
    };
    q_back = panels(channels, channels), proj_back = panels(channels, channels);
    this->fc1 = panels(channels, hidden);
    fc1_back = panels(hidden, channels), fc2_back = panels(channels, hidden);
    keys_back = workspace.floats(heads * Panels<Isa>::size(channels, d));
    values_back = workspace.floats(heads * Panels<Isa>::size(d, channels));
    const size_t images = batch;
    for (float** row : {&dy, &scaled, &by_cls, &by_attended, &by_projected, &by_mixed, &by_query, &by_asking})
      *row = workspace.floats(images * P);
    by_hidden = workspace.floats(images * F);
    pairs = workspace.floats(images * 2 * heads * P), by_keys = workspace.floats(images * heads * P);
    by_scores = workspace.floats(images * tokens * H);
    rows = workspace.floats(rows_size());
    scratch = workspace.floats(threads * scratch_size());
  }

  size_t rows_size() const { return static_cast<size_t>(batch) * (blocks + 1) * 5 * P; }
  size_t scratch_size() const { return static_cast<size_t>(kBlockRows) * (2 * heads + P) + 2 * P + wide; }

  Sums sums_of(int item) const {
    float* of = rows + static_cast<long>(item) * 5 * P;
    return {of, of + P, of + 2 * P, of + 3 * P, of + 4 * P};
  }

  Panels<Isa> keys_back_of(int head) const { return {keys_back + head * Panels<Isa>::size(channels, d), channels, d}; }
  Panels<Isa> values_back_of(int head) const {
    return {values_back + head * Panels<Isa>::size(d, channels), d, channels};
  }

  void pack_back(const Team& team) const {
    const long three = 3 * channels;
    pack_all<Isa>({{this->fc1, op.fc1_weight, hidden}}, team);
    for (const Packing<Isa>& job : {Packing<Isa>{q_back, op.qkv_weight, three},
                                    {proj_back, op.proj_weight, channels},
                                    {fc1_back, op.fc1_weight, hidden},
                                    {fc2_back, op.fc2_weight, channels}})
      team.each(job.to.count(), [&](int panel, int) { pack_transposed<Isa>(job.to, panel, job.from, job.stride); });
    team.each(heads, [&](int head, int) {
      const Panels<Isa> key = keys_back_of(head), value = values_back_of(head);
      for (int panel = 0; panel < key.count(); ++panel) key.pack(panel, op.qkv_weight + channels + head * d, three);
      for (int panel = 0; panel < value.count(); ++panel)
        pack_transposed<Isa>(value, panel, op.qkv_weight + 2 * channels + head * d, three);
    });
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

  void mixed_back(int panel) const {
    multiply_panel<Isa>(
        batch, channels, {by_projected, P, 1}, proj_back.panel(panel), wide, panel * wide, channels,
        [&](int image, int j, Vector value) { Isa::store(by_mixed + static_cast<long>(image) * P + j, value); });
  }

  // A head's dt and g of all images.
  void sums_back(int head) const {
    multiply<Isa>(batch, {by_mixed + head * d, P, 1}, values_back_of(head), [&](int image, int c, Vector value) {
      Isa::store(pairs + (static_cast<long>(image) * 2 * heads + head) * P + c, value);
    });
    for (long image = 0; image < batch; ++image)
      for (long c = 0; c < channels; ++c)
        pairs[(image * 2 * heads + heads + head) * P + c] = this->by_head[(image * channels + c) * H + head];
  }

  // The attention of all heads on an image's tokens: dS, and dg.
  void look_back(int image) const {
    const float *rows = u + static_cast<long>(image) * tokens * P,
                *attention = this->scores + static_cast<long>(image) * tokens * H;
    const float* by_sums = pairs + static_cast<long>(image) * 2 * heads * P;
    float* to = by_scores + static_cast<long>(image) * tokens * H;
    for (long token = 0; token < tokens; ++token) {
      for (int head = 0; head < H; ++head) to[token * H + head] = 0;
      for (int head = 0; head < heads; ++head) to[token * H + head] = dot(rows + token * P, by_sums + head * P);
    }
    for (int head = 0; head < heads; head += lanes) softmax_back(attention + head, to + head);
    for (int c = 0; c < P; c += wide)
      multiply_panel<Isa>(heads, tokens, {to, 1, H}, rows + c, P, c, P, [&](int head, int j, Vector value) {
        Isa::store(by_keys + (static_cast<long>(image) * heads + head) * P + j, value);
      });
  }

  float dot(const float* a, const float* b) const {
    Vector sum = Isa::fill(0);
    for (int c = 0; c < channels; c += lanes)
      sum = Isa::fma(Isa::load(a + c, channels - c), Isa::load(b + c, channels - c), sum);
    return Isa::sum(sum);
  }

  // Of the softmax over the tokens, for some heads side by side.
  void softmax_back(const float* attention, float* gradients) const {
    Vector sum = Isa::fill(0);
    for (long i = 0; i < tokens; ++i) sum = Isa::fma(Isa::load(attention + i * H), Isa::load(gradients + i * H), sum);
    for (long i = 0; i < tokens; ++i)
      Isa::store(gradients + i * H, Isa::load(attention + i * H) * (Isa::load(gradients + i * H) - sum));
  }

  void query_back(int head) const {
    const Vector scale = Isa::fill(1 / __builtin_sqrtf(d));
    multiply<Isa>(batch, {by_keys + static_cast<long>(head) * P, static_cast<long>(heads) * P, 1}, keys_back_of(head),
                  [&](int image, int j, Vector value) {
                    Isa::store(by_query + static_cast<long>(image) * P + head * d + j, value * scale, d - j);
                  });
  }

  void asking_back(int panel) const {
    multiply_panel<Isa>(
        batch, channels, {by_query, P, 1}, q_back.panel(panel), wide, panel * wide, channels,
        [&](int image, int j, Vector value) { Isa::store(by_asking + static_cast<long>(image) * P + j, value); });
  }

  // A block of tokens: du, then LayerNorm 1 and dx.
  void tokens_back(int item, float* memory) const {
    const Block block = this->block_of(item);
    const int count = block.last - block.first;
    const long first = static_cast<long>(block.image) * tokens + block.first;
    const Sums to = sums_of(item);
    float *du = memory, *row = du + kBlockRows * P, *weights = row + 2 * P;
    for (long i = 0; i < count; ++i)
      for (int head = 0; head < heads; ++head) {
        weights[i * 2 * heads + head] = this->scores[(first + i) * H + head];
        weights[i * 2 * heads + heads + head] = by_scores[(first + i) * H + head];
      }
    const float* pair = pairs + static_cast<long>(block.image) * 2 * heads * P;
    for (int c = 0; c < P; c += wide)
      multiply_panel<Isa>(count, 2 * heads, {weights, 2 * heads, 1}, pair + c, P, c, channels,
                          [&](int i, int j, Vector value) { Isa::store(du + static_cast<long>(i) * P + j, value); });
    for (int i = 0; i < count; ++i) {
      const float* x = op.x + (first + i) * channels;
      float* dx = out.dx + (first + i) * channels;
      if (block.first + i) handed_on_back(first + i, row, du + i * P, dx, to);
      else class_token_back(block.image, du, dx);
      float of_row[2];
      moments<Isa>(x, channels, of_row);
      norm_back<Isa>(x, of_row[0], of_row[1], du + i * P, op.norm1_weight, channels, to.norm1_weight, to.norm1_bias,
                     dx);
    }
  }

  // dx without LayerNorm 1; adds to du what the query gives.
  void class_token_back(int image, float* du, float* dx) const {
    const long row = static_cast<long>(image) * P;
    for (int c = 0; c < channels; c += lanes) {
      Isa::store(dx + c, Isa::load(by_attended + row + c), channels - c);
      Isa::store(du + c, Isa::load(du + c) + Isa::load(by_asking + row + c));
    }
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

  // to [rows, columns] = a^T b over the images, for the columns of a panel.
  void product(int panel, int rows, const float* a, long a_stride, const float* b, long b_stride, int columns,
               float* to, long stride) const {
    const int first = panel * wide;
    multiply_panel<Isa>(rows, batch, {a, 1, a_stride}, b + first, b_stride, first, columns,
                        [&](int i, int j, Vector value) { Isa::store(to + i * stride + j, value, columns - j); });
  }

  void finish_weights(const Team& team) const {
    const long three = 3 * channels, heads_P = static_cast<long>(heads) * P;
    team.each(panels_of<Isa>(hidden), [&](int panel, int) {
      product(panel, channels, this->cls, P, by_hidden, F, hidden, out.fc1_weight, hidden);
    });
    team.each(panels_of<Isa>(channels), [&](int panel, int) {
      product(panel, hidden, this->active, F, scaled, P, channels, out.fc2_weight, channels);
      product(panel, channels, this->mixed, P, by_projected, P, channels, out.proj_weight, channels);
      product(panel, channels, u, static_cast<long>(tokens) * P, by_query, P, channels, out.qkv_weight, three);
    });
    team.each(heads, [&](int head, int) {
      float* to = out.qkv_weight + channels + head * d;
      for (int panel = 0; panel < panels_of<Isa>(d); ++panel) {
        product(panel, channels, by_keys + head * P, heads_P, this->query + head * d, P, d, to, three);
        product(panel, channels, Base::sums + head * P, heads_P, by_mixed + head * d, P, d, to + channels, three);
      }
    });
  }

  // to [columns] = the sum of `count` rows, each times those of `factors` if there are any.
  void sum_rows_of(int count, const float* rows, long stride, const float* factors, int columns, float* to) const {
    for (int c = 0; c < columns; c += lanes) {
      Vector sum = Isa::fill(0);
      for (long i = 0; i < count; ++i) {
        const Vector value = Isa::load(rows + i * stride + c);
        sum = factors ? Isa::fma(value, Isa::load(factors + i * stride + c), sum) : sum + value;
      }
      Isa::store(to + c, sum, columns - c);
    }
  }

  void finish_rows() const {
    sum_rows_of(batch, by_hidden, F, nullptr, hidden, out.fc1_bias);
    sum_rows_of(batch, scaled, P, nullptr, channels, out.fc2_bias);
    sum_rows_of(batch, dy, P, this->update, channels, out.gamma2);
    sum_rows_of(batch, by_projected, P, nullptr, channels, out.proj_bias);
    if (out.qkv_bias) {
      sum_rows_of(batch, by_query, P, nullptr, channels, out.qkv_bias);
      __builtin_memset(out.qkv_bias + channels, 0, channels * sizeof(float));
      sum_rows_of(batch, by_mixed, P, nullptr, channels, out.qkv_bias + 2 * channels);
    }
    float* const to[] = {out.norm1_weight, out.norm1_bias, out.norm2_weight, out.norm2_bias, out.gamma1};
    for (int i = 0; i < 5; ++i)
      sum_rows_of(batch * (blocks + 1), rows + static_cast<long>(i) * P, 5L * P, nullptr, channels, to[i]);
  }
};

}  // namespace passl_xcit
