// The backward pass of the convolutional stem in training.
//
// Letters as in stem.h and stem_training.h. Stages are taken from the last to the first, since BatchNorm's gradient
// needs sums over the batch. Slots add up gradients of their share of the images, which are summed in the order of the
// slots. With patches P, weight W and the gradient dz of
// a convolution's output, dW = P^T dz, and each row of dz W^T is added to the nine pixels that its patch came from.
#pragma once

#include "stem_training.h"

namespace passl_xcit {

template <class Isa>
struct StemTrainingBackward : StemTrainingForward<Isa> {
  using Base = StemTrainingForward<Isa>;
  using Vector = typename Isa::Vector;
  using Element = typename Isa::Element;
  using Base::batch, Base::convolved, Base::lanes, Base::op, Base::stages, Base::statistics, Base::wide, Base::L;
  using typename Base::Piece;

  const StemGradients& out;
  Panels<Isa> back[kMaxStages];  // [out, 9 * in], the weights transposed
  float* by_normed[kMaxStages];  // [B, pixels, L], by BatchNorm's output, of all stages but the last
  struct Slot {
    Piece piece;
    float* slopes;             // of GELU, at the places of the piece's grid
    float* by_input;           // gradient by the grid
    Element* by_convolved;     // [kPixels, L], of some pixels
    float* by_patches;         // by the piece's patches, and in their place where these are floats
    float* pairs;              // units of patches, and of by_convolved
    float* weight;             // [9 * in, L]
    float* norms[kMaxStages];  // [2, L], of BatchNorm's weight and bias
  } slot_of[kMaxThreads];

  explicit StemTrainingBackward(const StemBackward& backward) : Base(backward.forward), out(backward.gradients) {}

  size_t run(void* memory, const Team& team) {
    Workspace workspace(memory);
    const int slots = team.threads < batch ? team.threads : batch;
    take(workspace, slots);
    if (!memory) return workspace.bytes();
    for (int stage = first_stage(); stage < stages; ++stage)
      team.each(back[stage].count(), [&](int panel, int) { pack_back(stage, panel); });
    team.each(slots, [&](int slot, int) {
      clear(slot_of[slot].norms[stages - 1], 2 * L(stages - 1));
      each_image_of<Isa>(slot, slots, batch, [&](int image) {
        add_norms(stages - 1, image, 0, this->rows_of_stage(stages - 1), slot_of[slot]);
      });
    });
    for (int stage = stages - 1; stage >= 0; --stage) {
      finish_norm(stage, slots, team);
      team.each(slots, [&](int slot, int) {
        Slot& to = slot_of[slot];
        clear(to.weight, 9 * op.widths[stage] * L(stage));
        if (stage) clear(to.norms[stage - 1], 2 * L(stage - 1));
        each_image_of<Isa>(slot, slots, batch, [&](int image) { image_back(stage, image, to); });
      });
      finish_weight(stage, slots, team);
    }
    if (out.positions) team.each(this->rows_of_stage(stages - 1), [&](int row, int) { add_positions(row); });
    return workspace.bytes();
  }

 private:
  // The first stage whose input gets a gradient.
  int first_stage() const { return out.images ? 0 : 1; }

  static void clear(float* from, size_t count) { __builtin_memset(from, 0, count * sizeof(float)); }

  void take(Workspace& workspace, int slots) {
    size_t weight = 0, pairs = 0;
    long most = 0;
    for (int stage = 0; stage < stages; ++stage) {
      const int columns = 9 * op.widths[stage];
      back[stage] = take_panels<Isa>(workspace, op.widths[stage + 1], columns);
      by_normed[stage] = stage < stages - 1 ? workspace.floats(this->map_size(stage)) : nullptr;
      weight = static_cast<size_t>(columns) * L(stage) > weight ? columns * L(stage) : weight;
      most = L(stage) > most ? L(stage) : most;
      const int rows = this->patches_of(stage);
      const size_t units = pairs_size<Isa>(rows, columns) + pairs_size<Isa>(rows, op.widths[stage + 1]);
      pairs = units > pairs ? units : pairs;
    }
    for (int slot = 0; slot < slots; ++slot) {
      Slot& to = slot_of[slot];
      this->take_piece(workspace, to.piece);
      to.slopes = workspace.floats(this->grid_size());
      to.by_input = workspace.floats(this->grid_size());
      to.by_convolved = reinterpret_cast<Element*>(workspace.floats(kPixels * most));
      if constexpr (Isa::per_unit == 1) to.by_patches = to.piece.patches;
      else to.by_patches = workspace.floats(this->patches_size());
      to.pairs = workspace.floats(pairs);
      to.weight = workspace.floats(weight);
      for (int stage = 0; stage < stages; ++stage) to.norms[stage] = workspace.floats(2 * L(stage));
    }
  }

  void pack_back(int stage, int panel) const {
    const int in = op.widths[stage], first = panel * wide, columns = back[stage].columns;
    float row[wide] = {};
    for (int k = 0; k < back[stage].depth; ++k) {
      for (int j = 0; j < wide && first + j < columns; ++j) {
        const int tap = (first + j) / in, i = (first + j) % in;
        row[j] = op.weights[stage][(static_cast<long>(k) * in + i) * 9 + tap];
      }
      for (int j = 0; j < wide; j += lanes) back[stage].put(panel, k, j, Isa::load(row + j));
    }
  }

  // Gradient by BatchNorm's output, from a pixel on, and the length of its rows.
  const float* gradient_of(int stage, long pixel, long& length) const {
    length = stage == stages - 1 ? op.widths[stages] : L(stage);
    return (stage == stages - 1 ? out.dy : by_normed[stage]) + pixel * length;
  }

  // Adds to those of BatchNorm's parameters what rows lo to hi - 1 of an image give.
  void add_norms(int stage, int image, int lo, int hi, Slot& to) const {
    const long first = this->start_of(stage, image, lo), pixels = this->start_of(stage, 0, hi - lo);
    long length;
    const float* gradients = gradient_of(stage, first, length);
    for (int c = 0; c < op.widths[stage + 1]; c += lanes) {
      const int left = op.widths[stage + 1] - c;
      float* norms = to.norms[stage] + c;
      const Vector mean = Isa::load(statistics[stage] + c, left),
                   scale = Isa::load(statistics[stage] + L(stage) + c, left);
      Vector by_weight = Isa::load(norms), by_bias = Isa::load(norms + L(stage));
      for (long i = 0; i < pixels; ++i) {
        const Vector gradient = Isa::load(gradients + i * length + c, left);
        const Vector normed = (Isa::load(convolved[stage] + (first + i) * L(stage) + c) - mean) * scale;
        by_weight = Isa::fma(gradient, normed, by_weight);
        by_bias = by_bias + gradient;
      }
      Isa::store(norms, by_weight);
      Isa::store(norms + L(stage), by_bias);
    }
  }

  // All rows of a stage's output for an image, in pieces. A piece's last input row is the first one of the next;
  // the row above the image gets gradients that nobody reads.
  void image_back(int stage, int image, Slot& to) const {
    const long line = this->line_of(stage);
    for (int index = 0; index < this->pieces_of(stage); ++index) {
      Piece& piece = to.piece;
      this->set_piece(stage, image, index, piece);
      const int rows = 2 * (piece.hi - piece.lo);
      clear(to.by_input + line, rows * line);
      read_input_and_slopes(stage, to);
      this->each_chunk(stage, piece, [&](int first, int count) { chunk_back(stage, first, count, to); });
      const int done = piece.hi == this->rows_of_stage(stage) ? 2 * piece.hi : 2 * piece.hi - 1;
      if (stage) activation_back(stage, done, to);
      else if (out.images) write_images(done, to);
      __builtin_memcpy(to.by_input, to.by_input + rows * line, line * sizeof(float));
    }
  }

  void read_input_and_slopes(int stage, const Slot& to) const {
    const Piece& piece = to.piece;
    if (!stage) return this->read_input(stage, piece);
    this->clear_edges(stage, 2 * piece.lo - 1, 2 * piece.hi, piece.grid);
    this->each_normalised(stage, piece, [&](long place, Vector value, int count) {
      Vector active, slope;
      gelu_and_slope<Isa>(value, active, slope);
      Isa::store(piece.grid + place, active, count);
      Isa::store(to.slopes + place, slope, count);
    });
  }

  // Some pixels: the gradient of the weight, and what they add to that of the input.
  void chunk_back(int stage, int first, int count, Slot& to) const {
    const int columns = this->columns_of_stage(stage), length = this->length_of(stage);
    convolved_back(stage, this->start_of(stage, to.piece.image, to.piece.lo) + first, count, to.by_convolved);
    const int rows = back[stage].columns, out_channels = op.widths[stage + 1];
    const RowUnits patches = pair_rows<Isa>(count, to.piece.patches, length, rows, to.pairs);
    float* rest = to.pairs + pairs_size<Isa>(this->patches_of(stage), rows);
    add_product<Isa>(rows, count, patches, pair_rows<Isa>(count, to.by_convolved, L(stage), out_channels, rest),
                     out_channels, to.weight, L(stage));
    if (stage < first_stage()) return;
    multiply<Isa>(count, rows_of<Isa>(to.by_convolved, L(stage)), back[stage], [&](int i, int j, Vector value) {
      Isa::store(to.by_patches + static_cast<long>(i) * length + j, value, length - j);
    });
    for (int i = 0; i < count; ++i)
      scatter(stage, to.by_patches + static_cast<long>(i) * length, (first + i) % columns,
              to.by_input + this->lines_of(stage, first + i));
  }

  // BatchNorm: the gradient by a convolution's output, for some pixels.
  void convolved_back(int stage, long first, int count, Element* to) const {
    const Vector share = Isa::fill(1.0f / (static_cast<float>(batch) * this->pixels_of_stage(stage)));
    const float* totals = slot_of[0].norms[stage];
    long length;
    const float* gradients = gradient_of(stage, first, length);
    for (int c = 0; c < op.widths[stage + 1]; c += lanes) {
      const int left = op.widths[stage + 1] - c;
      const Vector mean = Isa::load(statistics[stage] + c, left),
                   scale = Isa::load(statistics[stage] + L(stage) + c, left);
      const Vector by_weight = Isa::load(totals + c) * share, by_bias = Isa::load(totals + L(stage) + c) * share;
      const Vector factor = optional<Isa>(op.bn_weight[stage], c, op.widths[stage + 1]) * scale;
      for (long i = 0; i < count; ++i) {
        const Vector normed = (Isa::load(convolved[stage] + (first + i) * L(stage) + c) - mean) * scale;
        const Vector gradient = Isa::load(gradients + i * length + c, left) - by_bias - normed * by_weight;
        Isa::store(to + i * L(stage) + c, factor * gradient);
      }
    }
  }

  // Adds a patch to the nine pixels that it comes from, in three lines of a grid.
  void scatter(int stage, const float* patch, long column, float* lines) const {
    const int three = 3 * op.widths[stage];
    for (int y = 0; y < 3; ++y, patch += three) {
      float* to = lines + y * this->line_of(stage) + 2 * column * op.widths[stage];
      for (int c = 0; c < three; c += lanes)
        Isa::store(to + c, Isa::load(to + c, three - c) + Isa::load(patch + c, three - c), three - c);
    }
  }

  // GELU: the gradient by the output of the stage before's BatchNorm, for rows of the piece's input below `done`.
  void activation_back(int stage, int done, Slot& to) const {
    const int before = stage - 1, in = op.widths[stage], lo = 2 * to.piece.lo - 1, first = lo < 0 ? 0 : lo;
    for (int row = first; row < done; ++row) {
      const long line = (row - lo) * this->line_of(stage);
      float* rows = by_normed[before] + this->start_of(before, to.piece.image, row) * L(before);
      for (long column = 0; column < this->columns_of_stage(before); ++column)
        for (int c = 0; c < in; c += lanes) {
          const long place = line + (column + 1) * in + c;
          Isa::store(rows + column * L(before) + c,
                     Isa::load(to.by_input + place, in - c) * Isa::load(to.slopes + place, in - c));
        }
    }
    add_norms(before, to.piece.image, first, done, to);
  }

  // The gradient by rows of an image below `done`.
  void write_images(int done, const Slot& from) const {
    const long in = op.widths[0], lo = 2L * from.piece.lo - 1;
    for (long row = lo < 0 ? 0 : lo; row < done; ++row)
      for (long c = 0; c < in; ++c) {
        const float* line = from.by_input + (row - lo) * this->line_of(0) + in + c;
        float* to = out.images + ((from.piece.image * in + c) * op.height + row) * op.width;
        for (long column = 0; column < op.width; ++column) to[column] = line[column * in];
      }
  }

  void finish_norm(int stage, int slots, const Team& team) const {
    float* norms[kMaxThreads];
    for (int slot = 0; slot < slots; ++slot) norms[slot] = slot_of[slot].norms[stage];
    add_slots<Isa>(norms, slots, 2 * L(stage), team);
    copy<Isa>(norms[0], op.widths[stage + 1], out.bn_weight[stage]);
    copy<Isa>(norms[0] + L(stage), op.widths[stage + 1], out.bn_bias[stage]);
  }

  void finish_weight(int stage, int slots, const Team& team) const {
    const long in = op.widths[stage];
    float* weights[kMaxThreads];
    for (int slot = 0; slot < slots; ++slot) weights[slot] = slot_of[slot].weight;
    add_slots<Isa>(weights, slots, 9 * in * L(stage), team);
    for (long o = 0; o < op.widths[stage + 1]; ++o)
      for (long i = 0; i < in; ++i)
        for (long tap = 0; tap < 9; ++tap)
          out.weights[stage][(o * in + i) * 9 + tap] = weights[0][(tap * in + i) * L(stage) + o];
  }

  // By the positional encoding of a row of tokens: the sum over the batch.
  void add_positions(int row) const {
    const long size = this->columns_of_stage(stages - 1) * op.widths[stages],
               image = size * this->rows_of_stage(stages - 1);
    for (long i = 0; i < size; i += lanes) {
      Vector sum = Isa::fill(0);
      for (int b = 0; b < batch; ++b) sum = sum + Isa::load(out.dy + b * image + row * size + i, size - i);
      Isa::store(out.positions + row * size + i, sum, size - i);
    }
  }
};

}  // namespace passl_xcit
