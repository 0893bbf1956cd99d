// The table of all operators for one instruction set. Class blocks are in float32 always: they take little time.
#pragma once

#include "class_block.h"
#include "stem.h"
#include "xca_block.h"

namespace passl_xcit {

template <template <class> class Forward, class Isa, class Operator>
size_t run(const Operator& op, void* workspace, const Team& team) {
  return Forward<Isa>(op).run(workspace, team);
}

template <class Isa>
Operators implemented() {
  return {run<XcaBlockForward, Isa, XcaBlock>, run<ClassBlockForward, typename Isa::Float, ClassBlock>,
          run<StemForward, Isa, Stem>};
}

}  // namespace passl_xcit
