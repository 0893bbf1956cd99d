// The XCA block: x + g1 XCA(LN1 x), then x + g3 LPI(LN3 x), then x + g2 MLP(LN2 x), for evaluation.
//
// Letters as in operators.h, and P = C in whole panels: rows in the workspace have P floats, those of q beside k have
// Q, which is enough to read a panel from any head's first column on. An image passes through in blocks of about 192
// tokens, which stay in the second cache.
//
// The attention of a head is softmax(t q^T k / (|q| |k|)) with the columns q, k [N, d]; its Gram matrix and norms are
// added up while the blocks of tokens pass by, so that q and k of an image never lie in memory. The attention A then
// multiplies the projection's weight, not the tokens: (v A^T) Wp = v (A^T Wp).
#pragma once

#include "elementwise.h"
#include "operators.h"

namespace passl_xcit {

constexpr float kNormFloor = 1e-24f;  // the reference divides by max(norm, 1e-12)

template <class Isa>
struct XcaBlockForward {
  using Vector = typename Isa::Vector;
  using Element = typename Isa::Element;
  using Float = typename Isa::Float;
  static constexpr int lanes = Isa::lanes;
  static constexpr int wide = panel_columns<Isa>;

  const XcaBlock& op;
  const int tokens, channels, heads, d, hidden, P, Q;
  const int block_tokens, blocks;  // tokens of a block, fewer in the last one; blocks of an image

  Panels<Isa> q, k, v, proj, fc1, fc2;
  float *conv1, *conv2, *bn_scale, *bn_shift;  // [9, P], [9, P], [P], [P]

  // What the phases of some images hand on.
  struct Images {
    Element* v;      // [images, N, P]
    Element* qk;     // [images, N, Q], or null: in the scratch then
    float* cosines;  // [images, h, d, d], the normalised Gram matrices, or null
    float* gram;     // [images, blocks, h, d, d]
    float* norms;    // [images, blocks, 2, P]
    float* mixed;    // panels of A^T Wp for each image
    float* x1;       // [images, N, P], after the attention
    float* moments;  // [images, N, 2], mean and 1 / deviation of x1
    float* scratch;  // of each thread
  };

  explicit XcaBlockForward(const XcaBlock& block)
      : op(block),
        tokens(block.height * block.width),
        channels(block.channels),
        heads(block.heads),
        d(block.channels / block.heads),
        hidden(block.hidden),
        P(padded<Isa>(block.channels)),
        Q(2 * P + wide),
        block_tokens(even_blocks<Isa>(tokens)),
        blocks((tokens + block_tokens - 1) / block_tokens) {}

  size_t run(void* memory, const Team& team) {
    Workspace workspace(memory), packed(op.packed);
    take_weights(op.packed ? packed : workspace);
    const int alone = team.alone(op.batch), together = static_cast<int>(op.batch) - alone;
    Images of_thread[kMaxThreads];
    for (int thread = 0; thread < team.threads; ++thread) of_thread[thread] = take_images(workspace, alone ? 1 : 0, 1);
    Images rest = take_images(workspace, together, team.threads);
    if (!memory) return workspace.bytes();
    if (!op.packed) pack_weights(team);
    team.each(alone, [&](int image, int thread) { phases(image, 1, of_thread[thread], team.one()); });
    if (together) phases(alone, together, rest, team);
    return workspace.bytes();
  }

  void take_weights(Workspace& workspace) {
    take_convolutions(workspace);
    for (Panels<Isa>* square : {&q, &k, &v, &proj}) *square = take_panels<Isa>(workspace, channels, channels);
    fc1 = take_panels<Isa>(workspace, channels, hidden), fc2 = take_panels<Isa>(workspace, hidden, channels);
  }

  void pack_weights(const Team& team) const {
    pack_convolutions();
    pack_all<Isa>({{q, op.qkv_weight, 3 * channels},
                   {k, op.qkv_weight + channels, 3 * channels},
                   {v, op.qkv_weight + 2 * channels, 3 * channels},
                   {proj, op.proj_weight, channels},
                   {fc1, op.fc1_weight, hidden},
                   {fc2, op.fc2_weight, channels}},
                  team);
  }

 protected:
  void take_convolutions(Workspace& workspace) {
    conv1 = workspace.floats(9 * P), conv2 = workspace.floats(9 * P);
    bn_scale = workspace.floats(P), bn_shift = workspace.floats(P);
  }

  Images take_images(Workspace& workspace, int images, int threads) const {
    const size_t rows = static_cast<size_t>(images) * tokens;
    Images to{};
    to.v = reinterpret_cast<Element*>(workspace.floats(rows * P));
    to.gram = workspace.floats(static_cast<size_t>(images) * blocks * channels * d);
    to.norms = workspace.floats(static_cast<size_t>(images) * blocks * 2 * P);
    to.mixed = workspace.floats(images * Panels<Isa>::size(channels, channels));
    to.x1 = workspace.floats(rows * P);
    to.moments = workspace.floats(rows * 2);
    to.scratch = workspace.floats(images ? threads * scratch_size() : 0);
    return to;
  }

  size_t scratch_size() const {
    const size_t attention = static_cast<size_t>(block_tokens) * (P + Q) + pairs_size<Isa>(block_tokens, Q);
    const size_t head = static_cast<size_t>(d) * (d + 1) + 2 * wide + pairs_size<Isa>(d, d);
    const size_t grids = 2 * grid_size();
    const size_t mlp = static_cast<size_t>(block_tokens) * (2 * P + padded<Isa>(kHidden)) + wide;
    size_t most = attention;
    for (size_t size : {head, grids, mlp}) most = size > most ? size : most;
    return (most + 63) / 64 * 64;
  }

  size_t grid_size() const { return static_cast<size_t>(op.height + 2) * (op.width + 2) * wide; }

  void pack_convolutions() const {
    for (int c = 0; c < P; ++c) {
      const bool there = c < channels;
      for (int tap = 0; tap < 9; ++tap) {
        conv1[tap * P + c] = there ? op.conv1_weight[c * 9 + tap] : 0;
        conv2[tap * P + c] = there ? op.conv2_weight[c * 9 + tap] : 0;
      }
      bn_scale[c] = there ? op.bn_weight[c] / __builtin_sqrtf(op.bn_variance[c] + 1e-5f) : 0;
      bn_shift[c] = there ? op.bn_bias[c] - op.bn_mean[c] * bn_scale[c] : 0;
    }
  }

  // All of the block for `count` images from `first` on.
  void phases(int first, int count, const Images& to, const Team& team) const {
    const float* x = op.x + static_cast<long>(first) * tokens * channels;
    float* y = op.y + static_cast<long>(first) * tokens * channels;
    const auto scratch = [&](int thread) { return to.scratch + thread * scratch_size(); };
    team.each(count * blocks, [&](int item, int thread) { project_in(x, item, to, scratch(thread)); });
    team.each(count * heads, [&](int item, int thread) { attend(item, to, scratch(thread)); });
    team.each(count * blocks, [&](int item, int) { project_out(x, item, to); });
    team.each(count * panels_of<Isa>(channels), [&](int item, int thread) { interact(item, to, y, scratch(thread)); });
    team.each(count * blocks, [&](int item, int thread) { mlp(item, y, channels, y, scratch(thread)); });
  }

  struct Block {
    int image, index;
    long row;  // of the first token, counted over all images
    int count;
  };

  Block block_of(int item) const {
    const int image = item / blocks, index = item % blocks, first = index * block_tokens;
    const int left = tokens - first;
    return {image, index, static_cast<long>(image) * tokens + first, left < block_tokens ? left : block_tokens};
  }

  // A block's q, k and v; its part of the Gram matrices and of the norms.
  void project_in(const float* x, int item, const Images& to, float* scratch) const {
    const Block block = block_of(item);
    Element* normed = reinterpret_cast<Element*>(scratch);       // [block_tokens, P]
    float* free = scratch + static_cast<long>(block_tokens) * P;
    Element* qk = to.qk ? to.qk + block.row * Q : reinterpret_cast<Element*>(free);  // [block_tokens, Q]
    float* pairs = free + static_cast<long>(block_tokens) * Q / Isa::per_unit;
    for (int i = 0; i < block.count; ++i)
      layer_norm<Isa>(x + (block.row + i) * channels, op.norm1_weight, op.norm1_bias, channels, P,
                      normed + static_cast<long>(i) * P);
    const Rows rows = rows_of<Isa>(normed, P);
    const auto into = [&](const Panels<Isa>& weight, const float* bias, auto* to, long stride) {
      multiply<Isa>(block.count, rows, weight, [&](int i, int j, Vector value) {
        Isa::store(to + i * stride + j, value + optional<Isa>(bias, j, channels));
      });
    };
    const float* bias = op.qkv_bias;
    into(q, bias, qk, Q);
    into(k, bias ? bias + channels : nullptr, qk + P, Q);
    into(v, bias ? bias + 2 * channels : nullptr, to.v + block.row * P, P);
    add_norms(qk, block.count, to.norms + static_cast<long>(item) * 2 * P);
    const RowUnits both = pair_rows<Isa>(block.count, qk, Q, 2 * P, pairs);
    for (int head = 0; head < heads; ++head)
      gram_of_head(head, block.count, both, to.gram + (static_cast<long>(item) * heads + head) * d * d);
  }

  // The squares of each column of qk [count, Q], added up.
  void add_norms(const Element* qk, int count, float* norms) const {
    for (int c = 0; c < 2 * P; c += lanes) {
      Vector sum = Isa::fill(0);
      for (int i = 0; i < count; ++i) {
        const Vector value = Isa::load(qk + static_cast<long>(i) * Q + c);
        sum = Isa::fma(value, value, sum);
      }
      Isa::store(norms + c, sum);
    }
  }

  void gram_of_head(int head, int count, RowUnits both, float* gram) const {
    const float *q = both.data + head * d, *k = q + P;
    for (int column = 0; column < d; column += wide)
      multiply_panel<Isa>(d, units<Isa>(count), {q, 1, both.stride}, k + column, both.stride, column, d,
                          [&](int i, int j, Vector value) { Isa::store(gram + i * d + j, value, d - j); });
  }

  // A head's attention A of an image, and its rows of A^T Wp.
  void attend(int item, const Images& to, float* attention) const {
    const int image = item / heads, head = item % heads;
    add_gram(item, to, attention);
    Panels<Isa> mixed{to.mixed + image * Panels<Isa>::size(channels, channels), channels, channels};
    const Rows turned = pair_rows<Isa>(d, attention, d, d, attention + d * (d + 1) + wide).transposed();
    for (int panel = 0; panel < proj.count(); ++panel)
      multiply_panel<Isa>(d, units<Isa>(d), turned, proj.panel(panel, head * d), wide, 0, wide,
                          [&](int i, int j, Vector value) { mixed.put(panel, head * d + i, j, value); });
  }

  void add_gram(int item, const Images& to, float* attention) const {
    const int image = item / heads, head = item % heads;
    float* k_scale = attention + d * d;  // [d], 1 / |k|
    for (int j = 0; j < d; ++j) k_scale[j] = 1 / norm_of(image, P + head * d + j, to);
    for (int i = 0; i < d; ++i) {
      float* row = attention + i * d;
      const Vector scale = Isa::fill(1 / norm_of(image, head * d + i, to)), t = Isa::fill(op.temperature[head]);
      for (int j = 0; j < d; j += lanes) {
        Vector sum = Isa::fill(0);
        for (int block = 0; block < blocks; ++block) {
          const long of_head = (static_cast<long>(image) * blocks + block) * heads + head;
          sum = sum + Isa::load(to.gram + (of_head * d + i) * d + j, d - j);
        }
        const Vector cosine = sum * scale * Isa::load(k_scale + j, d - j);
        if (to.cosines) Isa::store(to.cosines + (static_cast<long>(item) * d + i) * d + j, cosine, d - j);
        Isa::store(row + j, t * cosine, d - j);
      }
      softmax<Float>(row, d);
    }
  }

  // Length of column c of [q k] over the tokens.
  float norm_of(int image, int c, const Images& to) const {
    float square = 0;
    for (int block = 0; block < blocks; ++block)
      square += to.norms[(static_cast<long>(image) * blocks + block) * 2 * P + c];
    return __builtin_sqrtf(square < kNormFloor ? kNormFloor : square);
  }

  // x1 = x + g1 (v A^T Wp + b), and the moments of its rows.
  void project_out(const float* x, int item, const Images& to, const float* keep = nullptr) const {
    const Block block = block_of(item);
    Panels<Isa> mixed{to.mixed + block.image * Panels<Isa>::size(channels, channels), channels, channels};
    float* x1 = to.x1 + block.row * P;
    multiply<Isa>(block.count, rows_of<Isa>(to.v + block.row * P, P), mixed, [&](int i, int j, Vector value) {
      const Vector before = Isa::load(x + (block.row + i) * channels + j, channels - j);
      const Vector update = value + optional<Isa>(op.proj_bias, j, channels);
      const Vector gamma = optional<Isa>(op.gamma1, j, channels) * factor_of<Isa>(keep, block.image);
      Isa::store(x1 + static_cast<long>(i) * P + j, Isa::fma(gamma, update, before));
    });
    for (int i = 0; i < block.count; ++i)
      moments<Isa>(x1 + static_cast<long>(i) * P, channels, to.moments + (block.row + i) * 2);
  }

  // x2 = x1 + g3 LPI(LN3 x1), for an image and the channels of one panel, into y.
  void interact(int item, const Images& to, float* y, float* scratch) const {
    const int panels = panels_of<Isa>(channels), image = item / panels, first = item % panels * wide;
    float* before = scratch;  // [H + 2, W + 2, wide], zero at the edges
    float* between = scratch + grid_size();
    const float* x1 = to.x1 + static_cast<long>(image) * tokens * P + first;
    normalise_grid(x1, to.moments + static_cast<long>(image) * tokens * 2, first, before);
    clear_edges(between);
    for (int c = first; c < first + wide; c += lanes) {
      const Vector scale = Isa::load(bn_scale + c), shift = Isa::load(bn_shift + c);
      const Vector bias = optional<Isa>(op.conv1_bias, c, channels);
      convolve(before + (c - first), conv1 + c, [&](int row, int column, Vector value) {
        const Vector active = Isa::fma(gelu<Isa>(value + bias), scale, shift);
        Isa::store(between + (c - first) + place(row, column), active);
      });
    }
    for (int c = first; c < first + wide && c < channels; c += lanes) {
      const Vector gamma = optional<Isa>(op.gamma3, c, channels), bias = optional<Isa>(op.conv2_bias, c, channels);
      convolve(between + (c - first), conv2 + c, [&](int row, int column, Vector value) {
        const long token = row * op.width + column;
        const Vector residual = Isa::load(x1 + (c - first) + token * P);
        float* to = y + (static_cast<long>(image) * tokens + token) * channels + c;
        Isa::store(to, Isa::fma(gamma, value + bias, residual), channels - c);
      });
    }
  }

  // Offset in a grid with edges.
  long place(int row, int column) const { return (static_cast<long>(row + 1) * (op.width + 2) + column + 1) * wide; }

  void clear_edges(float* grid) const {
    const auto clear = [&](int row, int column) {
      for (int c = 0; c < wide; c += lanes) Isa::store(grid + place(row, column) + c, Isa::fill(0));
    };
    for (int column = -1; column <= op.width; ++column) clear(-1, column), clear(op.height, column);
    for (int row = 0; row < op.height; ++row) clear(row, -1), clear(row, op.width);
  }

  void normalise_grid(const float* x1, const float* moments, int first, float* grid) const {
    clear_edges(grid);
    for (int c = 0; c < wide; c += lanes) {
      const Vector weight = optional<Isa>(op.norm3_weight, first + c, channels),
                   bias = optional<Isa>(op.norm3_bias, first + c, channels);
      for (int row = 0; row < op.height; ++row)
        for (int column = 0; column < op.width; ++column) {
          const long token = row * op.width + column;
          const Vector centred = Isa::load(x1 + token * P + c) - Isa::fill(moments[2 * token]);
          Isa::store(grid + place(row, column) + c,
                     Isa::fma(centred * Isa::fill(moments[2 * token + 1]), weight, bias));
        }
    }
  }

  // use(row, column, sum) of a 3x3 convolution, `lanes` channels at a time.
  template <class Use>
  void convolve(const float* grid, const float* weight, const Use& use) const {
    convolve_with(grid, weight, P, use);
  }

  // The same with taps that are `stride` floats apart.
  template <class Use>
  void convolve_with(const float* grid, const float* weight, long stride, const Use& use) const {
    Vector taps[9];
    for (int tap = 0; tap < 9; ++tap) taps[tap] = Isa::load(weight + tap * stride);
    const long line = static_cast<long>(op.width + 2) * wide;
    for (int row = 0; row < op.height; ++row)
      for (int column = 0; column < op.width; ++column) {
        const float* corner = grid + row * line + static_cast<long>(column) * wide;
        Vector sums[3];
        for (int y = 0; y < 3; ++y) {
          sums[y] = Isa::load(corner + y * line) * taps[3 * y];
          for (int x = 1; x < 3; ++x)
            sums[y] = Isa::fma(Isa::load(corner + y * line + x * wide), taps[3 * y + x], sums[y]);
        }
        use(row, column, sums[0] + sums[1] + sums[2]);
      }
  }

  // y = x2 + g2 MLP(LN2 x2), for a block of tokens; the rows of x2 are `stride` long, and may be y itself. `kept` [N,
  // padded F] gets what goes into GELU, or is null.
  void mlp(int item, const float* x2, long stride, float* y, float* scratch, const float* keep = nullptr,
           Element* kept = nullptr) const {
    const Block block = block_of(item);
    Element* normed = reinterpret_cast<Element*>(scratch);        // [block_tokens, P]
    float* sums = scratch + static_cast<long>(block_tokens) * P;  // [block_tokens, P]
    Element* active =
        reinterpret_cast<Element*>(sums + static_cast<long>(block_tokens) * P);  // [block_tokens, kHidden]
    const float* from = x2 + block.row * stride;
    float* to = y + block.row * channels;
    for (int i = 0; i < block.count; ++i)
      layer_norm<Isa>(from + i * stride, op.norm2_weight, op.norm2_bias, channels, P,
                      normed + static_cast<long>(i) * P);
    if (kept) kept += block.row * padded<Isa>(hidden);
    mlp_rows<Isa>(block.count, normed, P, fc1, op.fc1_bias, fc2, active, sums, kept, [&](int i, int j, Vector value) {
      const Vector update = value + optional<Isa>(op.fc2_bias, j, channels);
      const Vector gamma = optional<Isa>(op.gamma2, j, channels) * factor_of<Isa>(keep, block.image);
      const Vector before = Isa::load(from + i * stride + j, channels - j);
      Isa::store(to + static_cast<long>(i) * channels + j, Isa::fma(gamma, update, before), channels - j);
    });
  }
};

}  // namespace passl_xcit
