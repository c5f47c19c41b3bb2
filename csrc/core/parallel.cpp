#include "core/parallel.h"

#include <pthread.h>
#include <sched.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
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

struct Team {
  void (*work)(void*, int);
  void* context;
  std::atomic<int> running;
};

struct Member {  // a thread that belongs to one team at a time, or to none
  std::mutex mutex;
  std::condition_variable wake;
  Team* team = nullptr;
  int id = 0;

  void join(Team& next, int as) {
    {
      std::lock_guard<std::mutex> lock(mutex);
      team = &next, id = as;
    }
    wake.notify_one();
  }
};

struct Pool {
  std::mutex mutex;
  std::vector<Member*> idle;

  // n members for one team, all or none: half-filled teams would wait for each other for ever
  std::vector<Member*> claim(int n) {
    std::vector<Member*> members;
    members.reserve(n);
    std::lock_guard<std::mutex> lock(mutex);
    while (int(members.size()) < n && !idle.empty()) members.push_back(idle.back()), idle.pop_back();
    try {
      while (int(members.size()) < n) {
        auto fresh = std::make_unique<Member>();
        std::thread([this, me = fresh.get()] { serve(*me); }).detach();
        members.push_back(fresh.release());
      }
    } catch (const std::system_error& error) {
      idle.insert(idle.end(), members.begin(), members.end());
      throw std::runtime_error("fastvoc: cannot start " + std::to_string(n + 1) + " threads: " + error.what());
    }
    return members;
  }

  void serve(Member& me) {
    for (;;) {
      std::unique_lock<std::mutex> lock(me.mutex);
      me.wake.wait(lock, [&] { return me.team != nullptr; });
      Team& team = *me.team;
      const int id = me.id;
      me.team = nullptr;
      lock.unlock();
      team.work(team.context, id);
      {
        std::lock_guard<std::mutex> all(mutex);
        idle.push_back(&me);  // before the team counts it out, so that the next call finds it
      }
      team.running.fetch_sub(1, std::memory_order_release);
    }
  }
};

std::atomic<Pool*> pool{nullptr};  // never deleted: its threads live as long as the process

// After fork() the child has none of the threads, and a lock may be held by one that is gone: it makes its own pool.
[[maybe_unused]] const int at_fork = pthread_atfork(nullptr, nullptr, [] { pool.store(nullptr); });

Pool& the_pool() {
  Pool* made = pool.load(std::memory_order_acquire);
  if (made) return *made;
  auto fresh = std::make_unique<Pool>();
  if (pool.compare_exchange_strong(made, fresh.get(), std::memory_order_acq_rel)) return *fresh.release();
  return *made;  // another thread was first
}

}  // namespace

void run_team(int n, void (*work)(void*, int), void* context) {
  if (n <= 1) return work(context, 0);
  const std::vector<Member*> members = the_pool().claim(n - 1);
  Team team{work, context, {n - 1}};
  for (int i = 1; i < n; ++i) members[i - 1]->join(team, i);
  work(context, 0);
  spin_until([&] { return team.running.load(std::memory_order_acquire) == 0; });
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
