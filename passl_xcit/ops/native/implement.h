// The table of all operators for one instruction set. Those for class attention, CrossViT's fusion among them, are in
// float32 always.
#pragma once

#include "attention_backward.h"
#include "class_training.h"
#include "cross_training.h"
#include "stem_backward.h"
#include "update.h"
#include "xca_backward.h"

namespace passl_xcit {

template <template <class> class Forward, class Isa, class Struct>
size_t run(const void* of, void* workspace, const Team& team) {
  return Forward<Isa>(*static_cast<const Struct*>(of)).run(workspace, team);
}

template <template <class> class Forward, class Isa, class Struct>
size_t pack(const void* of, void* packed, const Team& team) {
  Forward<Isa> forward(*static_cast<const Struct*>(of));
  Workspace workspace(packed);
  forward.take_weights(workspace);
  if (packed) forward.pack_weights(team);
  return workspace.bytes();
}

template <template <class> class Forward, class Isa, class Struct>
size_t saved_of(const void* of, void*, const Team&) {
  return Forward<Isa>(*static_cast<const Struct*>(of)).saved_bytes;
}

template <class Isa>
const Operator* implemented() {
  using Float = typename Isa::Float;
  static constexpr Operator operators[] = {
      {"xca_block", run<XcaBlockForward, Isa, XcaBlock>},
      {"xca_block_packed", pack<XcaBlockForward, Isa, XcaBlock>},
      {"xca_training", run<XcaBlockTraining, Isa, XcaTraining>},
      {"xca_saved", saved_of<XcaBlockTraining, Isa, XcaTraining>},
      {"xca_backward", run<XcaBlockBackward, Isa, XcaBackward>},
      {"class_block", run<ClassBlockForward, Float, ClassBlock>},
      {"class_block_packed", pack<ClassBlockForward, Float, ClassBlock>},
      {"class_training", run<ClassTrainingForward, Float, ClassTraining>},
      {"class_saved", saved_of<ClassTrainingForward, Float, ClassTraining>},
      {"class_backward", run<ClassTrainingBackward, Float, ClassBackward>},
      {"stem", run<StemForward, Isa, Stem>},
      {"stem_packed", pack<StemForward, Isa, Stem>},
      {"stem_training", run<StemTrainingForward, Isa, StemTraining>},
      {"stem_saved", saved_of<StemTrainingForward, Isa, StemTraining>},
      {"stem_backward", run<StemTrainingBackward, Isa, StemBackward>},
      {"attention_block", run<AttentionBlockForward, Isa, AttentionBlock>},
      {"attention_block_packed", pack<AttentionBlockForward, Isa, AttentionBlock>},
      {"attention_training", run<AttentionBlockTraining, Isa, AttentionTraining>},
      {"attention_saved", saved_of<AttentionBlockTraining, Isa, AttentionTraining>},
      {"attention_backward", run<AttentionBlockBackward, Isa, AttentionBackward>},
      {"cross_attention", run<CrossAttentionForward, Float, CrossAttention>},
      {"cross_attention_packed", pack<CrossAttentionForward, Float, CrossAttention>},
      {"cross_training", run<CrossTrainingForward, Float, CrossTraining>},
      {"cross_saved", saved_of<CrossTrainingForward, Float, CrossTraining>},
      {"cross_backward", run<CrossTrainingBackward, Float, CrossBackward>},
      {"adamw", run<AdamWUpdate, Float, AdamW>},
      {"average", run<MovingAverage, Float, Average>},
      {"squares", run<SumOfSquares, Float, Squares>},
      {}};
  return operators;
}

}  // namespace passl_xcit
