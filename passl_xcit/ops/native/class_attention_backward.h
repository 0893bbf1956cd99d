// The backward pass of the attention of one class token, for those of class_training.h and cross_training.h.
//
// Letters as in operators.h and class_attention.h. As forward, neither keys nor values of the tokens are needed. With
// the attention A_h of a head, its sums t_h = A_h u, its keys of the query g_h = Wk_h q_h and its scores u g_h: dA_h =
// u dt_h, the softmax's gradient dS_h of that, dg_h = dS_h u, and du = sum_h A_h dt_h + dS_h g_h. The keys' bias
// changes no attention, so that its gradient is zero.
//
// Every gradient is added up in one order, whatever the number of threads: products over the images by one thread each,
// sums over the tokens block by block.
#pragma once

#include "class_attention.h"
#include "gradients.h"

namespace passl_xcit {

// Where the gradients of ClassQuery's weights and biases go. The rows of three matrices are `stride` floats apart.
struct ClassQueryGradients {
  int64_t stride;
  float *q_weight, *k_weight, *v_weight, *proj_weight;
  float *q_bias, *v_bias, *proj_bias;
};

// `Forward` is the forward pass, a ClassAttention, with its values as they were saved.
template <class Isa, class Forward>
struct ClassAttentionBackward : Forward {
  using Vector = typename Isa::Vector;
  using Forward::batch, Forward::blocks, Forward::channels, Forward::d, Forward::H, Forward::heads, Forward::lanes,
      Forward::of, Forward::P, Forward::tokens, Forward::u, Forward::wide;
  using typename Forward::Block;

  Panels<Isa> q_back, proj_back;              // transposed
  float *keys_back, *values_back;             // of each head: panels of Wk_h [C, d], and of Wv_h^T [d, C]
  float *by_projected, *by_mixed, *by_query;  // gradients of the class tokens, each [B, P]
  float* by_asking;                           // [B, P], by the class token's u, for the query
  float* pairs;                               // [B, 2h, P], dt_h and then g_h
  float* by_keys;                             // [B, h, P], dg_h
  float* by_scores;                           // [B, M, H]

  template <class Operator>
  explicit ClassAttentionBackward(const Operator& forward) : Forward(forward) {}

 protected:
  void take_back(Workspace& workspace) {
    for (Panels<Isa>* square : {&q_back, &proj_back}) *square = take_panels<Isa>(workspace, channels, channels);
    keys_back = workspace.floats(heads * Panels<Isa>::size(channels, d));
    values_back = workspace.floats(heads * Panels<Isa>::size(d, channels));
    const size_t images = batch;
    for (float** row : {&by_projected, &by_mixed, &by_query, &by_asking}) *row = workspace.floats(images * P);
    pairs = workspace.floats(images * 2 * heads * P), by_keys = workspace.floats(images * heads * P);
    by_scores = workspace.floats(images * tokens * H);
  }

  void pack_attention_back(const Team& team) const {
    pack_all_transposed<Isa>({{q_back, of.q_weight, of.stride}, {proj_back, of.proj_weight, channels}}, team);
    team.each(heads, [&](int head, int) {
      const Panels<Isa> key = keys_back_of(head), value = values_back_of(head);
      for (int panel = 0; panel < key.count(); ++panel) key.pack(panel, of.k_weight + head * d, of.stride);
      for (int panel = 0; panel < value.count(); ++panel)
        pack_transposed<Isa>(value, panel, of.v_weight + head * d, of.stride);
    });
  }

  // From by_projected to everything that `tokens_gradient` and `query_weights` need.
  void attention_back(const Team& team) const {
    team.each(proj_back.count(), [&](int panel, int) { mixed_back(panel); });
    team.each(heads, [&](int head, int) { sums_back(head); });
    team.each(batch, [&](int image, int) { look_back(image); });
    team.each(heads, [&](int head, int) { query_back(head); });
    team.each(q_back.count(), [&](int panel, int) { asking_back(panel); });
  }

  // du of a block of tokens, rows of P; `weights` [tokens of a block, 2h] is scratch.
  void tokens_gradient(const Block& block, float* du, float* weights) const {
    const int count = block.last - block.first;
    const long first = static_cast<long>(block.image) * tokens + block.first;
    for (long i = 0; i < count; ++i)
      for (int head = 0; head < heads; ++head) {
        weights[i * 2 * heads + head] = this->scores[(first + i) * H + head];
        weights[i * 2 * heads + heads + head] = by_scores[(first + i) * H + head];
      }
    const float* pair = pairs + static_cast<long>(block.image) * 2 * heads * P;
    for (int c = 0; c < P; c += wide)
      multiply_panel<Isa>(count, 2 * heads, {weights, 2 * heads, 1}, pair + c, P, c, channels,
                          [&](int i, int j, Vector value) { Isa::store(du + static_cast<long>(i) * P + j, value); });
    if (block.first) return;
    for (int c = 0; c < channels; c += lanes)
      Isa::store(du + c, Isa::load(du + c) + Isa::load(by_asking + static_cast<long>(block.image) * P + c));
  }

  void query_weights(const ClassQueryGradients& to, const Team& team) const {
    const long heads_P = static_cast<long>(heads) * P;
    team.each(panels_of<Isa>(channels), [&](int panel, int) {
      product(panel, channels, this->mixed, P, by_projected, P, channels, to.proj_weight, channels);
      product(panel, channels, u, static_cast<long>(tokens) * P, by_query, P, channels, to.q_weight, to.stride);
    });
    team.each(heads, [&](int head, int) {
      const long at = head * d, row = static_cast<long>(head) * P;
      for (int panel = 0; panel < panels_of<Isa>(d); ++panel) {
        product(panel, channels, by_keys + row, heads_P, this->query + at, P, d, to.k_weight + at, to.stride);
        product(panel, channels, this->sums + row, heads_P, by_mixed + at, P, d, to.v_weight + at, to.stride);
      }
    });
    sum_rows_of(batch, by_projected, P, nullptr, channels, to.proj_bias);
    if (to.q_bias) sum_rows_of(batch, by_query, P, nullptr, channels, to.q_bias);
    if (to.v_bias) sum_rows_of(batch, by_mixed, P, nullptr, channels, to.v_bias);
  }

  // to [rows, columns] = a^T b over the images, for the columns of a panel.
  void product(int panel, int rows, const float* a, long a_stride, const float* b, long b_stride, int columns,
               float* to, long stride) const {
    const int first = panel * wide;
    multiply_panel<Isa>(rows, batch, {a, 1, a_stride}, b + first, b_stride, first, columns,
                        [&](int i, int j, Vector value) { Isa::store(to + i * stride + j, value, columns - j); });
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

 private:
  Panels<Isa> keys_back_of(int head) const { return {keys_back + head * Panels<Isa>::size(channels, d), channels, d}; }
  Panels<Isa> values_back_of(int head) const {
    return {values_back + head * Panels<Isa>::size(d, channels), d, channels};
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
      for (int head = 0; head < heads; ++head)
        to[token * H + head] = dot<Isa>(rows + token * P, by_sums + head * P, channels);
    }
    for (int head = 0; head < heads; head += lanes) softmax_back(attention + head, to + head);
    for (int c = 0; c < P; c += wide)
      multiply_panel<Isa>(heads, tokens, {to, 1, H}, rows + c, P, c, P, [&](int head, int j, Vector value) {
        Isa::store(by_keys + (static_cast<long>(image) * heads + head) * P + j, value);
      });
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
};

}  // namespace passl_xcit
