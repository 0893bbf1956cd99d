// The class-attention block of CaiT as XCiT has it: the class token attends to all tokens and gets an MLP; the others
// get g1 LN1(x), and are doubled at the end.
//
// Letters as in operators.h. There is one query, so that neither keys nor values of the tokens are needed: with
// u = LN1(x), the scores of head h are u (Wk_h q_h), to which the keys' bias adds the same for every token, and the
// result is (a u) Wv_h + bv_h: two vectors a head instead of two matrices a token.
#pragma once

#include "elementwise.h"
#include "operators.h"

namespace passl_xcit {

constexpr int kBlockRows = 64;  // tokens of a piece of work

template <class Isa>
struct ClassBlockForward {
  using Vector = typename Isa::Vector;
  static constexpr int lanes = Isa::lanes;
  static constexpr int wide = panel_columns<Isa>;

  const ClassBlock& op;
  const int batch, tokens, channels, heads, d, hidden, P, H;  // H: columns that hold the heads
  const int blocks;

  Panels<Isa> q, proj, fc1, fc2;
  float *keys, *values;                   // of each head: panels of Wk_h^T [d, C], and of Wv_h [C, d]
  float* u;                               // [B, M, P]
  float *query, *mixed, *attended, *cls;  // each [B, P]
  float* by_head;                         // [B, C, H]: Wk_h q_h
  float* sums;                            // [B, h, P]: a u
  float* active;                          // [B, padded F]
  float* scores;                          // [threads, M, H]

  explicit ClassBlockForward(const ClassBlock& block)
      : op(block),
        batch(block.batch),
        tokens(block.tokens),
        channels(block.channels),
        heads(block.heads),
        d(block.channels / block.heads),
        hidden(block.hidden),
        P(padded<Isa>(block.channels)),
        H(padded<Isa>(block.heads)),
        blocks((tokens + kBlockRows - 1) / kBlockRows) {}

  size_t run(void* memory, const Team& team) {
    Workspace workspace(memory);
    take(workspace, team.threads);
    if (!memory) return workspace.bytes();
    pack_weights(team);
    team.each(batch * blocks, [&](int item, int) { normalise(item); });
    team.each(q.count(), [&](int panel, int) { ask(panel); });
    team.each(heads, [&](int head, int) { keys_of_query(head); });
    team.each(batch, [&](int image, int thread) { look(image, scores + static_cast<long>(thread) * tokens * H); });
    team.each(heads, [&](int head, int) { values_of_sums(head); });
    team.each(proj.count(), [&](int panel, int) { project(panel); });
    for (int image = 0; image < batch; ++image) normalise_class(image);
    team.each(fc1.count(), [&](int panel, int) { first_layer(panel); });
    team.each(fc2.count(), [&](int panel, int) { second_layer(panel); });
    team.each(batch * blocks, [&](int item, int) { hand_on(item); });
    return workspace.bytes();
  }

 private:
  void take(Workspace& workspace, int threads) {
    const auto panels = [&](int depth, int columns) {
      return Panels<Isa>{workspace.floats(Panels<Isa>::size(depth, columns)), depth, columns};
    };
    q = panels(channels, channels), proj = panels(channels, channels);
    fc1 = panels(channels, hidden), fc2 = panels(hidden, channels);
    keys = workspace.floats(heads * Panels<Isa>::size(d, channels));
    values = workspace.floats(heads * Panels<Isa>::size(channels, d));
    u = workspace.floats(static_cast<size_t>(batch) * tokens * P);
    for (float** rows : {&query, &mixed, &attended, &cls}) *rows = workspace.floats(static_cast<size_t>(batch) * P);
    by_head = workspace.floats(static_cast<size_t>(batch) * channels * H);
    sums = workspace.floats(static_cast<size_t>(batch) * heads * P);
    active = workspace.floats(static_cast<size_t>(batch) * padded<Isa>(hidden));
    scores = workspace.floats(static_cast<size_t>(threads) * tokens * H);
  }

  Panels<Isa> keys_of(int head) const { return {keys + head * Panels<Isa>::size(d, channels), d, channels}; }
  Panels<Isa> values_of(int head) const { return {values + head * Panels<Isa>::size(channels, d), channels, d}; }

  void pack_weights(const Team& team) const {
    pack_all<Isa>({{q, op.qkv_weight, 3 * channels},
                   {proj, op.proj_weight, channels},
                   {fc1, op.fc1_weight, hidden},
                   {fc2, op.fc2_weight, channels}},
                  team);
    team.each(heads, [&](int head, int) { pack_head(head); });
  }

  void pack_head(int head) const {
    const long stride = 3 * channels;
    const Panels<Isa> value = values_of(head), key = keys_of(head);
    for (int panel = 0; panel < value.count(); ++panel)
      value.pack(panel, op.qkv_weight + 2 * channels + head * d, stride);
    const float* from = op.qkv_weight + channels + head * d;
    for (int c = 0; c < P; ++c)
      for (int j = 0; j < d; ++j)
        key.panel(c / wide)[static_cast<long>(j) * wide + c % wide] = c < channels ? from[c * stride + j] : 0;
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
      layer_norm<Isa>(op.x + row * channels, op.norm1_weight, op.norm1_bias, channels, P, u + row * P);
    }
  }

  void ask(int panel) const {
    const Vector scale = Isa::fill(1 / __builtin_sqrtf(d));
    multiply_panel<Isa>(batch, channels, {u, static_cast<long>(tokens) * P, 1}, q.panel(panel), wide, panel * wide,
                        channels, [&](int image, int j, Vector value) {
                          const Vector bias = optional<Isa>(op.qkv_bias, j, channels);
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
  void look(int image, float* score) const {
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
    const float* bias = op.qkv_bias ? op.qkv_bias + 2 * channels + head * d : nullptr;
    multiply<Isa>(batch, {sums + static_cast<long>(head) * P, static_cast<long>(heads) * P, 1}, values_of(head),
                  [&](int image, int j, Vector value) {
                    float* to = mixed + static_cast<long>(image) * P + head * d + j;
                    Isa::store(to, value + optional<Isa>(bias, j, d), d - j);
                  });
  }

  void project(int panel) const {
    multiply_panel<Isa>(batch, channels, {mixed, P, 1}, proj.panel(panel), wide, panel * wide, channels,
                        [&](int image, int j, Vector value) {
                          const float* x = op.x + static_cast<long>(image) * tokens * channels;
                          const Vector update = value + optional<Isa>(op.proj_bias, j, channels);
                          const Vector gamma = optional<Isa>(op.gamma1, j, channels);
                          Isa::store(attended + static_cast<long>(image) * P + j,
                                     Isa::fma(gamma, update, optional<Isa>(x, j, channels)));
                        });
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
                          const Vector update = value + optional<Isa>(op.fc2_bias, j, channels);
                          const Vector before = Isa::load(cls + static_cast<long>(image) * P + j);
                          const Vector gamma = optional<Isa>(op.gamma2, j, channels);
                          Isa::store(op.y + static_cast<long>(image) * tokens * channels + j,
                                     Isa::fma(gamma, update, before), channels - j);
                        });
  }

  // The other tokens: 2 (x + g1 u), or 2 LN2 of that.
  void hand_on(int item) const {
    const Block block = block_of(item);
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
