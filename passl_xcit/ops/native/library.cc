// The functions that Python calls (passl_xcit/ops/library.py).
#include <cstring>

#include "operators.h"

#ifndef PASSL_XCIT_DIGEST
#define PASSL_XCIT_DIGEST ""
#endif

namespace {

using namespace passl_xcit;

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }

struct Set {
  const char* name;
  bool (*supported)();
  const Operator* (*operators)();
};

constexpr Set kSets[] = {{"avx512", has_avx512, avx512_operators},
                         {"avx2", has_avx2, avx2_operators},
                         {"avx512_bf16", has_avx512_bf16, avx512_bf16_operators}};

Runtime runtime;

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// Digest of the sources that this was built from.
const char* passl_xcit_digest() { return PASSL_XCIT_DIGEST; }

// Takes GOMP_parallel and omp_get_thread_num. To be called once, before an operator.
void passl_xcit_start(void* parallel, void* thread) {
  std::memcpy(&runtime.parallel, &parallel, sizeof parallel);
  std::memcpy(&runtime.thread, &thread, sizeof thread);
}

// The instruction set `wanted`, or the best one for float32 where that is empty; null if the processor has it not.
const Set* passl_xcit_find_set(const char* wanted) {
  __builtin_cpu_init();
  for (const Set& set : kSets)
    if ((!*wanted || !std::strcmp(wanted, set.name)) && set.supported()) return &set;
  return nullptr;
}

const char* passl_xcit_set_name(const Set* set) { return set->name; }

// The operator of that name; null if there is none.
const Operator* passl_xcit_find_operator(const Set* set, const char* name) {
  for (const Operator* found = set->operators(); found->name; ++found)
    if (!std::strcmp(name, found->name)) return found;
  return nullptr;
}

size_t passl_xcit_run(const Operator* found, const void* of, void* workspace, int threads) {
  const Team team{&runtime, threads < 1 ? 1 : threads > kMaxThreads ? kMaxThreads : threads};
  return found->run(of, workspace, team);
}
}
