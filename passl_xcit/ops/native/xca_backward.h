// The backward pass of the XCA block in training.
//
// Letters as in operators.h and xca_block.h; R tokens of a block. Slots add up gradients of their share of the images,
// which are summed in the order of the slots: results do not depend on which thread came first.
//
// The gradients of a scaled update x + g (z W + b) come from D = z^T r and s = sum of r, with r the gradient of the
// update's sum (times drop path's factor): dW = D g, db = s g, dg = sum_k W_k D_k + b s. Nothing is divided by g.
#pragma once

#include "mlp_backward.h"
#include "xca_training.h"

namespace passl_xcit {

// Gradients as one slot adds them up. Matrices have rows of whole panels.
struct XcaSums {
  float *q, *k, *v, *proj;         // [C, P]; of proj D, see above
  MlpSums mlp;                     // and LayerNorm 2
  float* qkv_bias;                 // [3, P]
  float* temperature;              // [h]
  float *norm1, *norm3;            // [2, P], weight and bias
  float* proj_rows;                // [P], sums of r
  float *conv1, *conv2;            // [9, P]; of conv2 D
  float *conv1_bias, *conv2_rows;  // [P]
  float* bn;                       // [2, P], weight and bias
};

template <class Isa>
struct XcaBlockBackward : XcaBlockTraining<Isa> {
  using Base = XcaBlockTraining<Isa>;
  using Vector = typename Isa::Vector;
  using Element = typename Isa::Element;
  using Float = typename Isa::Float;
  using Base::batch, Base::block_tokens, Base::blocks, Base::channels, Base::d, Base::heads, Base::hidden, Base::lanes,
      Base::op, Base::P, Base::Q, Base::saved, Base::tokens, Base::training, Base::wide;
  using typename Base::Block;

  const XcaGradients& out;
  const int F;                                             // hidden, in whole panels
  Panels<Isa> q_back, k_back, v_back, fc1_back, fc2_back;  // transposed
  float* proj_back;                                        // of each head: panels of its rows of Wp, transposed [C, d]
  float* dx2;                                              // [B, N, P], gradient by x2, later by x1
  float* dz;  // [B, N, P], by BatchNorm's output, later by the first LayerNorm of LPI
  XcaSums sums[kMaxThreads];
  float *starts[kMaxThreads], *ends[kMaxThreads];  // memory of a slot's sums
  float* scratch[kMaxThreads];

  explicit XcaBlockBackward(const XcaBackward& backward)
      : Base(backward.forward), out(backward.gradients), F(padded<Isa>(backward.forward.block.hidden)) {}

  size_t run(void* memory, const Team& team) {
    Workspace workspace(memory);
    const int slots = team.threads < batch ? team.threads : batch;
    take(workspace, slots);
    if (!memory) return workspace.bytes();
    this->pack_convolutions();
    pack_back(team);
    team.each(slots, [&](int slot, int) {
      __builtin_memset(starts[slot], 0, (ends[slot] - starts[slot]) * sizeof(float));
      __builtin_memset(sums[slot].bn, 0, 2 * P * sizeof(float));
      each_image_of<Isa>(slot, slots, batch, [&](int image) {
        for (int block = 0; block < blocks; ++block) mlp_back(image * blocks + block, sums[slot], scratch[slot]);
        for (int first = 0; first < P; first += wide) second_back(image, first, sums[slot], scratch[slot]);
      });
    });
    add_batch_norm(slots, team);
    team.each(slots, [&](int slot, int) {
      each_image_of<Isa>(slot, slots, batch, [&](int image) {
        for (int first = 0; first < P; first += wide) first_back(image, first, sums[slot], scratch[slot]);
        norm3_back(image, sums[slot]);
        attention_back(image, sums[slot], scratch[slot]);
      });
    });
    finish(slots, team);
    return workspace.bytes();
  }

 private:
  void take(Workspace& workspace, int slots) {
    this->take_convolutions(workspace);
    for (Panels<Isa>* square : {&q_back, &k_back, &v_back})
      *square = take_panels<Isa>(workspace, channels, channels);
    fc1_back = take_panels<Isa>(workspace, hidden, channels), fc2_back = take_panels<Isa>(workspace, channels, hidden);
    proj_back = workspace.floats(heads * Panels<Float>::size(channels, d));
    dx2 = workspace.floats(static_cast<size_t>(batch) * tokens * P);
    dz = workspace.floats(static_cast<size_t>(batch) * tokens * P);
    for (int slot = 0; slot < slots; ++slot) {
      starts[slot] = workspace.floats(0);
      take_sums(workspace, sums[slot]);
      ends[slot] = workspace.floats(0);
      sums[slot].bn = workspace.floats(2 * P);
      scratch[slot] = workspace.floats(scratch_floats());
    }
  }

  void take_sums(Workspace& workspace, XcaSums& to) const {
    const size_t square = static_cast<size_t>(channels) * P;
    for (float** matrix : {&to.q, &to.k, &to.v, &to.proj}) *matrix = workspace.floats(square);
    to.mlp = take_mlp_sums<Isa>(workspace, channels, hidden);
    to.qkv_bias = workspace.floats(3 * P), to.temperature = workspace.floats(heads);
    for (float** pair : {&to.norm1, &to.norm3}) *pair = workspace.floats(2 * P);
    for (float** row : {&to.proj_rows, &to.conv1_bias, &to.conv2_rows}) *row = workspace.floats(P);
    to.conv1 = workspace.floats(9 * P), to.conv2 = workspace.floats(9 * P);
  }

  size_t scratch_floats() const {
    const size_t rows = static_cast<size_t>(block_tokens), square = static_cast<size_t>(d) * d;
    const size_t pairs = 3 * pairs_size<Isa>(block_tokens, P);
    const size_t mlp = mlp_backward().scratch_floats(), grids = 2 * this->grid_size();
    const size_t attention = (3 * static_cast<size_t>(channels) + 6 * rows + 4) * P + 5 * square + pairs +
                             pairs_size<Isa>(channels, channels) + pairs_size<Isa>(d, d);
    size_t most = mlp > grids ? mlp : grids;
    most = attention > most ? attention : most;
    return most + 16 * wide;
  }

  void pack_back(const Team& team) const {
    pack_all_transposed<Isa>({{q_back, op.qkv_weight, 3 * channels},
                              {k_back, op.qkv_weight + channels, 3 * channels},
                              {v_back, op.qkv_weight + 2 * channels, 3 * channels},
                              {fc1_back, op.fc1_weight, hidden},
                              {fc2_back, op.fc2_weight, channels}},
                             team);
    team.each(heads, [&](int head, int) {
      const Panels<Float> to = proj_back_of(head);
      for (int panel = 0; panel < to.count(); ++panel)
        pack_transposed<Float>(to, panel, op.proj_weight + static_cast<long>(head) * d * channels, channels);
    });
  }

  static Element* elements(float* memory) { return reinterpret_cast<Element*>(memory); }

  MlpBackward<Isa> mlp_backward() const {
    return {block_tokens, op.norm2_weight, op.norm2_bias, 1e-6f, fc1_back, fc2_back, op.gamma2};
  }

  // A block of tokens: the MLP's gradients, and dx2.
  void mlp_back(int item, XcaSums& to, float* memory) const {
    const Block block = this->block_of(item);
    mlp_backward().rows_back(block.count, saved.x2 + block.row * P, saved.hidden + block.row * F,
                             out.dy + block.row * channels, factor_of<Isa>(training.keep2, block.image),
                             dx2 + block.row * P, to.mlp, memory);
  }

  // Puts rows of P floats into a grid with edges, times `factor`.
  void fill_grid(const float* rows, Vector factor, int offset, float* grid) const {
    for (int row = 0; row < op.height; ++row)
      for (int column = 0; column < op.width; ++column)
        Isa::store(grid + this->place(row, column) + offset,
                   Isa::load(rows + (static_cast<long>(row) * op.width + column) * P) * factor);
  }

  // sums [9, P] += for each tap the products of a grid, moved by the tap, with `rows` of P floats.
  void add_taps(const float* grid, const float* rows, Vector factor, float* sums) const {
    const long line = static_cast<long>(op.width + 2) * wide;
    Vector taps[9];
    for (int tap = 0; tap < 9; ++tap) taps[tap] = Isa::load(sums + tap * P);
    for (int row = 0; row < op.height; ++row)
      for (int column = 0; column < op.width; ++column) {
        const Vector value = Isa::load(rows + (static_cast<long>(row) * op.width + column) * P) * factor;
        const float* corner = grid + row * line + static_cast<long>(column) * wide;
        for (int tap = 0; tap < 9; ++tap)
          taps[tap] = Isa::fma(Isa::load(corner + tap / 3 * line + tap % 3 * wide), value, taps[tap]);
      }
    for (int tap = 0; tap < 9; ++tap) Isa::store(sums + tap * P, taps[tap]);
  }

  // LPI's second convolution and GELU: dz, and the sums that BatchNorm's gradient needs.
  void second_back(int image, int first, XcaSums& to, float* memory) const {
    float *input = memory, *grid = memory + this->grid_size();
    this->normalised_activation(image, first, input);
    this->clear_edges(grid);
    const Vector keep = factor_of<Isa>(training.keep3, image);
    for (int c = first; c < first + wide; c += lanes) {
      const long start = this->start_of(image) + c;
      add_taps(input + (c - first), dx2 + start, keep, to.conv2 + c);
      Vector rows = Isa::load(to.conv2_rows + c);
      for (long token = 0; token < tokens; ++token) rows = Isa::fma(Isa::load(dx2 + start + token * P), keep, rows);
      Isa::store(to.conv2_rows + c, rows);
      fill_grid(dx2 + start, keep * optional<Isa>(op.gamma3, c, channels), c - first, grid);
      const Vector mean = Isa::load(saved.statistics + c, channels - c);
      const Vector scale = Isa::load(saved.statistics + P + c, channels - c);
      Vector by_weight = Isa::load(to.bn + c), by_bias = Isa::load(to.bn + P + c);
      alignas(64) float taps[9 * wide];
      for (int tap = 0; tap < 9; ++tap) Isa::store(taps + tap * wide, Isa::load(this->conv2 + (8 - tap) * P + c));
      this->convolve_with(grid + (c - first), taps, wide, [&](int row, int column, Vector value) {
        const long at = start + (static_cast<long>(row) * op.width + column) * P;
        Isa::store(dz + at, value);
        by_weight = Isa::fma(value, (gelu<Isa>(Isa::load(saved.convolved + at)) - mean) * scale, by_weight);
        by_bias = by_bias + value;
      });
      Isa::store(to.bn + c, by_weight, channels - c);
      Isa::store(to.bn + P + c, by_bias, channels - c);
    }
  }

  // BatchNorm, GELU and LPI's first convolution: its gradients, and dz as that of LayerNorm 3's output.
  void first_back(int image, int first, XcaSums& to, float* memory) const {
    float *input = memory, *grid = memory + this->grid_size();
    this->normalise_grid(saved.x1 + this->start_of(image) + first,
                         saved.moments + static_cast<long>(image) * tokens * 2, first, input);
    this->clear_edges(grid);
    const Vector share = Isa::fill(1.0f / (static_cast<float>(batch) * tokens));
    for (int c = first; c < first + wide; c += lanes) {
      const int left = channels - c;
      const long start = this->start_of(image) + c;
      const Vector mean = Isa::load(saved.statistics + c, left), scale = Isa::load(saved.statistics + P + c, left);
      const Vector by_weight = Isa::load(total_bn() + c, left) * share,
                   by_bias = Isa::load(total_bn() + P + c, left) * share;
      const Vector factor = optional<Isa>(op.bn_weight, c, channels) * scale;
      Vector rows = Isa::load(to.conv1_bias + c);
      for (long token = 0; token < tokens; ++token) {
        const long at = start + token * P;
        Vector active, slope;
        gelu_and_slope<Isa>(Isa::load(saved.convolved + at), active, slope);
        const Vector normed = (active - mean) * scale;
        const Vector gradient = factor * (Isa::load(dz + at) - by_bias - normed * by_weight) * slope;
        Isa::store(dz + at, gradient);
        rows = rows + gradient;
      }
      Isa::store(to.conv1_bias + c, rows);
      add_taps(input + (c - first), dz + start, Isa::fill(1), to.conv1 + c);
      fill_grid(dz + start, Isa::fill(1), c - first, grid);
      alignas(64) float taps[9 * wide];
      for (int tap = 0; tap < 9; ++tap) Isa::store(taps + tap * wide, Isa::load(this->conv1 + (8 - tap) * P + c));
      this->convolve_with(grid + (c - first), taps, wide, [&](int row, int column, Vector value) {
        Isa::store(dz + start + (static_cast<long>(row) * op.width + column) * P, value);
      });
    }
  }

  // BatchNorm's sums over the batch, which are in the first slot.
  const float* total_bn() const { return sums[0].bn; }

  // LayerNorm 3: dx2 becomes the gradient by x1.
  void norm3_back(int image, XcaSums& to) const {
    for (long row = static_cast<long>(image) * tokens; row < (image + 1L) * tokens; ++row)
      norm_back<Isa>(saved.x1 + row * P, saved.moments[2 * row], saved.moments[2 * row + 1], dz + row * P,
                     op.norm3_weight, channels, to.norm3, to.norm3 + P, dx2 + row * P);
  }

  // The attention of an image: its gradients, and dx.
  void attention_back(int image, XcaSums& to, float* memory) const {
    const long square = static_cast<long>(channels) * P;
    float* products = memory;               // [C, P], K = v^T r, then times gamma1
    float* back = products + square;        // [C, P], (A^T Wp)^T
    float* by_cosine = back + square;       // [C, d]: for each head, gradient by q_i . k_j
    float* own = by_cosine + channels * d;  // [2P]: what each column of q and k is multiplied by for its norm
    float* back_pairs = own + 2 * P;
    float* rest = back_pairs + pairs_size<Isa>(channels, channels);
    const long start = this->start_of(image);
    const Vector keep = factor_of<Isa>(training.keep1, image);
    Element* r = elements(dz + start);  // [N, P]: dz is not needed any more
    for (long i = 0; i < tokens; ++i)
      for (int c = 0; c < P; c += lanes)
        Isa::store(r + i * P + c, Isa::keep(Isa::load(dx2 + start + i * P + c) * keep, channels - c));
    add_rows<Isa>(tokens, r, P, P, to.proj_rows);
    __builtin_memset(products, 0, square * sizeof(float));
    for (int block = 0; block < blocks; ++block) add_values(image * blocks + block, r, products, rest);
    for (int head = 0; head < heads; ++head) head_back(image, head, products, back, by_cosine, own, to, rest);
    const RowUnits back_units = pair_rows<Isa>(channels, back, P, channels, back_pairs);
    for (int block = 0; block < blocks; ++block)
      qkv_back(image * blocks + block, r, back_units, by_cosine, own, to, rest);
  }

  // A block's part of v^T r.
  void add_values(int item, const Element* r, float* products, float* memory) const {
    const Block block = this->block_of(item);
    const long offset = (block.row - static_cast<long>(block.image) * tokens) * P;
    const RowUnits v = pair_rows<Isa>(block.count, saved.v + block.row * P, P, channels, memory);
    float* rest = memory + pairs_size<Isa>(block_tokens, P);
    add_product<Isa>(channels, block.count, v, pair_rows<Isa>(block.count, r + offset, P, channels, rest), channels,
                     products, P);
  }

  Panels<Float> proj_back_of(int head) const {
    return {proj_back + head * Panels<Float>::size(channels, d), channels, d};
  }

  void head_back(int image, int head, float* products, float* back, float* by_cosine, float* own, XcaSums& to,
                 float* memory) const {
    const long at = (static_cast<long>(image) * heads + head) * d * d;
    const float *attention = saved.attention + at, *cosines = saved.cosines + at;
    float* K = products + static_cast<long>(head) * d * P;
    const float* weight = op.proj_weight + static_cast<long>(head) * d * channels;  // [d, C]
    // D of proj: E = A K
    for (int column = 0; column < channels; column += wide)
      multiply_panel<Float>(d, d, {attention, d, 1}, K + column, P, column, channels, [&](int i, int j, Vector value) {
        float* sum = to.proj + (static_cast<long>(head) * d + i) * P + j;
        Isa::store(sum, Isa::load(sum) + value);
      });
    for (int j = 0; j < d; ++j)
      for (int c = 0; c < channels; c += lanes)
        Isa::store(K + static_cast<long>(j) * P + c,
                   Isa::load(K + static_cast<long>(j) * P + c) * optional<Isa>(op.gamma1, c, channels));
    // (A^T Wp)^T [c, j] = sum_i Wp[i, c] A[i, j]
    for (int column = 0; column < d; column += wide)
      multiply_panel<Float>(channels, d, {weight, 1, channels}, attention + column, d, column, d,
                            [&](int c, int j, Vector value) {
                              Isa::store(back + static_cast<long>(c) * P + head * d + j, value, d - j);
                            });
    // dA [i, j] = sum_c Wp[i, c] g[c] K[j, c], K scaled by g already
    float* dA = memory;  // [d, d]
    multiply<Float>(d, {K, P, 1}, proj_back_of(head), [&](int j, int i, Vector value) {
      float elements[lanes];
      Isa::store(elements, value);
      for (int lane = 0; lane < lanes && i + lane < d; ++lane) dA[(i + lane) * d + j] = elements[lane];
    });
    softmax_back(image, head, attention, cosines, dA, by_cosine + static_cast<long>(head) * d * d, own, to);
  }

  // From dA, behind which 2 d floats are free, to the gradient by each product q_i . k_j, and to the factors of the
  // columns' norms.
  void softmax_back(int image, int head, const float* attention, const float* cosines, float* dA,
                    float* by_product, float* own, XcaSums& to) const {
    const float temperature = op.temperature[head];
    float *own_q = own + head * d, *own_k = own + P + head * d;
    float *k_norms = dA + d * d, *k_squares = k_norms + d;
    for (int j = 0; j < d; ++j) own_k[j] = 0, k_norms[j] = norm_and_square(image, P + head * d + j, k_squares[j]);
    for (int i = 0; i < d; ++i) {
      const float *A = attention + i * d, *cosine = cosines + i * d, *gradient = dA + i * d;
      float dot = 0, by_temperature = 0, by_norm = 0;
      for (int j = 0; j < d; ++j) dot += gradient[j] * A[j];
      float square;
      const float q_norm = norm_and_square(image, head * d + i, square);
      for (int j = 0; j < d; ++j) {
        const float score = A[j] * (gradient[j] - dot), by_cosine = temperature * score;
        by_temperature += score * cosine[j];
        by_norm += by_cosine * cosine[j];
        own_k[j] -= by_cosine * cosine[j];
        by_product[i * d + j] = by_cosine / (q_norm * k_norms[j]);
      }
      to.temperature[head] += by_temperature;
      own_q[i] = square < kNormFloor ? 0 : -by_norm / square;
    }
    for (int j = 0; j < d; ++j) own_k[j] = k_squares[j] < kNormFloor ? 0 : own_k[j] / k_squares[j];
  }

  float norm_and_square(int image, int c, float& square) const {
    square = 0;
    for (int block = 0; block < blocks; ++block)
      square += saved.norms[(static_cast<long>(image) * blocks + block) * 2 * P + c];
    return __builtin_sqrtf(square < kNormFloor ? kNormFloor : square);
  }

  // A block of tokens: the gradients of q, k, v and of LayerNorm 1, and dx.
  void qkv_back(int item, Element* r, RowUnits back, const float* by_product, const float* own, XcaSums& to,
                float* memory) const {
    const Block block = this->block_of(item);
    const int R = block.count;
    const long size = static_cast<long>(block_tokens) * P,
               offset = (block.row - static_cast<long>(block.image) * tokens) * P;
    float* dn = memory;                                                                            // [R, P]
    Element *normed = elements(dn + size), *dq = normed + size, *dk = dq + size, *dv = dk + size;  // each [R, P]
    float* rest = reinterpret_cast<float*>(dv + size);
    const Element* qk = saved.qk + block.row * Q;
    const float* x = op.x + block.row * channels;
    for (long i = 0; i < R; ++i) {
      layer_norm<Isa>(x + i * channels, op.norm1_weight, op.norm1_bias, channels, P, normed + i * P);
      for (int c = 0; c < channels; c += lanes)
        Isa::store(r + offset + i * P + c, Isa::load(r + offset + i * P + c) * optional<Isa>(op.gamma1, c, channels));
    }
    for (int column = 0; column < channels; column += wide)
      multiply_panel<Isa>(R, units<Isa>(channels), rows_of<Isa>(r + offset, P), back.data + column, back.stride, column,
                          channels,
                          [&](int i, int j, Vector value) { Isa::store(dv + static_cast<long>(i) * P + j, value); });
    for (int head = 0; head < heads; ++head)
      head_qk_back(R, head, qk, by_product + static_cast<long>(head) * d * d, own, dq, dk, rest);
    const RowUnits normed_units = pair_rows<Isa>(R, normed, P, channels, rest);
    rest += pairs_size<Isa>(block_tokens, P);
    struct Part {
      Element* gradient;
      float* sum;
      const Panels<Isa>& back;
    };
    int index = 0;
    for (const Part& part : {Part{dq, to.q, q_back}, Part{dk, to.k, k_back}, Part{dv, to.v, v_back}}) {
      const RowUnits gradient_units = pair_rows<Isa>(R, part.gradient, P, channels, rest);
      add_product<Isa>(channels, R, normed_units, gradient_units, channels, part.sum, P);
      add_rows<Isa>(R, part.gradient, P, channels, to.qkv_bias + index * P);
      multiply<Isa>(R, rows_of<Isa>(part.gradient, P), part.back, [&](int i, int j, Vector value) {
        float* sum = dn + static_cast<long>(i) * P + j;
        Isa::store(sum, index ? Isa::load(sum) + value : value);
      });
      ++index;
    }
    for (long i = 0; i < R; ++i) {
      float of_row[2];
      float* dx = out.dx + (block.row + i) * channels;
      moments<Isa>(x + i * channels, channels, of_row);
      for (int c = 0; c < channels; c += lanes)
        Isa::store(dx + c, Isa::load(dx2 + (block.row + i) * P + c, channels - c), channels - c);
      norm_back<Isa>(x + i * channels, of_row[0], of_row[1], dn + i * P, op.norm1_weight, channels, to.norm1,
                     to.norm1 + P, dx);
    }
  }

  // dq = k G^T and dk = q G for the gradient G by the products, plus what the norms add.
  void head_qk_back(int R, int head, const Element* qk, const float* G, const float* own, Element* dq, Element* dk,
                    float* turned) const {
    const Element *q = qk + head * d, *k = qk + P + head * d;
    for (int i = 0; i < d; ++i)
      for (int j = 0; j < d; ++j) turned[j * d + i] = G[i * d + j];
    const auto into = [&](const Element* from, const float* matrix, const Element* same, const float* factor,
                          Element* to) {
      const RowUnits b = pair_rows<Isa>(d, matrix, d, d, turned + d * d + wide);
      for (int column = 0; column < d; column += wide)
        multiply_panel<Isa>(R, units<Isa>(d), rows_of<Isa>(from, Q), b.data + column, b.stride, column, d,
                            [&](int i, int j, Vector value) {
                              const long row = i;
                              const Vector same_j = Isa::load(same + row * Q + j, d - j);
                              const Vector of_norm = Isa::load(factor + j, d - j) * same_j;
                              Isa::store(to + row * P + j, value + of_norm, d - j);
                            });
    };
    into(k, turned, q, own + head * d, dq + head * d);
    into(q, G, k, own + P + head * d, dk + head * d);
  }

  // BatchNorm's sums over the batch, which all slots need before they go on.
  void add_batch_norm(int slots, const Team& team) const {
    float* bn[kMaxThreads];
    for (int slot = 0; slot < slots; ++slot) bn[slot] = sums[slot].bn;
    add_slots<Isa>(bn, slots, 2 * P, team);
  }

  void finish(int slots, const Team& team) const {
    add_slots<Isa>(starts, slots, ends[0] - starts[0], team);
    const XcaSums& from = sums[0];
    scaled_update(hidden, from.mlp.fc2, op.fc2_weight, op.fc2_bias, op.gamma2, from.mlp.fc2_rows, out.fc2_weight,
                  out.fc2_bias, out.gamma2);
    scaled_update(channels, from.proj, op.proj_weight, op.proj_bias, op.gamma1, from.proj_rows, out.proj_weight,
                  out.proj_bias, out.gamma1);
    for (int k = 0; k < channels; ++k) {
      copy<Isa>(from.mlp.fc1 + static_cast<long>(k) * F, hidden, out.fc1_weight + static_cast<long>(k) * hidden);
      float* to = out.qkv_weight + static_cast<long>(k) * 3 * channels;
      for (const float* part : {from.q, from.k, from.v}) to = copy<Isa>(part + static_cast<long>(k) * P, channels, to);
    }
    copy<Isa>(from.mlp.fc1_bias, hidden, out.fc1_bias);
    copy<Isa>(from.temperature, heads, out.temperature);
    if (out.qkv_bias)
      for (int part = 0; part < 3; ++part)
        copy<Isa>(from.qkv_bias + part * P, channels, out.qkv_bias + part * channels);
    const auto pair = [&](const float* of, float* weight, float* bias) {
      copy<Isa>(of, channels, weight), copy<Isa>(of + P, channels, bias);
    };
    pair(from.norm1, out.norm1_weight, out.norm1_bias);
    pair(from.mlp.norm, out.norm2_weight, out.norm2_bias);
    pair(from.norm3, out.norm3_weight, out.norm3_bias);
    pair(from.bn, out.bn_weight, out.bn_bias);
    copy<Isa>(from.conv1_bias, channels, out.conv1_bias);
    for (int c = 0; c < channels; ++c) {
      float by_gamma = from.conv2_rows[c] * op.conv2_bias[c];
      for (int tap = 0; tap < 9; ++tap) {
        out.conv1_weight[c * 9 + tap] = from.conv1[tap * P + c];
        by_gamma += from.conv2[tap * P + c] * op.conv2_weight[c * 9 + tap];
        out.conv2_weight[c * 9 + tap] = from.conv2[tap * P + c] * op.gamma3[c];
      }
      out.conv2_bias[c] = from.conv2_rows[c] * op.gamma3[c];
      out.gamma3[c] = by_gamma;
    }
  }

  // From D and s, see the top, to the gradients of weight [depth, C], bias and gamma.
  void scaled_update(int depth, const float* D, const float* weight, const float* bias, const float* gamma,
                     const float* s, float* by_weight, float* by_bias, float* by_gamma) const {
    for (int c = 0; c < channels; c += lanes) {
      const int left = channels - c;
      const Vector g = Isa::load(gamma + c, left), rows = Isa::load(s + c, left);
      Vector sum = rows * Isa::load(bias + c, left);
      for (long k = 0; k < depth; ++k) {
        const Vector of_k = Isa::load(D + k * P + c, left);
        sum = Isa::fma(of_k, Isa::load(weight + k * channels + c, left), sum);
        Isa::store(by_weight + k * channels + c, of_k * g, left);
      }
      Isa::store(by_bias + c, rows * g, left);
      Isa::store(by_gamma + c, sum, left);
    }
  }
};

}  // namespace passl_xcit
