// The attention of one class token to all tokens, which XCiT's class blocks and CrossViT's fusion have.
//
// Letters as in operators.h. There is one query, so that neither keys nor values of the tokens are needed: with
// u = LN(x), the scores of head h are u (Wk_h q_h), to which the keys' bias adds the same for every token, and the
// result is (a u) Wv_h + bv_h: two vectors a head instead of two matrices a token.
#pragma once

#include "elementwise.h"
#include "operators.h"

namespace passl_xcit {

constexpr int kBlockRows = 64;  // tokens of a piece of work

// The rows of the three matrices, each [C, C], are `stride` floats apart.
struct ClassQuery {
  int64_t batch, tokens, channels, heads, stride;
  const float* x;                        // [B, M, C]
  const float *norm_weight, *norm_bias;  // [C]
  double epsilon;                        // of the LayerNorm
  const float *q_weight, *k_weight, *v_weight;
  const float *q_bias, *v_bias;          // [C]
  const float *proj_weight, *proj_bias;  // [C, C], [C]
};

template <class Isa>
struct ClassAttention {
  using Vector = typename Isa::Vector;
  static constexpr int lanes = Isa::lanes;
  static constexpr int wide = panel_columns<Isa>;

  const ClassQuery of;
  const int batch, tokens, channels, heads, d, P, H;  // H: columns that hold the heads
  const int blocks;

  Panels<Isa> q, proj;
  float *keys, *values;              // of each head: panels of Wk_h^T [d, C], and of Wv_h [C, d]
  float* u;                          // [B, M, P]
  float *query, *mixed, *projected;  // each [B, P]
  float* by_head;                    // [B, C, H]: Wk_h q_h
  float* sums;                       // [B, h, P]: a u
  float* scores;                     // [B, M, H], then the attention

  explicit ClassAttention(const ClassQuery& query)
      : of(query),
        batch(query.batch),
        tokens(query.tokens),
        channels(query.channels),
        heads(query.heads),
        d(query.channels / query.heads),
        P(padded<Isa>(query.channels)),
        H(padded<Isa>(query.heads)),
        blocks((tokens + kBlockRows - 1) / kBlockRows) {}

 protected:
  void take_attention(Workspace& workspace) {
    for (Panels<Isa>* square : {&q, &proj}) *square = take_panels<Isa>(workspace, channels, channels);
    keys = workspace.floats(heads * Panels<Isa>::size(d, channels));
    values = workspace.floats(heads * Panels<Isa>::size(channels, d));
  }

  void take_values(Workspace& workspace) {
    u = workspace.floats(static_cast<size_t>(batch) * tokens * P);
    for (float** rows : {&query, &mixed, &projected}) *rows = workspace.floats(static_cast<size_t>(batch) * P);
    by_head = workspace.floats(static_cast<size_t>(batch) * channels * H);
    sums = workspace.floats(static_cast<size_t>(batch) * heads * P);
    scores = workspace.floats(static_cast<size_t>(batch) * tokens * H);
  }

  void pack_attention(const Team& team) const {
    pack_all<Isa>({{q, of.q_weight, of.stride}, {proj, of.proj_weight, channels}}, team);
    team.each(heads, [&](int head, int) { pack_head(head); });
  }

  // All up to `mixed`, the heads' results side by side.
  void attend(const Team& team) const {
    team.each(batch * blocks, [&](int item, int) { normalise(item); });
    team.each(q.count(), [&](int panel, int) { ask(panel); });
    team.each(heads, [&](int head, int) { keys_of_query(head); });
    team.each(batch, [&](int image, int) { look(image); });
    team.each(heads, [&](int head, int) { values_of_sums(head); });
  }

  Panels<Isa> keys_of(int head) const { return {keys + head * Panels<Isa>::size(d, channels), d, channels}; }
  Panels<Isa> values_of(int head) const { return {values + head * Panels<Isa>::size(channels, d), channels, d}; }

  void pack_head(int head) const {
    const Panels<Isa> value = values_of(head), key = keys_of(head);
    for (int panel = 0; panel < value.count(); ++panel) value.pack(panel, of.v_weight + head * d, of.stride);
    for (int panel = 0; panel < key.count(); ++panel)
      pack_transposed<Isa>(key, panel, of.k_weight + head * d, of.stride);
  }

  struct Block {
    int image, first, last;
  };

  Block block_of(int item) const {
    const int first = item % blocks * kBlockRows, last = first + kBlockRows;
    return {item / blocks, first, last < tokens ? last : tokens};
  }

  void normalise(int item) const {
    const Block block = block_of(item);
    for (int token = block.first; token < block.last; ++token) {
      const long row = static_cast<long>(block.image) * tokens + token;
      layer_norm<Isa>(of.x + row * channels, of.norm_weight, of.norm_bias, channels, P, u + row * P, of.epsilon);
    }
  }

  void ask(int panel) const {
    const Vector scale = Isa::fill(1 / __builtin_sqrtf(d));
    multiply_panel<Isa>(batch, channels, {u, static_cast<long>(tokens) * P, 1}, q.panel(panel), wide, panel * wide,
                        channels, [&](int image, int j, Vector value) {
                          const Vector bias = optional<Isa>(of.q_bias, j, channels);
                          Isa::store(query + static_cast<long>(image) * P + j, (value + bias) * scale);
                        });
  }

  void keys_of_query(int head) const {
    multiply<Isa>(batch, {query + head * d, P, 1}, keys_of(head), [&](int image, int c, Vector value) {
      float elements[lanes];
      Isa::store(elements, value);
      for (int lane = 0; lane < lanes && c + lane < channels; ++lane)
        by_head[(static_cast<long>(image) * channels + c + lane) * H + head] = elements[lane];
    });
  }

  // The attention of all heads on an image's tokens, and the tokens' sums by it.
  void look(int image) const {
    float* score = scores + static_cast<long>(image) * tokens * H;
    const float* tokens_of_image = u + static_cast<long>(image) * tokens * P;
    const float* key = by_head + static_cast<long>(image) * channels * H;
    for (int column = 0; column < H; column += wide)
      multiply_panel<Isa>(tokens, channels, {tokens_of_image, P, 1}, key + column, H, column, heads,
                          [&](int i, int j, Vector value) { Isa::store(score + static_cast<long>(i) * H + j, value); });
    for (int column = 0; column < heads; column += lanes) softmax_down(score + column);
    for (int c = 0; c < P; c += wide)
      multiply_panel<Isa>(heads, tokens, {score, 1, H}, tokens_of_image + c, P, c, P,
                          [&](int head, int j, Vector value) {
                            Isa::store(sums + (static_cast<long>(image) * heads + head) * P + j, value);
                          });
  }

  // Softmax over the tokens, for some heads side by side.
  void softmax_down(float* score) const {
    Vector most = Isa::load(score), sum = Isa::fill(0);
    for (long i = 1; i < tokens; ++i) most = Isa::max(most, Isa::load(score + i * H));
    for (long i = 0; i < tokens; ++i) {
      const Vector power = exponential<Isa>(Isa::load(score + i * H) - most);
      Isa::store(score + i * H, power);
      sum = sum + power;
    }
    const Vector scale = Isa::fill(1) / sum;
    for (long i = 0; i < tokens; ++i) Isa::store(score + i * H, Isa::load(score + i * H) * scale);
  }

  void values_of_sums(int head) const {
    const float* bias = of.v_bias ? of.v_bias + head * d : nullptr;
    multiply<Isa>(batch, {sums + static_cast<long>(head) * P, static_cast<long>(heads) * P, 1}, values_of(head),
                  [&](int image, int j, Vector value) {
                    float* to = mixed + static_cast<long>(image) * P + head * d + j;
                    Isa::store(to, value + optional<Isa>(bias, j, d), d - j);
                  });
  }

  // x + gamma keep (mixed Wp + b) of the class tokens and a panel of channels, into rows that are `stride` floats
  // apart.
  void project(int panel, const float* gamma, float* to, long stride, const float* keep = nullptr) const {
    multiply_panel<Isa>(batch, channels, {mixed, P, 1}, proj.panel(panel), wide, panel * wide, channels,
                        [&](int image, int j, Vector value) {
                          const float* x = of.x + static_cast<long>(image) * tokens * channels;
                          const Vector update = value + optional<Isa>(of.proj_bias, j, channels);
                          Isa::store(projected + static_cast<long>(image) * P + j, update);
                          Vector factor = gamma ? optional<Isa>(gamma, j, channels) : Isa::fill(1);
                          factor = factor * factor_of<Isa>(keep, image);
                          Isa::store(to + image * stride + j, Isa::fma(factor, update, optional<Isa>(x, j, channels)),
                                     channels - j);
                        });
  }
};

}  // namespace passl_xcit
