#include "implement.h"

namespace passl_xcit {

Operators avx2_operators() { return implemented<Avx2>(); }

}  // namespace passl_xcit
