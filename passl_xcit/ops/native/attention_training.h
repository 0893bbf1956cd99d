// The transformer block in training: the forward pass, which saves what the backward pass needs.
//
// Letters as in attention_block.h.
#pragma once

#include "attention_block.h"

namespace passl_xcit {

template <class Isa>
struct AttentionBlockTraining : AttentionBlockForward<Isa> {
  using Base = AttentionBlockForward<Isa>;
  using Element = typename Isa::Element;
  using Float = typename Isa::Float;
  using Base::channels, Base::d, Base::heads, Base::hidden, Base::op, Base::P, Base::tokens;
  using typename Base::Images;

  const AttentionTraining& training;
  const int batch;
  Images saved;
  size_t saved_bytes;

  explicit AttentionBlockTraining(const AttentionTraining& of)
      : Base(of.block), training(of), batch(of.block.batch), saved{} {
    Workspace memory(of.saved);
    const size_t rows = static_cast<size_t>(batch) * tokens;
    saved.q = memory.floats(rows * P);
    saved.k = memory.floats(batch * Panels<Float>::size(channels, tokens));
    saved.v = memory.floats(batch * heads * Panels<Float>::size(tokens, d));
    saved.softmax = memory.floats(rows * heads * 2);
    saved.mixed = memory.floats(rows * P);
    saved.x1 = memory.floats(rows * P);
    saved.hidden = reinterpret_cast<Element*>(memory.floats(rows * padded<Isa>(hidden) / Isa::per_unit));
    saved.keep1 = of.keep1, saved.keep2 = of.keep2;
    saved_bytes = memory.bytes();
  }

  size_t run(void* memory, const Team& team) {
    Workspace workspace(memory);
    this->take_weights(workspace);
    float* scratch = workspace.floats(team.threads * this->scratch_size());
    if (!memory) return workspace.bytes();
    this->pack_weights(team);
    const int alone = team.alone(batch);
    team.each(alone, [&](int image, int thread) {
      this->phases(image, 1, from(image, scratch + thread * this->scratch_size()), team.one());
    });
    if (alone < batch) this->phases(alone, batch - alone, from(alone, scratch), team);
    return workspace.bytes();
  }

 protected:
  // What is saved of the images from `first` on.
  Images from(long first, float* scratch) const {
    Images to = saved;
    const long rows = first * tokens;
    to.q += rows * P, to.mixed += rows * P, to.x1 += rows * P, to.softmax += rows * heads * 2;
    to.hidden += rows * padded<Isa>(hidden);
    to.k = this->keys_in(saved, first).data, to.v = this->values_in(saved, first, 0).data;
    if (to.keep1) to.keep1 += first;
    if (to.keep2) to.keep2 += first;
    to.scratch = scratch;
    return to;
  }
};

}  // namespace passl_xcit
