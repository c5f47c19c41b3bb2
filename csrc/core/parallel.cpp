#include "core/parallel.h"

#include <pthread.h>
#include <sched.h>

#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fastvoc {
namespace {

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// Waits until `ready()`: first spinning, some 10 µs (a pause takes 10 to 140 cycles), longer than any wait among threads
// that all run; then giving the core away, or a neighbour on one core would stall the whole team.
template <class F>
void spin_until(F ready) {
  for (int i = 0; i < 256; ++i) {
    if (ready()) return;
    pause();
  }
  while (!ready()) sched_yield();
}

struct Pool {
  std::mutex busy;  // one team at a time: members of two half-started teams would wait for each other for ever
  std::mutex mutex;
  std::condition_variable wake;
  std::vector<std::thread> threads;
  void (*work)(void*, int) = nullptr;
  void* context = nullptr;
  int team = 0;
  unsigned generation = 0;
  std::atomic<int> running{0};

  void member(int id, unsigned seen) {
    for (;;) {
      std::unique_lock<std::mutex> lock(mutex);
      wake.wait(lock, [&] { return generation != seen; });
      seen = generation;
      if (id >= team) continue;
      lock.unlock();
      work(context, id);
      running.fetch_sub(1, std::memory_order_release);
    }
  }
};

Pool* pool = nullptr;  // never deleted: its threads live as long as the process

void forget_pool() { pool = nullptr; }  // after fork() the child has none of the threads; it makes its own when needed

Pool& the_pool() {
  static std::mutex making;
  static const bool registered = (pthread_atfork(nullptr, nullptr, forget_pool), true);
  (void)registered;
  std::lock_guard<std::mutex> lock(making);
  if (!pool) pool = new Pool;
  return *pool;
}

}  // namespace

void run_team(int n, void (*work)(void*, int), void* context) {
  if (n <= 1) return work(context, 0);
  Pool& p = the_pool();
  std::lock_guard<std::mutex> one_team(p.busy);
  {
    std::lock_guard<std::mutex> lock(p.mutex);
    while (int(p.threads.size()) < n - 1) {
      const int id = int(p.threads.size()) + 1;
      p.threads.emplace_back([&p, id, seen = p.generation] { p.member(id, seen); });
      p.threads.back().detach();
    }
    p.work = work;
    p.context = context;
    p.team = n;
    p.running.store(n - 1, std::memory_order_relaxed);
    ++p.generation;
  }
  p.wake.notify_all();
  work(context, 0);
  spin_until([&] { return p.running.load(std::memory_order_acquire) == 0; });
}

void Barrier::wait() {
  if (n_ == 1) return;
  const unsigned round = round_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == n_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    round_.store(round + 1, std::memory_order_release);
  } else {
    spin_until([&] { return round_.load(std::memory_order_acquire) != round; });
  }
}

}  // namespace fastvoc
