// The table of all operators for one instruction set. Those for class attention, CrossViT and the stem in training are
// in float32 always.
#pragma once

#include "attention_backward.h"
#include "class_training.h"
#include "cross_training.h"
#include "stem_backward.h"
#include "update.h"
#include "xca_backward.h"

namespace passl_xcit {

template <template <class> class Forward, class Isa, class Operator>
size_t run(const Operator& op, void* workspace, const Team& team) {
  return Forward<Isa>(op).run(workspace, team);
}

template <template <class> class Forward, class Isa, class Operator>
size_t saved_of(const Operator& op, void*, const Team&) {
  return Forward<Isa>(op).saved_bytes;
}

template <class Isa>
Operators implemented() {
  using Float = typename Isa::Float;
  return {run<XcaBlockForward, Isa, XcaBlock>,
          run<XcaBlockTraining, Isa, XcaTraining>,
          saved_of<XcaBlockTraining, Isa, XcaTraining>,
          run<XcaBlockBackward, Isa, XcaBackward>,
          run<ClassBlockForward, Float, ClassBlock>,
          run<ClassTrainingForward, Float, ClassTraining>,
          saved_of<ClassTrainingForward, Float, ClassTraining>,
          run<ClassTrainingBackward, Float, ClassBackward>,
          run<StemForward, Isa, Stem>,
          run<StemTrainingForward, Float, StemTraining>,
          saved_of<StemTrainingForward, Float, StemTraining>,
          run<StemTrainingBackward, Float, StemBackward>,
          run<AttentionBlockForward, Float, AttentionBlock>,
          run<AttentionBlockTraining, Float, AttentionTraining>,
          saved_of<AttentionBlockTraining, Float, AttentionTraining>,
          run<AttentionBlockBackward, Float, AttentionBackward>,
          run<CrossAttentionForward, Float, CrossAttention>,
          run<CrossTrainingForward, Float, CrossTraining>,
          saved_of<CrossTrainingForward, Float, CrossTraining>,
          run<CrossTrainingBackward, Float, CrossBackward>,
          run<AdamWUpdate, Float, AdamW>,
          run<MovingAverage, Float, Average>,
          run<SumOfSquares, Float, Squares>};
}

}  // namespace passl_xcit
