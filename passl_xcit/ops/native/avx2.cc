#include "implement.h"

namespace passl_xcit {

const Operator* avx2_operators() { return implemented<Avx2>(); }

}  // namespace passl_xcit
