// Work on several threads, and the memory that it needs.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

namespace passl_xcit {

// The OpenMP runtime that Paddle itself uses (libiomp5), handed over by Python: a second one in the process would keep
// threads of its own busy, and libgomp hangs in a forked child.
struct Runtime {
  void (*parallel)(void (*task)(void*), void* data, unsigned threads, unsigned flags);  // GOMP_parallel
  int (*thread)();                                                                      // omp_get_thread_num
};

constexpr int kMaxThreads = 256;

struct Team {
  const Runtime* runtime;
  int threads;  // at most kMaxThreads

  // task(item, thread) for all items, in any order, on at most `threads` threads.
  template <class Task>
  void each(int items, const Task& task) const {
    if (threads == 1 || items == 1) {
      for (int item = 0; item < items; ++item) task(item, 0);
      return;
    }
    struct Shared {
      const Task& task;
      const Runtime* runtime;
      int items;
      std::atomic<int> next;
    } shared{task, runtime, items, {0}};
    auto work = [](void* data) {
      Shared& s = *static_cast<Shared*>(data);
      const int thread = s.runtime->thread();
      for (int item = s.next.fetch_add(1); item < s.items; item = s.next.fetch_add(1)) s.task(item, thread);
    };
    runtime->parallel(work, &shared, threads < items ? threads : items, 0);
  }

  // How many of some items threads take one each of, as far as they can be dealt out evenly; the rest all do together.
  int alone(int64_t items) const { return items / threads * threads; }

  Team one() const { return {runtime, 1}; }
};

// Hands out pieces of one piece of memory. Without memory it only counts: the same code that lays a workspace out
// says how large it has to be.
class Workspace {
 public:
  explicit Workspace(void* memory) : start_(reinterpret_cast<uintptr_t>(memory)), used_(0) {}

  float* floats(size_t count) {
    const uintptr_t aligned = (start_ + used_ + kAlign - 1) / kAlign * kAlign;
    used_ = aligned - start_ + count * sizeof(float) + kBeyond;
    return reinterpret_cast<float*>(aligned);
  }
  size_t bytes() const { return used_ + kAlign; }

 private:
  static constexpr size_t kAlign = 64;
  static constexpr size_t kBeyond = 256;  // vectors may be read, and panels written, beyond the end
  uintptr_t start_;
  size_t used_;
};

}  // namespace passl_xcit
