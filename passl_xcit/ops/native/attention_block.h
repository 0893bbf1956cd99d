// The pre-norm block of a vision transformer: x + Attention(LN1 x), then x + MLP(LN2 x), for evaluation
// and as the forward pass of training. In bfloat16 are the products with the weights of q, k, v and of the MLP.
//
// Letters as in operators.h, and P = C, S = M in whole panels. An image's q, k and v stay in the second cache: blocks
// of about 192 tokens make them, and then ask, one after the other. The scores of as many queries as a tile has rows,
// for one head and all tokens, stay in the first cache from the product with k to that with v.
#pragma once

#include <cfloat>

#include "elementwise.h"
#include "operators.h"

namespace passl_xcit {

template <class Isa>
struct AttentionBlockForward {
  using Vector = typename Isa::Vector;
  using Element = typename Isa::Element;
  using Float = typename Isa::Float;
  static constexpr int lanes = Isa::lanes;
  static constexpr int wide = panel_columns<Isa>;
  static constexpr int tile_rows = Float::tile_rows;

  const AttentionBlock& op;
  const int tokens, channels, heads, d, hidden, P, S;
  const int block_tokens, blocks;  // tokens of a block, fewer in the last one; blocks of an image

  Panels<Isa> q, k, fc1, fc2;
  Panels<Float> proj;
  float* v;  // of each head panels of Wv_h [C, d]

  // What blocks of tokens hand on, for some images; the rows are there in training only, and null else.
  struct Images {
    float* q;                    // [images, M, P], divided by sqrt(d)
    float* k;                    // of each image panels of its keys, transposed [C, M]
    float* v;                    // of each image and head panels of its values [M, d]
    float* softmax;              // rows [images, M, h, 2], largest score and 1 / sum of the powers
    float* mixed;                // rows [images, M, P], of the heads' results
    float* x1;                   // rows [images, M, P], after the attention
    Element* hidden;             // rows [images, M, padded F], what goes into the MLP's GELU
    const float *keep1, *keep2;  // [images], what multiplies the two updates, or null
    float* scratch;              // of each thread
  };

  explicit AttentionBlockForward(const AttentionBlock& block)
      : op(block),
        tokens(block.tokens),
        channels(block.channels),
        heads(block.heads),
        d(block.channels / block.heads),
        hidden(block.hidden),
        P(padded<Isa>(block.channels)),
        S(padded<Isa>(block.tokens)),
        block_tokens(even_blocks<Isa>(block.tokens)),
        blocks((tokens + block_tokens - 1) / block_tokens) {}

  size_t run(void* memory, const Team& team) {
    Workspace workspace(memory), packed(op.packed);
    take_weights(op.packed ? packed : workspace);
    const int alone = team.alone(op.batch), together = static_cast<int>(op.batch) - alone;
    Images of_thread[kMaxThreads];
    for (int thread = 0; thread < team.threads; ++thread) of_thread[thread] = take_images(workspace, alone ? 1 : 0, 1);
    const Images rest = take_images(workspace, together, team.threads);
    if (!memory) return workspace.bytes();
    if (!op.packed) pack_weights(team);
    team.each(alone, [&](int image, int thread) { phases(image, 1, of_thread[thread], team.one()); });
    if (together) phases(alone, together, rest, team);
    return workspace.bytes();
  }

  void take_weights(Workspace& workspace) {
    for (Panels<Isa>* square : {&q, &k}) *square = take_panels<Isa>(workspace, channels, channels);
    proj = take_panels<Float>(workspace, channels, channels);
    fc1 = take_panels<Isa>(workspace, channels, hidden), fc2 = take_panels<Isa>(workspace, hidden, channels);
    v = workspace.floats(heads * Panels<Isa>::size(channels, d));
  }

  void pack_weights(const Team& team) const {
    pack_all<Isa>({{q, op.qkv_weight, 3 * channels},
                   {k, op.qkv_weight + channels, 3 * channels},
                   {fc1, op.fc1_weight, hidden},
                   {fc2, op.fc2_weight, channels}},
                  team);
    pack_all<Float>({{proj, op.proj_weight, channels}}, team);
    team.each(heads, [&](int head, int) {
      const Panels<Isa> values = values_of(head);
      for (int panel = 0; panel < values.count(); ++panel)
        values.pack(panel, op.qkv_weight + 2 * channels + head * d, 3 * channels);
    });
  }

 protected:
  Images take_images(Workspace& workspace, int images, int threads) const {
    Images to{};
    to.q = workspace.floats(static_cast<size_t>(images) * tokens * P);
    to.k = workspace.floats(images * Panels<Float>::size(channels, tokens));
    to.v = workspace.floats(images * heads * Panels<Float>::size(tokens, d));
    to.scratch = workspace.floats(images ? threads * scratch_size() : 0);
    return to;
  }

  // Two matrices [block_tokens, P] beside the scores, or beside another one and the hidden channels.
  size_t scratch_size() const {
    const size_t rows = block_tokens, scores = static_cast<size_t>(tile_rows) * S, mlp = rows * (P + kHidden);
    return rows * 2 * P + (scores > mlp ? scores : mlp) + wide;
  }

  Panels<Isa> values_of(int head) const { return {v + head * Panels<Isa>::size(channels, d), channels, d}; }

  // All of the block for `count` images from `first` on.
  void phases(int first, int count, const Images& to, const Team& team) const {
    const float* x = op.x + static_cast<long>(first) * tokens * channels;
    float* y = op.y + static_cast<long>(first) * tokens * channels;
    const auto scratch = [&](int thread) { return to.scratch + thread * scratch_size(); };
    team.each(count * blocks, [&](int item, int thread) { project_in(x, item, to, scratch(thread)); });
    team.each(count * blocks, [&](int item, int thread) {
      const long row = block_of(item).row * P, size = static_cast<long>(block_tokens) * P;
      float* rest = scratch(thread) + size;
      float* x1 = to.x1 ? to.x1 + row : scratch(thread);
      float* mixed = to.mixed ? to.mixed + row : rest;
      attend(item, to, mixed, rest + size);
      project_out(x, item, mixed, x1, to.keep1);
      mlp(item, x1, y, rest, to);
    });
  }

  struct Block {
    int image, first;  // first of its tokens
    long row;          // of that, counted over all images
    int count;
  };

  Block block_of(int item) const {
    const int image = item / blocks, first = item % blocks * block_tokens, left = tokens - first;
    return {image, first, static_cast<long>(image) * tokens + first, left < block_tokens ? left : block_tokens};
  }

  Panels<Float> keys_in(const Images& of, long image) const {
    return {of.k + image * Panels<Float>::size(channels, tokens), channels, tokens};
  }

  Panels<Float> values_in(const Images& of, long image, int head) const {
    return {of.v + (image * heads + head) * Panels<Float>::size(tokens, d), tokens, d};
  }

  // A block's q, k and v.
  void project_in(const float* x, int item, const Images& to, float* scratch) const {
    const Block block = block_of(item);
    Element* normed = reinterpret_cast<Element*>(scratch);  // [block_tokens, P]
    for (int i = 0; i < block.count; ++i)
      layer_norm<Isa>(x + (block.row + i) * channels, op.norm1_weight, op.norm1_bias, channels, P,
                      normed + static_cast<long>(i) * P, op.epsilon1);
    const Rows rows = rows_of<Isa>(normed, P);
    const float* bias = op.qkv_bias;
    const Vector scale = Isa::fill(1 / __builtin_sqrtf(d));
    multiply<Isa>(block.count, rows, q, [&](int i, int j, Vector value) {
      Isa::store(to.q + (block.row + i) * P + j, (value + optional<Isa>(bias, j, channels)) * scale);
    });
    const Panels<Float> keys = keys_in(to, block.image);
    multiply<Isa>(block.count, rows, k, [&](int i, int j, Vector value) {
      store_down(value + optional<Isa>(bias ? bias + channels : nullptr, j, channels), keys, block.first + i, j);
    });
    for (int head = 0; head < heads; ++head) {
      const float* of_head = bias ? bias + 2 * channels + head * d : nullptr;
      const Panels<Float> values = values_in(to, block.image, head);
      multiply<Isa>(block.count, rows, values_of(head), [&](int i, int j, Vector value) {
        values.put(j / wide, block.first + i, j % wide, value + optional<Isa>(of_head, j, d));
      });
    }
  }

  // Elements c and on of a token's row, as far as there are channels, into its column.
  void store_down(Vector x, const Panels<Float>& to, int token, int c) const {
    float elements[lanes];
    Isa::store(elements, x);
    float* column = to.panel(token / wide, c) + token % wide;
    const int count = channels - c < lanes ? channels - c : lanes;
    for (int lane = 0; lane < count; ++lane) column[lane * wide] = elements[lane];
  }

  // The attention of all heads for a block's queries, [block_tokens, P].
  void attend(int item, const Images& of, float* mixed, float* scores) const {
    const Block block = block_of(item);
    const Panels<Float> keys = keys_in(of, block.image);
    for (int head = 0; head < heads; ++head) {
      const Panels<Float> values = values_in(of, block.image, head);
      for (long i = 0; i < block.count; i += tile_rows) {
        const int count = block.count - i < tile_rows ? block.count - i : tile_rows;
        look(count, of.q + (block.row + i) * P, head, keys, values, scores, mixed + i * P + head * d,
             of.softmax ? of.softmax + ((block.row + i) * heads + head) * 2 : nullptr);
      }
    }
  }

  // Softmax(q k^T) v of a head, for `count` queries that fit a tile, into rows of P.
  void look(int count, const float* queries, int head, const Panels<Float>& keys,
            const Panels<Float>& values, float* scores, float* to, float* softmax) const {
    Vector scale[tile_rows];
    score(count, queries, head, keys, scores, scale);
    for (int i = 0; i < count; ++i) {
      const float most = largest(scale[i]), share = 1 / powers(scores + static_cast<long>(i) * S, most);
      scale[i] = Isa::fill(share);
      if (softmax) softmax[2 * i * heads] = most, softmax[2 * i * heads + 1] = share;
    }
    for (int panel = 0; panel < values.count(); ++panel)
      multiply_panel<Float>(count, tokens, {scores, S, 1}, values.panel(panel), wide, panel * wide, d,
                          [&](int i, int j, Vector value) {
                            Isa::store(to + static_cast<long>(i) * P + j, value * scale[i], d - j);
                          });
  }

  // The scores [count, S], and vectors that have the largest of each row in one lane.
  void score(int count, const float* queries, int head, const Panels<Float>& keys, float* scores, Vector* most) const {
    const Vector lowest = Isa::fill(-FLT_MAX);
    for (int i = 0; i < count; ++i) most[i] = lowest;
    for (int panel = 0; panel < keys.count(); ++panel)
      multiply_panel<Float>(count, d, {queries + head * d, P, 1}, keys.panel(panel, head * d), wide, panel * wide,
                            tokens, [&](int i, int j, Vector value) {
                              const Vector beyond = lowest - Isa::keep(lowest, tokens - j);
                              Isa::store(scores + static_cast<long>(i) * S + j, value);
                              most[i] = Isa::max(most[i], Isa::keep(value, tokens - j) + beyond);
                            });
  }

  static float largest(Vector x) {
    float elements[lanes], most = -FLT_MAX;
    Isa::store(elements, x);
    for (float element : elements) most = element > most ? element : most;
    return most;
  }

  // A row of scores becomes e^(score - most); the sum of these.
  float powers(float* row, float most) const {
    Vector sum = Isa::fill(0);
    for (int j = 0; j < tokens; j += lanes) {
      const Vector power = Isa::keep(exponential<Isa>(Isa::load(row + j) - Isa::fill(most)), tokens - j);
      Isa::store(row + j, power);
      sum = sum + power;
    }
    return Isa::sum(sum);
  }

  // A block of x1 = x + mixed Wp + b, [block_tokens, P].
  void project_out(const float* x, int item, const float* mixed, float* x1, const float* keep) const {
    const Block block = block_of(item);
    const Vector factor = factor_of<Isa>(keep, block.image);
    multiply<Float>(block.count, {mixed, P, 1}, proj, [&](int i, int j, Vector value) {
      const Vector before = Isa::load(x + (block.row + i) * channels + j, channels - j);
      const Vector update = value + optional<Isa>(op.proj_bias, j, channels);
      Isa::store(x1 + static_cast<long>(i) * P + j, Isa::fma(factor, update, before));
    });
  }

  // A block of y = x1 + MLP(LN2 x1).
  void mlp(int item, const float* x1, float* y, float* scratch, const Images& of) const {
    const Block block = block_of(item);
    const Vector factor = factor_of<Isa>(of.keep2, block.image);
    Element* kept = of.hidden ? of.hidden + block.row * padded<Isa>(hidden) : nullptr;
    Element* normed = reinterpret_cast<Element*>(scratch);        // [block_tokens, P]
    float* sums = scratch + static_cast<long>(block_tokens) * P;  // [block_tokens, P]
    Element* active = reinterpret_cast<Element*>(sums + static_cast<long>(block_tokens) * P);  // [.., kHidden]
    float* to = y + block.row * channels;
    for (long i = 0; i < block.count; ++i)
      layer_norm<Isa>(x1 + i * P, op.norm2_weight, op.norm2_bias, channels, P, normed + i * P, op.epsilon2);
    mlp_rows<Isa>(block.count, normed, P, fc1, op.fc1_bias, fc2, active, sums, kept, [&](int i, int j, Vector value) {
      const Vector before = Isa::load(x1 + static_cast<long>(i) * P + j);
      const Vector update = value + optional<Isa>(op.fc2_bias, j, channels);
      Isa::store(to + static_cast<long>(i) * channels + j, Isa::fma(factor, update, before), channels - j);
    });
  }
};

}  // namespace passl_xcit
