// Matrix products of rows in memory with panels of columns, and the tile of sums in registers that they are made of.
//
// A panel holds 2 * lanes columns of a matrix B [depth, columns], row after row, zero beyond the last column: the part
// of B that stays in the first cache while a block of rows passes by. A tile is tile_rows x 2 vectors of sums.
#pragma once

#include "isa.h"
#include "parallel.h"

namespace passl_xcit {

template <class Isa>
constexpr int panel_columns = 2 * Isa::lanes;

template <class Isa>
int panels_of(int columns) {
  return (columns + panel_columns<Isa> - 1) / panel_columns<Isa>;
}

// Length of a row in the workspace that holds `columns`.
template <class Isa>
int padded(int columns) {
  return panels_of<Isa>(columns) * panel_columns<Isa>;
}

// Units that hold `elements`.
template <class Isa>
int units(int elements) {
  return (elements + Isa::per_unit - 1) / Isa::per_unit;
}

// Rows of a matrix that is multiplied: unit (i, k) is at data[i * row + k * depth].
struct Rows {
  const float* data;
  long row;
  long depth;
};

// Rows of `stride` elements, one after the other.
template <class Isa>
Rows rows_of(const typename Isa::Element* data, long stride) {
  return {reinterpret_cast<const float*>(data), stride / Isa::per_unit, 1};
}

// Rows in units of rows that follow one another, zero beyond the last: unit (k, j) is at data[k * stride + j]. Two of
// them make a product a^T b, whose depth are the rows.
struct RowUnits {
  const float* data;
  long stride;

  Rows transposed() const { return {data, 1, stride}; }
};

// Floats that `pair_rows` needs.
template <class Isa>
size_t pairs_size(int rows, int columns) {
  return Isa::per_unit == 1 ? 0 : static_cast<size_t>(units<Isa>(rows)) * (padded<Isa>(columns) + Isa::lanes);
}

// Rows of `stride` elements or floats as units in `memory`; rows of floats where a unit is a float stay where they are.
template <class Isa, class Element>
RowUnits pair_rows(int rows, const Element* from, long stride, int columns, float* memory) {
  if constexpr (Isa::per_unit == 1) {
    return {from, stride};
  } else {
    const long length = padded<Isa>(columns) + Isa::lanes;  // no power of two: rows would share a part of the cache
    const Element nothing[Isa::lanes] = {};
    for (int k = 0; k < rows; k += 2)
      for (int j = 0; j < columns; j += Isa::lanes) {
        const Element *low = from + k * stride + j, *high = k + 1 < rows ? low + stride : nothing;
        Isa::store(memory + k / 2 * length + j, Isa::pair(low, high));
      }
    return {memory, length};
  }
}

// Panels of a packed matrix, each [units of depth, panel_columns].
template <class Isa>
struct Panels {
  using Vector = typename Isa::Vector;

  float* data;
  int depth;  // in elements
  int columns;

  int count() const { return panels_of<Isa>(columns); }
  // Panel `index`, from row `k` on.
  float* panel(int index, int k = 0) const {
    return data + (static_cast<long>(index) * units<Isa>(depth) + k / Isa::per_unit) * panel_columns<Isa>;
  }
  static size_t size(int depth, int columns) { return static_cast<size_t>(units<Isa>(depth)) * padded<Isa>(columns); }

  // Packs panel `index` of `from`, row-major with rows of `stride` floats.
  void pack(int index, const float* from, long stride) const {
    const int first = index * panel_columns<Isa>;
    for (int k = 0; k < depth; ++k, from += stride)
      for (int j = 0; j < panel_columns<Isa>; j += Isa::lanes)
        put(index, k, j, Isa::load(from + first + j, columns - first - j));
  }

  // Sets row k of panel `index`, columns j to j + lanes - 1. The rows of a unit are set in their order.
  void put(int index, int k, int j, Vector x) const {
    float* to = panel(index, k) + j;
    if constexpr (Isa::per_unit == 2) x = k % 2 ? Isa::with_upper(Isa::load(to), x) : Isa::pair(x, Isa::fill(0));
    Isa::store(to, x);
  }
};

template <class Isa>
Panels<Isa> take_panels(Workspace& workspace, int depth, int columns) {
  return {workspace.floats(Panels<Isa>::size(depth, columns)), depth, columns};
}

// A matrix to be packed: row-major, with rows of `stride` floats.
template <class Isa>
struct Packing {
  Panels<Isa> to;
  const float* from;
  long stride;
};

// task(matrix, panel) for all panels of some matrices, dealt out to the threads together.
template <class Isa, class Task>
void each_panel(std::initializer_list<Packing<Isa>> matrices, const Team& team, const Task& task) {
  int panels = 0;
  for (const Packing<Isa>& matrix : matrices) panels += matrix.to.count();
  team.each(panels, [&](int panel, int) {
    const Packing<Isa>* matrix = matrices.begin();
    for (; panel >= matrix->to.count(); ++matrix) panel -= matrix->to.count();
    task(*matrix, panel);
  });
}

template <class Isa>
void pack_all(std::initializer_list<Packing<Isa>> matrices, const Team& team) {
  each_panel<Isa>(matrices, team, [](const auto& of, int panel) { of.to.pack(panel, of.from, of.stride); });
}

// Packs panel `index` of the transpose of `from` [columns, depth] with rows of `stride` floats.
template <class Isa>
void pack_transposed(const Panels<Isa>& to, int index, const float* from, long stride) {
  constexpr int wide = panel_columns<Isa>;
  const int first = index * wide, count = to.columns - first < wide ? to.columns - first : wide;
  float row[wide] = {};
  for (int k = 0; k < to.depth; ++k) {
    for (int j = 0; j < count; ++j) row[j] = from[(first + j) * stride + k];
    for (int j = 0; j < wide; j += Isa::lanes) to.put(index, k, j, Isa::load(row + j));
  }
}

template <class Isa>
void pack_all_transposed(std::initializer_list<Packing<Isa>> matrices, const Team& team) {
  each_panel<Isa>(matrices, team,
                  [](const auto& of, int panel) { pack_transposed<Isa>(of.to, panel, of.from, of.stride); });
}

constexpr int kBlockTokens = 192;  // tokens that pass through a transformer block at a time, about

// The same in whole tiles, so that blocks are of much the same size.
template <class Isa>
int even_blocks(int tokens) {
  const int blocks = tokens < kBlockTokens ? 1 : (tokens + kBlockTokens / 2) / kBlockTokens;
  return ((tokens + blocks - 1) / blocks + Isa::tile_rows - 1) / Isa::tile_rows * Isa::tile_rows;
}

// Where sums go: into a tile of their own, or to those that are in a matrix already.
template <class Isa>
struct Tile {
  static constexpr bool adds = false;
  float* data;  // [tile_rows, panel_columns]

  float* row(int i) const { return data + i * panel_columns<Isa>; }
};

struct Added {
  static constexpr bool adds = true;
  float* data;
  long stride;

  float* row(int i) const { return data + i * stride; }
};

// The sums over k < depth, in units, of a(i, k) b[k * b_depth + j], for `Count` rows i and a panel's columns j.
template <class Isa, int Count, class To>
__attribute__((noinline)) void sum_tile(int depth, Rows a, const float* b, long b_depth, To to) {
  using Vector = typename Isa::Vector;
  constexpr int lanes = Isa::lanes;
  Vector left[Count], right[Count];
#pragma GCC unroll 12
  for (int i = 0; i < Count; ++i) {
    left[i] = right[i] = Isa::fill(0);
    if (To::adds) __builtin_prefetch(to.row(i), 1), __builtin_prefetch(to.row(i) + lanes, 1);
  }
  // One pointer for three rows: with one each, there are not enough registers for addresses.
  const char* at[(Count + 2) / 3];
  const long row = a.row * sizeof(float), step = a.depth * sizeof(float);
#pragma GCC unroll 4
  for (int i = 0; i < (Count + 2) / 3; ++i) at[i] = reinterpret_cast<const char*>(a.data) + 3 * i * row;
  for (int k = 0; k < depth; ++k, b += b_depth) {
    const Vector b_left = Isa::load(b), b_right = Isa::load(b + lanes);
#pragma GCC unroll 12
    for (int i = 0; i < Count; ++i) {
      const Vector a_i = Isa::fill(*reinterpret_cast<const float*>(at[i / 3] + (i % 3) * row));
      left[i] = Isa::dot(a_i, b_left, left[i]);
      right[i] = Isa::dot(a_i, b_right, right[i]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < (Count + 2) / 3; ++i) at[i] += step;
  }
#pragma GCC unroll 12
  for (int i = 0; i < Count; ++i) {
    float* row = to.row(i);
    Isa::store(row, To::adds ? Isa::load(row) + left[i] : left[i]);
    Isa::store(row + lanes, To::adds ? Isa::load(row + lanes) + right[i] : right[i]);
  }
}

template <class Isa, class To, int Count = Isa::tile_rows>
void sum_rows(int rows, int depth, Rows a, const float* b, long b_depth, To to) {
  if constexpr (Count > 1) {
    if (rows < Count) return sum_rows<Isa, To, Count - 1>(rows, depth, a, b, b_depth, to);
  }
  sum_tile<Isa, Count, To>(depth, a, b, b_depth, to);
}

// Calls use(i, j, vector) with the product's elements (i, j ... j + lanes - 1), for all rows i and the columns j from
// `first_column` on that a panel has and that are below `columns`.
template <class Isa, class Use>
void multiply_panel(int rows, int depth, Rows a, const float* b, long b_depth, int first_column, int columns,
                    const Use& use) {
  const int vectors = columns - first_column > Isa::lanes ? 2 : 1;
  alignas(64) float tile[Isa::tile_rows * panel_columns<Isa>];
  for (int i0 = 0; i0 < rows; i0 += Isa::tile_rows) {
    const int count = rows - i0 < Isa::tile_rows ? rows - i0 : Isa::tile_rows;
    sum_rows<Isa>(count, depth, {a.data + i0 * a.row, a.row, a.depth}, b, b_depth, Tile<Isa>{tile});
    for (int i = 0; i < count; ++i)
      for (int j = 0; j < vectors; ++j)
        use(i0 + i, first_column + j * Isa::lanes, Isa::load(tile + i * panel_columns<Isa> + j * Isa::lanes));
  }
}

// to += the product, for all columns of a panel.
template <class Isa>
void add_panel(int rows, int depth, Rows a, const float* b, long b_depth, Added to) {
  for (int i = 0; i < rows; i += Isa::tile_rows)
    sum_rows<Isa>(rows - i < Isa::tile_rows ? rows - i : Isa::tile_rows, depth, {a.data + i * a.row, a.row, a.depth}, b,
                  b_depth, Added{to.row(i), to.stride});
}

// `multiply_panel` for all panels of B.
template <class Isa, class Use>
void multiply(int rows, Rows a, const Panels<Isa>& b, const Use& use) {
  for (int panel = 0; panel < b.count(); ++panel)
    multiply_panel<Isa>(rows, units<Isa>(b.depth), a, b.panel(panel), panel_columns<Isa>, panel * panel_columns<Isa>,
                        b.columns, use);
}

}  // namespace passl_xcit
