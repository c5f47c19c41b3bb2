#include "core/parallel.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <type_traits>
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

// Sleeps while `word` holds `value`, or for less; and ends the sleep of all. No system call but Linux's can be relied on to exist:
// elsewhere waiting is yielding.
template <class T>
void sleep_while(std::atomic<T>& word, T value) {
  static_assert(sizeof(word) == 4, "a futex is a word of 32 bits");
#if defined(__linux__)
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
#else
  sched_yield();
#endif
}

template <class T>
void wake_all(std::atomic<T>* word) {  // looks nothing up there: it may be gone
#if defined(__linux__)
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1 << 30, nullptr, nullptr, 0);
#endif
}

// Waits for `ready()`: spins for some 6 µs, longer than any wait among threads that all run; then gives the core away a hundred
// times, in case the thread that is waited for stands behind this one. Returns whether it is ready.
template <class F>
bool soon(F ready) {
  for (int i = 0; i < 256; ++i) {
    if (ready()) return true;
    pause();
  }
  for (int i = 0; i < 100; ++i) {
    if (ready()) return true;
    sched_yield();
  }
  return ready();
}

struct Team {
  void (*work)(void*, int);
  void* context;
  std::atomic<int> running;  // members, and kAsleep while the caller sleeps
  static constexpr int kAsleep = 1 << 30;
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
      // The last one out must not look at the team again: the caller, if awake, has left
      if (team.running.fetch_sub(1, std::memory_order_acq_rel) == Team::kAsleep + 1) wake_all(&team.running);
    }
  }
};

std::atomic<Pool*> pool{nullptr};  // never deleted: its threads live as long as the process

// After fork() the child has none of the threads, and a lock may be held by one that is gone: it makes its own pool.
// OpenMP's threads are gone too, and it would wait for them for ever: the child leaves it alone.
std::atomic<bool> forked{false};
[[maybe_unused]] const int at_fork = pthread_atfork(nullptr, nullptr, [] { pool.store(nullptr), forked.store(true); });

Pool& the_pool() {
  Pool* made = pool.load(std::memory_order_acquire);
  if (made) return *made;
  auto fresh = std::make_unique<Pool>();
  if (pool.compare_exchange_strong(made, fresh.get(), std::memory_order_acq_rel)) return *fresh.release();
  return *made;  // another thread was first
}

// The OpenMP that torch loaded for everyone, by the entry that GCC's and LLVM's both have; nothing is linked.
struct OpenMP {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned);
  int (*max_threads)();  // of the calling thread
  int (*team_size)();
  int (*member)();
};

#if defined(__SANITIZE_THREAD__)  // cannot see how OpenMP's threads meet
const OpenMP* openmp() { return nullptr; }
#else
const OpenMP* openmp() {
  static const OpenMP found = [] {
    OpenMP it;
    const auto look_up = [](auto& f, const char* name) {
      using F = std::remove_reference_t<decltype(f)>;
      f = reinterpret_cast<F>(dlsym(RTLD_DEFAULT, name));
    };
    look_up(it.parallel, "GOMP_parallel"), look_up(it.max_threads, "omp_get_max_threads");
    look_up(it.team_size, "omp_get_num_threads"), look_up(it.member, "omp_get_thread_num");
    return it;
  }();
  const bool whole = found.parallel && found.max_threads && found.team_size && found.member;
  return whole && !forked.load(std::memory_order_relaxed) ? &found : nullptr;
}
#endif

// Runs work on n threads of OpenMP's; false, and nothing is done, where it is not set to so many or gives fewer.
bool run_openmp(int n, void (*work)(void*, int), void* context) {
  const OpenMP* theirs = openmp();
  if (!theirs || theirs->max_threads() != n) return false;
  struct Call {
    const OpenMP& openmp;
    void (*work)(void*, int);
    void* context;
    const int n;
    std::atomic<bool> refused;
  } call{*theirs, work, context, n, {false}};
  const auto member = [](void* p) {
    Call& call = *static_cast<Call*>(p);
    if (call.openmp.team_size() == call.n) call.work(call.context, call.openmp.member());
    else call.refused.store(true, std::memory_order_relaxed);
  };
  theirs->parallel(member, &call, 0, 0);
  return !call.refused.load(std::memory_order_relaxed);
}

}  // namespace

void run_team(int n, void (*work)(void*, int), void* context) {
  if (n <= 1) return work(context, 0);
  if (run_openmp(n, work, context)) return;
  const std::vector<Member*> members = the_pool().claim(n - 1);
  Team team{work, context, {n - 1}};
  for (int i = 1; i < n; ++i) members[i - 1]->join(team, i);
  work(context, 0);
  std::atomic<int>& running = team.running;
  if (soon([&] { return running.load(std::memory_order_acquire) == 0; })) return;
  int now = running.fetch_or(Team::kAsleep, std::memory_order_acq_rel) | Team::kAsleep;
  for (; now != Team::kAsleep; now = running.load(std::memory_order_acquire)) sleep_while(running, now);
}

void run_pieces(int n_pieces, int n_threads, void (*work)(void*, int), void* context) {
  if (n_pieces <= 1) return work(context, 0);
  struct Pieces {
    void (*work)(void*, int);
    void* context;
    const int n;
  } pieces{work, context, n_pieces};
  // As many threads as torch has, though some have nothing to do: OpenMP ends and starts threads where their number changes
  const auto mine = [](void* p, int i) {
    Pieces& pieces = *static_cast<Pieces*>(p);
    if (i < pieces.n) pieces.work(pieces.context, i);
  };
  if (!run_openmp(n_threads, mine, &pieces)) run_team(n_pieces, work, context);
}

void Barrier::wait() {
  if (n_ == 1) return;
  const unsigned round = round_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == n_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    // In one order with what sleepers do: either they see the new round or they are seen here
    round_.store(round + 1, std::memory_order_seq_cst);
    if (asleep_.load(std::memory_order_seq_cst)) wake_all(&round_);
    return;
  }
  const auto over = [&] { return round_.load(std::memory_order_seq_cst) != round; };
  if (soon(over)) return;
  asleep_.fetch_add(1, std::memory_order_seq_cst);
  while (!over()) sleep_while(round_, round);
  asleep_.fetch_sub(1, std::memory_order_seq_cst);
}

constexpr std::int64_t kShareGrain = 12;  // things: whole blocks of rows of every product

void Shares::deal(int round, int thread, std::int64_t n) {
  Part& mine = part(round, thread);
  const auto end_of = [&](int parts) { return n / n_threads_ * parts + n % n_threads_ * parts / n_threads_; };
  mine.first = end_of(thread), mine.last = end_of(thread + 1);
  mine.left.store(std::uint64_t((mine.last - mine.first + kShareGrain - 1) / kShareGrain), std::memory_order_relaxed);
}

bool Shares::take(int round, int thread, std::int64_t size, std::int64_t& first, std::int64_t& last) {
  const std::uint64_t most = std::max<std::uint64_t>(1, size / kShareGrain);
  for (int i = 0; i < n_threads_; ++i) {
    Part& from = part(round, (thread + i) % n_threads_);
    std::uint64_t left = from.left.load(std::memory_order_relaxed);
    for (;;) {
      const std::uint64_t begin = left >> 32, end = left & 0xffffffff;
      if (begin == end) break;
      const bool mine = i == 0;
      const std::uint64_t n = std::min(most, mine ? end - begin : (end - begin + 1) / 2);
      const std::uint64_t at = mine ? begin : end - n;
      if (!from.left.compare_exchange_weak(left, mine ? left + (n << 32) : left - n, std::memory_order_relaxed)) continue;
      first = from.first + std::int64_t(at) * kShareGrain;
      last = std::min(from.last, first + std::int64_t(n) * kShareGrain);
      return true;
    }
  }
  return false;
}

}  // namespace fastvoc
