// Threads: those of the OpenMP that torch brought, where it has as many for this caller as are asked for, else a small pool of
// our own. OpenMP's spin for milliseconds after each operation of torch's, on the cores that ours would need: a training step of
// two threads took as long as with one while both were there (benchmarks/NOTES.md). A forked child has the pool alone.
#pragma once
#include <atomic>
#include <cstdint>
#include <vector>

namespace fastvoc {

// Runs work(context, 0 … n - 1) on n threads at the same time, the caller being number 0; returns when all are done.
// All n really run at once, so they may wait for each other. Teams of several callers run side by side; their threads are
// kept for later calls. Throws std::runtime_error, before any work, where threads cannot be started.
void run_team(int n, void (*work)(void*, int), void* context);

// Runs work(context, 0 … n_pieces - 1), pieces that do not wait for each other, on at most n_threads threads; 1 ≤ n_pieces ≤ n_threads.
void run_pieces(int n_pieces, int n_threads, void (*work)(void*, int), void* context);

// Where the members of a team wait for each other. Spins, because a sample has dozens of such points and a sleep costs
// more than the whole sample; then yields; sleeps at last, for only an idle core takes a member from behind a neighbour on another.
class Barrier {
 public:
  explicit Barrier(int n) : n_(n) {}
  void wait();

 private:
  const int n_;
  std::atomic<int> arrived_{0}, asleep_{0};
  std::atomic<unsigned> round_{0};
};

// Work that a team shares out as it goes. Each member has an even part of a round's n things and takes pieces off its front; who
// has none left takes from the ends of the others' parts. So a member that is held up, by a neighbour on its core or by slower
// memory, holds nobody up for longer than a piece.
class Shares {
 public:
  explicit Shares(int n_threads) : parts_(2 * n_threads), n_threads_(n_threads) {}

  // Every member's, once a round: any time between its last take of round - 1 and a barrier before round begins.
  void deal(int round, int thread, std::int64_t n);
  // The next things first … last - 1 of this round, some `size` of them at most; false where none is left.
  bool take(int round, int thread, std::int64_t size, std::int64_t& first, std::int64_t& last);

 private:
  struct alignas(64) Part {
    std::int64_t first, last;
    std::atomic<std::uint64_t> left{0};  // grains of it that nobody took: from (high half) and to (low half)
  };
  Part& part(int round, int thread) { return parts_[(round & 1) * n_threads_ + thread]; }

  std::vector<Part> parts_;
  const int n_threads_;
};

}  // namespace fastvoc
