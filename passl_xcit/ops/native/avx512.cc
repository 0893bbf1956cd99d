#include "implement.h"

namespace passl_xcit {

Operators avx512_operators() { return implemented<Avx512>(); }

}  // namespace passl_xcit
