#include "implement.h"

namespace passl_xcit {

const Operator* avx512_bf16_operators() { return implemented<Avx512Bf16>(); }

}  // namespace passl_xcit
