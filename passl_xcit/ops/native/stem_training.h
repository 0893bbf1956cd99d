// The convolutional stem in training: the forward pass, which saves what the backward pass needs, and what both share.
//
// Letters as in stem.h, and L: channels of a map in whole vectors. BatchNorm needs a map of all images before the next
// stage can begin, so that stages follow one another: the outputs of convolutions are saved, everything else is
// computed from them again. A piece of work is some rows of an image's map.
#pragma once

#include "gradients.h"
#include "stem.h"

namespace passl_xcit {

constexpr int kPieceRows = 14;  // rows of a stage's output that a piece has

template <class Isa>
struct StemTrainingForward : StemForward<Isa> {
  using Base = StemForward<Isa>;
  using Vector = typename Isa::Vector;
  using Element = typename Isa::Element;
  using Base::lanes, Base::op, Base::stages, Base::wide;

  const StemTraining& training;
  const int batch;
  float* convolved[kMaxStages];   // [B, pixels, L], saved
  float* statistics[kMaxStages];  // [2, L], mean and 1 / deviation of that; saved
  size_t saved_bytes;

  struct Piece {
    long image;
    int lo, hi;        // rows of a stage's output
    Element* grid;     // rows 2 lo - 1 to 2 hi - 1 of its input
    Element* patches;  // of some pixels
  };

  explicit StemTrainingForward(const StemTraining& of) : Base(of.stem), training(of), batch(of.stem.batch) {
    Workspace memory(of.saved);
    for (int stage = 0; stage < stages; ++stage) {
      convolved[stage] = memory.floats(map_size(stage));
      statistics[stage] = memory.floats(2 * L(stage));
    }
    saved_bytes = memory.bytes();
  }

  size_t run(void* memory, const Team& team) {
    Workspace workspace(memory);
    this->take_convolutions(workspace);
    Piece of_thread[kMaxThreads];
    for (int thread = 0; thread < team.threads; ++thread) take_piece(workspace, of_thread[thread]);
    float* sums = workspace.floats(sums_size());
    if (!memory) return workspace.bytes();
    for (int stage = 0; stage < stages; ++stage) {
      const int pieces = pieces_of(stage);
      team.each(this->weights[stage].count(), [&](int panel, int) { this->pack_panel(stage, panel, nullptr); });
      team.each(batch * pieces, [&](int item, int thread) {
        set_piece(stage, item / pieces, item % pieces, of_thread[thread]);
        convolve_piece(stage, of_thread[thread], sums + item * 2 * L(stage));
      });
      for (int c = 0; c < op.widths[stage + 1]; ++c) statistics_of(stage, c, sums);
    }
    team.each(batch * rows_of_stage(stages - 1), [&](int row, int) { write_tokens(row); });
    return workspace.bytes();
  }

 protected:
  int rows_of_stage(int stage) const { return op.height >> (stage + 1); }
  int columns_of_stage(int stage) const { return op.width >> (stage + 1); }
  long pixels_of_stage(int stage) const { return static_cast<long>(rows_of_stage(stage)) * columns_of_stage(stage); }
  long L(int stage) const { return (op.widths[stage + 1] + lanes - 1) / lanes * lanes; }
  size_t map_size(int stage) const { return static_cast<size_t>(batch) * pixels_of_stage(stage) * L(stage); }
  int pieces_of(int stage) const { return (rows_of_stage(stage) + kPieceRows - 1) / kPieceRows; }

  size_t sums_size() const {
    size_t most = 0;
    for (int stage = 0; stage < stages; ++stage) {
      const size_t size = static_cast<size_t>(batch) * pieces_of(stage) * 2 * L(stage);
      most = size > most ? size : most;
    }
    return most;
  }

  // Room for the input rows of any piece.
  size_t grid_size() const {
    long most = 0;
    for (int stage = 0; stage < stages; ++stage) most = this->line_of(stage) > most ? this->line_of(stage) : most;
    return static_cast<size_t>(2 * kPieceRows + 1) * most;
  }

  void take_piece(Workspace& workspace, Piece& piece) const {
    piece.grid = reinterpret_cast<Element*>(workspace.floats(grid_size()));
    piece.patches = reinterpret_cast<Element*>(workspace.floats(patches_size()));
  }

  // Room for the patches of any stage.
  size_t patches_size() const {
    size_t most = 0;
    for (int stage = 0; stage < stages; ++stage) {
      const size_t size = static_cast<size_t>(this->patches_of(stage)) * this->length_of(stage);
      most = size > most ? size : most;
    }
    return most;
  }

  void set_piece(int stage, int image, int index, Piece& piece) const {
    const int rows = rows_of_stage(stage), last = (index + 1) * kPieceRows;
    piece.image = image, piece.lo = index * kPieceRows, piece.hi = last < rows ? last : rows;
  }

  // Pixels of a stage's output before row `row` of an image, over the batch.
  long start_of(int stage, long image, int row) const {
    return image * pixels_of_stage(stage) + static_cast<long>(row) * columns_of_stage(stage);
  }

  // BatchNorm of a stage as a factor and a sum, for channels c on.
  void batch_norm(int stage, int c, Vector& scale, Vector& shift) const {
    const int out = op.widths[stage + 1];
    scale = optional<Isa>(op.bn_weight[stage], c, out) * Isa::load(statistics[stage] + L(stage) + c, out - c);
    shift = optional<Isa>(op.bn_bias[stage], c, out) - Isa::load(statistics[stage] + c, out - c) * scale;
  }

  // use(place in the grid, output of BatchNorm, channels) for a piece's input, the output of the stage before.
  template <class Use>
  void each_normalised(int stage, const Piece& piece, const Use& use) const {
    const int before = stage - 1, width = columns_of_stage(before), in = op.widths[stage], lo = 2 * piece.lo - 1;
    for (int c = 0; c < in; c += lanes) {
      Vector scale, shift;
      batch_norm(before, c, scale, shift);
      for (int row = lo < 0 ? 0 : lo; row < 2 * piece.hi; ++row) {
        const float* from = convolved[before] + start_of(before, piece.image, row) * L(before) + c;
        const long line = (row - lo) * this->line_of(stage) + c;
        for (long column = 0; column < width; ++column)
          use(line + (column + 1) * in, Isa::fma(Isa::load(from + column * L(before)), scale, shift), in - c);
      }
    }
  }

  void read_input(int stage, const Piece& piece) const {
    const int lo = 2 * piece.lo - 1, hi = 2 * piece.hi;
    if (!stage) return this->read_image(piece.image, lo, hi, piece.grid);
    this->clear_edges(stage, lo, hi, piece.grid);
    each_normalised(stage, piece, [&](long place, Vector value, int count) {
      Isa::store(piece.grid + place, gelu<Isa>(value), count);
    });
  }

  // use(first, count) for some pixels of the piece at a time, counted from its first one, after their patches were
  // gathered.
  template <class Use>
  void each_chunk(int stage, const Piece& piece, const Use& use) const {
    const int width = columns_of_stage(stage), pixels = (piece.hi - piece.lo) * width, chunk = this->patches_of(stage);
    for (int first = 0; first < pixels; first += chunk) {
      const int count = pixels - first < chunk ? pixels - first : chunk;
      for (int i = 0; i < count; ++i)
        this->gather(stage, piece.grid + lines_of(stage, first + i), (first + i) % width,
                     piece.patches + i * this->length_of(stage));
      use(first, count);
    }
  }

  // Where the three lines of a grid begin that a pixel of the piece is computed from.
  long lines_of(int stage, int pixel) const { return 2L * (pixel / columns_of_stage(stage)) * this->line_of(stage); }

  // A convolution; of each channel the mean over the piece, and the squares around it.
  void convolve_piece(int stage, const Piece& piece, float* sums) const {
    float* to = convolved[stage] + start_of(stage, piece.image, piece.lo) * L(stage);
    read_input(stage, piece);
    each_chunk(stage, piece, [&](int first, int count) {
      multiply<Isa>(
          count, rows_of<Isa>(piece.patches, this->length_of(stage)), this->weights[stage],
          [&](int i, int j, Vector value) { Isa::store(to + (static_cast<long>(first) + i) * L(stage) + j, value); });
    });
    const long pixels = start_of(stage, 0, piece.hi - piece.lo);
    for (int c = 0; c < op.widths[stage + 1]; c += lanes) {
      Vector sum = Isa::fill(0), squares = Isa::fill(0);
      for (long i = 0; i < pixels; ++i) sum = sum + Isa::load(to + i * L(stage) + c);
      const Vector mean = sum * Isa::fill(1.0f / pixels);
      for (long i = 0; i < pixels; ++i) {
        const Vector centred = Isa::load(to + i * L(stage) + c) - mean;
        squares = Isa::fma(centred, centred, squares);
      }
      Isa::store(sums + c, mean);
      Isa::store(sums + L(stage) + c, squares);
    }
  }

  // Of channel c over the batch, from those of the pieces.
  void statistics_of(int stage, int c, const float* sums) const {
    const int pieces = pieces_of(stage);
    const double total = static_cast<double>(batch) * pixels_of_stage(stage);
    double mean = 0, squares = 0;
    Piece piece;
    const auto add = [&](const auto& of) {
      for (int item = 0; item < batch * pieces; ++item) {
        set_piece(stage, item / pieces, item % pieces, piece);
        of(sums + item * 2 * L(stage) + c, start_of(stage, 0, piece.hi - piece.lo));
      }
    };
    add([&](const float* of, double pixels) { mean += of[0] * pixels / total; });
    add([&](const float* of, double pixels) { squares += of[L(stage)] + (of[0] - mean) * (of[0] - mean) * pixels; });
    training.mean[stage][c] = mean, training.variance[stage][c] = squares / total;
    statistics[stage][c] = mean;
    statistics[stage][L(stage) + c] = 1 / __builtin_sqrt(squares / total + 1e-5);
  }

  // A row of tokens: BatchNorm of the last stage and the positional encoding.
  void write_tokens(int item) const {
    const int last = stages - 1, row = item % rows_of_stage(last), width = columns_of_stage(last);
    const long C = op.widths[stages], first = static_cast<long>(row) * width;
    const long start = start_of(last, item / rows_of_stage(last), row);
    for (long c = 0; c < C; c += lanes) {
      Vector scale, shift;
      batch_norm(last, c, scale, shift);
      for (long i = 0; i < width; ++i) {
        const Vector normed = Isa::fma(Isa::load(convolved[last] + (start + i) * L(last) + c), scale, shift);
        Isa::store(op.y + (start + i) * C + c, normed + Isa::load(op.positions + (first + i) * C + c, C - c), C - c);
      }
    }
  }
};

}  // namespace passl_xcit
