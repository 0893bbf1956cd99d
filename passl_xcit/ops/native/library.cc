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
  Operators (*operators)();
};

constexpr Set kSets[] = {{"avx512", has_avx512, avx512_operators},
                         {"avx2", has_avx2, avx2_operators},
                         {"avx512_bf16", has_avx512_bf16, avx512_bf16_operators}};

Runtime runtime;

template <class Operator>
size_t run(size_t (*operators)(const Operator&, void*, const Team&), const Operator* op, void* workspace, int threads) {
  const Team team{&runtime, threads < 1 ? 1 : threads > kMaxThreads ? kMaxThreads : threads};
  return operators(*op, workspace, team);
}

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

// The operators: with a null workspace they compute nothing, and return how many bytes it needs.
size_t passl_xcit_xca_block(const Set* set, const XcaBlock* op, void* workspace, int threads) {
  return run(set->operators().xca_block, op, workspace, threads);
}
size_t passl_xcit_xca_training(const Set* set, const XcaTraining* op, void* workspace, int threads) {
  return run(set->operators().xca_training, op, workspace, threads);
}
size_t passl_xcit_xca_saved(const Set* set, const XcaTraining* op, void* workspace, int threads) {
  return run(set->operators().xca_saved, op, workspace, threads);
}
size_t passl_xcit_xca_backward(const Set* set, const XcaBackward* op, void* workspace, int threads) {
  return run(set->operators().xca_backward, op, workspace, threads);
}
size_t passl_xcit_class_block(const Set* set, const ClassBlock* op, void* workspace, int threads) {
  return run(set->operators().class_block, op, workspace, threads);
}
size_t passl_xcit_class_training(const Set* set, const ClassTraining* op, void* workspace, int threads) {
  return run(set->operators().class_training, op, workspace, threads);
}
size_t passl_xcit_class_saved(const Set* set, const ClassTraining* op, void* workspace, int threads) {
  return run(set->operators().class_saved, op, workspace, threads);
}
size_t passl_xcit_class_backward(const Set* set, const ClassBackward* op, void* workspace, int threads) {
  return run(set->operators().class_backward, op, workspace, threads);
}
size_t passl_xcit_stem(const Set* set, const Stem* op, void* workspace, int threads) {
  return run(set->operators().stem, op, workspace, threads);
}
size_t passl_xcit_stem_training(const Set* set, const StemTraining* op, void* workspace, int threads) {
  return run(set->operators().stem_training, op, workspace, threads);
}
size_t passl_xcit_stem_saved(const Set* set, const StemTraining* op, void* workspace, int threads) {
  return run(set->operators().stem_saved, op, workspace, threads);
}
size_t passl_xcit_stem_backward(const Set* set, const StemBackward* op, void* workspace, int threads) {
  return run(set->operators().stem_backward, op, workspace, threads);
}
size_t passl_xcit_attention_block(const Set* set, const AttentionBlock* op, void* workspace, int threads) {
  return run(set->operators().attention_block, op, workspace, threads);
}
size_t passl_xcit_attention_training(const Set* set, const AttentionTraining* op, void* workspace, int threads) {
  return run(set->operators().attention_training, op, workspace, threads);
}
size_t passl_xcit_attention_saved(const Set* set, const AttentionTraining* op, void* workspace, int threads) {
  return run(set->operators().attention_saved, op, workspace, threads);
}
size_t passl_xcit_attention_backward(const Set* set, const AttentionBackward* op, void* workspace, int threads) {
  return run(set->operators().attention_backward, op, workspace, threads);
}
size_t passl_xcit_cross_attention(const Set* set, const CrossAttention* op, void* workspace, int threads) {
  return run(set->operators().cross_attention, op, workspace, threads);
}
size_t passl_xcit_cross_training(const Set* set, const CrossTraining* op, void* workspace, int threads) {
  return run(set->operators().cross_training, op, workspace, threads);
}
size_t passl_xcit_cross_saved(const Set* set, const CrossTraining* op, void* workspace, int threads) {
  return run(set->operators().cross_saved, op, workspace, threads);
}
size_t passl_xcit_cross_backward(const Set* set, const CrossBackward* op, void* workspace, int threads) {
  return run(set->operators().cross_backward, op, workspace, threads);
}
size_t passl_xcit_adamw(const Set* set, const AdamW* op, void* workspace, int threads) {
  return run(set->operators().adamw, op, workspace, threads);
}
size_t passl_xcit_average(const Set* set, const Average* op, void* workspace, int threads) {
  return run(set->operators().average, op, workspace, threads);
}
size_t passl_xcit_squares(const Set* set, const Squares* op, void* workspace, int threads) {
  return run(set->operators().squares, op, workspace, threads);
}
}
