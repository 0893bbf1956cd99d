#include "implement.h"

namespace passl_xcit {

const Operator* avx512_operators() { return implemented<Avx512>(); }

}  // namespace passl_xcit
