// The convolutional stem: log2(p) convolutions 3x3 of stride 2, each with BatchNorm, GELU between them, and the
// positional encoding added to the tokens. For evaluation: BatchNorm is a factor and a sum for each channel.
//
// Stages count from 0. Images and feature maps lie in the workspace as grids [rows, width + 1, channels] with a column
// of zeros on the left, and a row of zeros above the first row of an image. A piece of work is some rows of tokens of
// an image, with as many rows of the maps before them as those need: rows lo to hi - 1 of a map need rows 2 lo - 1 to
// 2 hi - 1 of the one before.
#pragma once

#include "elementwise.h"
#include "operators.h"

namespace passl_xcit {

constexpr int kBandRows = 7;              // rows of tokens of a piece of work, about
constexpr int kPixels = 96;               // output pixels that are computed at a time, at most
constexpr int kPatchFloats = 128 * 1024;  // room for their patches, about

template <class Isa>
struct StemForward {
  using Vector = typename Isa::Vector;
  using Element = typename Isa::Element;
  static constexpr int lanes = Isa::lanes;
  static constexpr int wide = panel_columns<Isa>;

  const Stem& op;
  const int stages, rows, bands, band_rows;        // rows of tokens
  Panels<Isa> weights[kMaxStages];                 // [9 * in, out], with BatchNorm's factor
  float *scales[kMaxStages], *shifts[kMaxStages];  // [out], BatchNorm as a factor and a sum

  struct Band {
    long image;
    float* y;                                    // the image's tokens
    int lo[kMaxStages + 1], hi[kMaxStages + 1];  // of the input of each stage, and of the last output
    Element* grids[kMaxStages];                  // the input of each stage
    Element* patches;
  };

  explicit StemForward(const Stem& stem)
      : op(stem),
        stages(stem.stages),
        rows(stem.height >> stem.stages),
        bands((rows + kBandRows - 1) / kBandRows),
        band_rows((rows + bands - 1) / bands) {}

  size_t run(void* memory, const Team& team) {
    Workspace workspace(memory), packed(op.packed);
    take_weights(op.packed ? packed : workspace);
    Band of_thread[kMaxThreads];
    for (int thread = 0; thread < team.threads; ++thread) take_band(workspace, of_thread[thread]);
    if (!memory) return workspace.bytes();
    if (!op.packed) pack_weights(team);
    team.each(op.batch * bands, [&](int item, int thread) {
      Band& band = of_thread[thread];
      band.image = item / bands;
      band.y = op.y + band.image * rows * width_of(stages) * op.widths[stages];
      set_rows(item % bands * band_rows, band);
      if (band.lo[stages] >= band.hi[stages]) return;
      read_image(band.image, band.lo[0], band.hi[0], band.grids[0]);
      for (int stage = 0; stage < stages; ++stage) convolve(stage, band);
    });
    return workspace.bytes();
  }

  // The convolutions, with BatchNorm folded into them.
  void take_weights(Workspace& workspace) {
    take_convolutions(workspace);
    for (int stage = 0; stage < stages; ++stage)
      for (float** row : {&scales[stage], &shifts[stage]}) *row = workspace.floats(padded<Isa>(op.widths[stage + 1]));
  }

  void pack_weights(const Team& team) const {
    for (int stage = 0; stage < stages; ++stage) {
      fold_batch_norm(stage);
      team.each(weights[stage].count(), [&](int panel, int) { pack_panel(stage, panel, scales[stage]); });
    }
  }

 protected:
  int width_of(int stage) const { return op.width >> stage; }
  long line_of(int stage) const { return (width_of(stage) + 1) * op.widths[stage]; }
  // Elements of a patch, in whole units.
  long length_of(int stage) const { return units<Isa>(9 * op.widths[stage]) * Isa::per_unit; }
  // Patches [pixels, 9 * in] that are multiplied at a time.
  int patches_of(int stage) const {
    const int most = kPixels / Isa::tile_rows, tiles = kPatchFloats / (9 * op.widths[stage]) / Isa::tile_rows;
    return (tiles < 1 ? 1 : tiles > most ? most : tiles) * Isa::tile_rows;
  }

  void take_convolutions(Workspace& workspace) {
    for (int stage = 0; stage < stages; ++stage) {
      weights[stage] = take_panels<Isa>(workspace, 9 * op.widths[stage], op.widths[stage + 1]);
    }
  }

  void take_band(Workspace& workspace, Band& band) const {
    int most = band_rows;
    size_t patches = 0;
    for (int stage = stages - 1; stage >= 0; --stage) {
      most = 2 * most + 1;
      band.grids[stage] = reinterpret_cast<Element*>(workspace.floats(most * line_of(stage)));
      const size_t size = static_cast<size_t>(patches_of(stage)) * length_of(stage);
      patches = size > patches ? size : patches;
    }
    band.patches = reinterpret_cast<Element*>(workspace.floats(patches));
  }

  void fold_batch_norm(int stage) const {
    for (int c = 0; c < op.widths[stage + 1]; ++c) {
      scales[stage][c] = op.bn_weight[stage][c] / __builtin_sqrtf(op.bn_variance[stage][c] + 1e-5f);
      shifts[stage][c] = op.bn_bias[stage][c] - op.bn_mean[stage][c] * scales[stage][c];
    }
  }

  // Packs a panel of a stage's weight, its columns times `factors` if there are any.
  void pack_panel(int stage, int panel, const float* factors) const {
    const int in = op.widths[stage], first = panel * wide;
    const int count = op.widths[stage + 1] - first < wide ? op.widths[stage + 1] - first : wide;
    float row[wide] = {};
    for (int tap = 0; tap < 9; ++tap)
      for (int i = 0; i < in; ++i) {
        for (int j = 0; j < count; ++j)
          row[j] =
              op.weights[stage][(static_cast<long>(first + j) * in + i) * 9 + tap] * (factors ? factors[first + j] : 1);
        for (int j = 0; j < wide; j += lanes) weights[stage].put(panel, tap * in + i, j, Isa::load(row + j));
      }
  }

  // The rows of each map that the rows of tokens from `first` on need. Row -1 is the zeros above the image.
  void set_rows(int first, Band& band) const {
    band.lo[stages] = first;
    band.hi[stages] = first + band_rows < rows ? first + band_rows : rows;
    for (int stage = stages - 1; stage >= 0; --stage) {
      const int lo = band.lo[stage + 1];
      band.lo[stage] = 2 * (lo < 0 ? 0 : lo) - 1;
      band.hi[stage] = 2 * band.hi[stage + 1];
    }
  }

  // Zeros left of the rows lo to hi - 1 of a map, and above its first row.
  void clear_edges(int map, int lo, int hi, Element* grid) const {
    const long line = line_of(map);
    for (int row = 0; row < hi - lo; ++row) __builtin_memset(grid + row * line, 0, op.widths[map] * sizeof(Element));
    if (lo < 0) __builtin_memset(grid, 0, line * sizeof(Element));
  }

  // Rows lo to hi - 1 of an image into a grid.
  void read_image(long image, int lo, int hi, Element* grid) const {
    clear_edges(0, lo, hi, grid);
    const long in = op.widths[0];
    for (int row = lo < 0 ? 0 : lo; row < hi; ++row)
      for (long c = 0; c < in; ++c) {
        const float* from = op.images + ((image * in + c) * op.height + row) * op.width;
        Element* to = grid + (row - lo) * line_of(0) + in + c;
        for (long column = 0; column < op.width; column += lanes) {
          Element elements[lanes];
          Isa::store(elements, Isa::load(from + column, op.width - column));
          for (long i = 0; i < lanes && column + i < op.width; ++i) to[(column + i) * in] = elements[i];
        }
      }
  }

  void convolve(int stage, const Band& band) const {
    const int lo = band.lo[stage + 1] < 0 ? 0 : band.lo[stage + 1];
    const int width = width_of(stage + 1), pixels = (band.hi[stage + 1] - lo) * width, chunk = patches_of(stage);
    const long out = op.widths[stage + 1], length = length_of(stage);
    if (stage < stages - 1) clear_edges(stage + 1, band.lo[stage + 1], band.hi[stage + 1], band.grids[stage + 1]);
    long row = lo, column = 0;
    for (int first = 0; first < pixels; first += chunk) {
      const int count = pixels - first < chunk ? pixels - first : chunk;
      long places[kPixels];  // of the outputs, in the grid or among the image's tokens
      for (int i = 0; i < count; ++i) {
        const Element* lines = band.grids[stage] + (2 * row - 1 - band.lo[stage]) * line_of(stage);
        gather(stage, lines, column, band.patches + i * length);
        places[i] = stage == stages - 1 ? (row * width + column) * out
                                        : (row - band.lo[stage + 1]) * line_of(stage + 1) + (column + 1) * out;
        if (++column == width) column = 0, ++row;
      }
      multiply<Isa>(count, rows_of<Isa>(band.patches, length), weights[stage], [&](int i, int j, Vector value) {
        finish(stage, band, places[i] + j, out - j, value + Isa::load(shifts[stage] + j));
      });
    }
  }

  void finish(int stage, const Band& band, long place, int count, Vector value) const {
    if (stage < stages - 1) return Isa::store(band.grids[stage + 1] + place, gelu<Isa>(value), count);
    Isa::store(band.y + place, value + Isa::load(op.positions + place, count), count);
  }

  // The nine pixels below an output pixel, one after the other, from three lines of a grid. Copies run over the end:
  // the next one covers that.
  void gather(int stage, const Element* lines, long column, Element* to) const {
    constexpr int step = lanes * Isa::per_unit;
    const int three = 3 * op.widths[stage];
    Element* const end = to + 3 * three;
    for (int y = 0; y < 3; ++y, to += three) {
      const Element* from = lines + y * line_of(stage) + 2 * column * op.widths[stage];
      for (int c = 0; c < three; c += step) copy(from + c, to + c);
    }
    if (three % Isa::per_unit) *end = 0;
  }

  static void copy(const Element* from, Element* to) {
    Isa::store(reinterpret_cast<float*>(to), Isa::load(reinterpret_cast<const float*>(from)));
  }
};

}  // namespace passl_xcit
