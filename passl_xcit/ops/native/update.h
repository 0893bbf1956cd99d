// What moves many tensors at once, element by element: AdamW, a moving average, and the sum of squares.
//
// All elements are one row of pieces of kPiece, no piece longer than its tensor; a thread takes a piece at a time.
#pragma once

#include "isa.h"
#include "operators.h"

namespace passl_xcit {

constexpr int64_t kPiece = 16 * 1024;

template <class Isa>
int64_t pieces_of(int64_t size) {
  return (size + kPiece - 1) / kPiece;
}

// task(tensor, first, count, piece) for all pieces of some tensors.
template <class Isa, class Tensor, class Task>
void each_piece(int64_t tensors, const Tensor* list, const Team& team, const Task& task) {
  int64_t pieces = 0;
  for (int64_t i = 0; i < tensors; ++i) pieces += pieces_of<Isa>(list[i].size);
  team.each(pieces, [&](int64_t piece, int) {
    const Tensor* tensor = list;
    int64_t index = piece;
    for (; index >= pieces_of<Isa>(tensor->size); ++tensor) index -= pieces_of<Isa>(tensor->size);
    const int64_t first = index * kPiece, left = tensor->size - first;
    task(*tensor, first, left < kPiece ? left : kPiece, piece);
  });
}

// task(i, left) for all vectors from element `first` on; the last one may have fewer elements, `left`.
template <class Isa, class Task>
void each_vector(int64_t first, int64_t count, const Task& task) {
  const int64_t end = first + count;
  for (int64_t i = first; i < end; i += Isa::lanes) task(i, end - i < Isa::lanes ? end - i : Isa::lanes);
}

template <class Isa>
struct AdamWUpdate {
  using Vector = typename Isa::Vector;
  const AdamW& op;

  explicit AdamWUpdate(const AdamW& adamw) : op(adamw) {}

  size_t run(void* memory, const Team& team) const {
    if (!memory) return 1;
    each_piece<Isa>(op.count, op.tensors, team,
               [&](const AdamWTensor& tensor, int64_t first, int64_t count, int64_t) { move(tensor, first, count); });
    for (int64_t i = 0; i < op.count; ++i) {
      *op.tensors[i].beta1_power *= op.beta1;
      *op.tensors[i].beta2_power *= op.beta2;
    }
    return 1;
  }

 private:
  // w -= rate decay w, then w -= rate m^ / (sqrt v^ + eps) with m^ = m / (1 - beta1^t), v^ = v / (1 - beta2^t).
  void move(const AdamWTensor& to, int64_t first, int64_t count) const {
    const double root = __builtin_sqrt(1 - static_cast<double>(*to.beta2_power));
    const Vector step = Isa::fill(op.rate * root / (1 - static_cast<double>(*to.beta1_power)));
    const Vector epsilon = Isa::fill(op.epsilon * root), keep = Isa::fill(to.decays ? 1 - op.rate * op.decay : 1);
    const Vector beta1 = Isa::fill(op.beta1), rest1 = Isa::fill(1 - op.beta1);
    const Vector beta2 = Isa::fill(op.beta2), rest2 = Isa::fill(1 - op.beta2);
    each_vector<Isa>(first, count, [&](int64_t i, int left) {
      const Vector gradient = Isa::load(to.gradient + i, left);
      const Vector mean = Isa::fma(beta1, Isa::load(to.moment1 + i, left), rest1 * gradient);
      const Vector square = Isa::fma(beta2, Isa::load(to.moment2 + i, left), rest2 * gradient * gradient);
      Isa::store(to.moment1 + i, mean, left);
      Isa::store(to.moment2 + i, square, left);
      const Vector update = step * mean / (Isa::sqrt(square) + epsilon);
      Isa::store(to.weight + i, Isa::load(to.weight + i, left) * keep - update, left);
    });
  }
};

template <class Isa>
struct MovingAverage {
  using Vector = typename Isa::Vector;
  const Average& op;

  explicit MovingAverage(const Average& average) : op(average) {}

  size_t run(void* memory, const Team& team) const {
    if (!memory) return 1;
    const Vector decay = Isa::fill(op.decay), rest = Isa::fill(1 - op.decay);
    each_piece<Isa>(op.count, op.tensors, team, [&](const AveragedTensor& to, int64_t first, int64_t count, int64_t) {
      each_vector<Isa>(first, count, [&](int64_t i, int left) {
        const Vector moved = Isa::fma(decay, Isa::load(to.average + i, left), rest * Isa::load(to.value + i, left));
        Isa::store(to.average + i, moved, left);
      });
    });
    return 1;
  }
};

// Pieces are summed in float64 in their order: the same for any number of threads.
template <class Isa>
struct SumOfSquares {
  using Vector = typename Isa::Vector;
  const Squares& op;

  explicit SumOfSquares(const Squares& squares) : op(squares) {}

  size_t run(void* memory, const Team& team) const {
    int64_t pieces = 0;
    for (int64_t i = 0; i < op.count; ++i) pieces += pieces_of<Isa>(op.tensors[i].size);
    if (!memory) return (pieces + 1) * sizeof(double);
    double* sums = static_cast<double*>(memory);
    each_piece<Isa>(op.count, op.tensors, team,
                    [&](const SquaredTensor& of, int64_t first, int64_t count, int64_t piece) {
                      sums[piece] = sum_of(of.value + first, count);
                    });
    *op.sum = 0;
    for (int64_t piece = 0; piece < pieces; ++piece) *op.sum += sums[piece];
    return 0;
  }

 private:
  static double sum_of(const float* from, int64_t count) {
    double total = 0;
    for (int64_t block = 0; block < count; block += 1024) {  // few enough for float32 not to lose what is added
      Vector sum = Isa::fill(0);
      each_vector<Isa>(block, count - block < 1024 ? count - block : 1024, [&](int64_t i, int left) {
        const Vector value = Isa::load(from + i, left);
        sum = Isa::fma(value, value, sum);
      });
      total += Isa::sum(sum);
    }
    return total;
  }
};

}  // namespace passl_xcit
