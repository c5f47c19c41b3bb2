// A small thread pool of our own: no OpenMP, so that nothing collides with the one inside torch.
#pragma once
#include <atomic>

namespace fastvoc {

// Runs work(context, 0 … n - 1) on n threads at the same time, the caller being number 0; returns when all are done.
// All n really run at once, so they may wait for each other. Teams of several callers run side by side; their threads are
// kept for later calls. Throws std::runtime_error, before any work, where threads cannot be started.
void run_team(int n, void (*work)(void*, int), void* context);

// Where the members of a team wait for each other. Spins, because a sample has dozens of such points and a sleep costs
// more than the whole sample; yields after a while, so that a machine with too few cores still gets on.
class Barrier {
 public:
  explicit Barrier(int n) : n_(n) {}
  void wait();

 private:
  const int n_;
  std::atomic<int> arrived_{0};
  std::atomic<unsigned> round_{0};
};

}  // namespace fastvoc
