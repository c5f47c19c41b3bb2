// Fibers: each CUDA thread is one, and all run on the caller's thread, one at a time, until they wait for each other.
//
// Why not std::thread: a fiber switch costs some nanoseconds whatever the machine is doing, the order is given by
// a seed and so repeatable, and a barrier that not everybody reaches is seen at once instead of hanging. ThreadSanitizer
// still sees threads: it is told of every fiber, and that a switch orders nothing; only barriers and atomics do.
#pragma once
#ifndef __x86_64__
#include <ucontext.h>
#endif

#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__SANITIZE_THREAD__)
#define EMULATOR_TSAN 1
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#else
inline void __tsan_acquire(void*) {}
inline void __tsan_release(void*) {}
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {

struct Barrier;

// While one lives, ThreadSanitizer overlooks what this fiber does: the emulator's own books are kept by all of them.
struct Overlooked {
#if EMULATOR_TSAN
  Overlooked() { AnnotateIgnoreReadsBegin("", 0), AnnotateIgnoreWritesBegin("", 0); }
  ~Overlooked() { AnnotateIgnoreWritesEnd("", 0), AnnotateIgnoreReadsEnd("", 0); }
#else
  Overlooked() {}
#endif
};

// A stack to go on with. swapcontext would do everywhere, but asks the kernel twice a switch.
#if defined(__x86_64__)
struct Context {
  void* sp = nullptr;
  void prepare(char* stack, std::size_t size, void (*entry)()) {
    void** top = reinterpret_cast<void**>(reinterpret_cast<std::uintptr_t>(stack + size) & ~std::uintptr_t(15));
    *--top = nullptr;  // where a call would have left its return address
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    sp = top;
  }
  // Keeps what a call must keep, on the old stack and from the new one
  __attribute__((naked, noinline, no_sanitize("thread", "address", "undefined"))) static void swap(void**, void*) {
    asm("push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15; mov %rsp, (%rdi);"
        "mov %rsi, %rsp; pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp; ret");
  }
  void go(Context& to) { swap(&sp, to.sp); }
};
#else
struct Context {
  ucontext_t context{};
  void prepare(char* stack, std::size_t size, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack, context.uc_stack.ss_size = size, context.uc_link = nullptr;
    makecontext(&context, entry, 0);
  }
  void go(Context& to) { swapcontext(&context, &to.context); }
};
#endif

struct Fiber {
  static constexpr std::size_t kStack = 256 << 10;  // of which only touched pages are real
  Context context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  void* tsan = nullptr;
  void* fake_stack = nullptr;  // AddressSanitizer's
  const Barrier* waits_for = nullptr;
  bool finished = true, yielded = false;
};

// Where n fibers meet. Two tokens in turn: a fiber that is already at the next meeting must not seem to have been before
// one that has yet to leave this one, or ThreadSanitizer would miss races between them.
struct Barrier {
  const char* name;
  int expected, arrived = 0;
  unsigned phase = 0;
  std::vector<Fiber*> waiting{};
  char token[2] = {};
};

class Scheduler {
 public:
  static Scheduler& get() {
    static Scheduler scheduler;
    return scheduler;
  }

  void seed(std::uint32_t seed) {
    seed_ = seed;
    random_.seed(seed);
  }
  // 0 … n-1, shuffled unless the seed is 0
  std::vector<int> order(int n) {
    std::vector<int> order(n);
    for (int i = 0; i < n; ++i) order[i] = i;
    if (seed_)
      for (int i = n - 1; i > 0; --i) std::swap(order[i], order[random_() % (i + 1)]);
    return order;
  }

  // Runs body(0) … body(n - 1), each as a fiber, to the end. Throws where they wait for each other forever.
  void run(int n, const std::function<void(int)>& body) {
    __tsan_release(&edge_);  // what the host wrote before the launch is seen
    loop(n, body);
    __tsan_acquire(&edge_);
  }

  int current() const { return current_; }

  void arrive(Barrier& barrier) {
    const Overlooked overlooked;
    __tsan_release(&barrier.token[barrier.phase & 1]);
    if (++barrier.arrived < barrier.expected) return;
    barrier.arrived = 0;
    ++barrier.phase;
    for (Fiber* fiber : barrier.waiting) fiber->waits_for = nullptr;
    barrier.waiting.clear();
  }
  // phase: of the barrier when this fiber arrived
  void wait(Barrier& barrier, unsigned phase) {
    const Overlooked overlooked;
    if (barrier.phase == phase) {
      Fiber& fiber = *fibers_[current_];
      fiber.waits_for = &barrier;
      barrier.waiting.push_back(&fiber);
      leave(fiber);
    }
    __tsan_acquire(&barrier.token[phase & 1]);
  }
  void meet(Barrier& barrier) {
    const Overlooked overlooked;
    const unsigned phase = barrier.phase;
    arrive(barrier);
    wait(barrier, phase);
  }
  void yield() {  // in a loop that polls
    const Overlooked overlooked;
    fibers_[current_]->yielded = true;
    leave(*fibers_[current_]);
  }

 private:
  void loop(int n, const std::function<void(int)>& body) {
    const Overlooked overlooked;
    while (int(fibers_.size()) < n) fibers_.push_back(std::make_unique<Fiber>());
    body_ = &body;
#if EMULATOR_TSAN
    main_.tsan = __tsan_get_current_fiber();
#endif
    for (int i = 0; i < n; ++i) start(*fibers_[i]);
    int unfinished = n, idle = 0;
    while (unfinished) {
      bool progress = false;
      for (int i : order(n)) {
        Fiber& fiber = *fibers_[i];
        if (fiber.finished || fiber.waits_for) continue;
        fiber.yielded = false;
        current_ = i;
        enter(fiber);
        progress |= !fiber.yielded;
        unfinished -= fiber.finished;
      }
      idle = progress ? 0 : idle + 1;
      if (idle > 10000 || (unfinished && !any_ready(n))) fail(n);
    }
  }

  static void trampoline() {
    Scheduler& self = get();
    Fiber* fiber;
    int mine;
    {
      const Overlooked overlooked;
      mine = self.current_;
      fiber = self.fibers_[mine].get();
    }
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &self.bottom_, &self.size_);
#endif
    __tsan_acquire(&self.edge_);
    (*self.body_)(mine);
    __tsan_release(&self.edge_);
    {
      const Overlooked overlooked;
      fiber->finished = true;
    }
    self.leave(*fiber);
  }
  void start(Fiber& fiber) {
    fiber.context.prepare(fiber.stack.get(), Fiber::kStack, trampoline);
    fiber.finished = false;
    fiber.waits_for = nullptr;
    fiber.fake_stack = nullptr;
#if EMULATOR_TSAN
    if (!fiber.tsan) fiber.tsan = __tsan_create_fiber(0);
#endif
  }
  void enter(Fiber& fiber) {
#if EMULATOR_TSAN
    __tsan_switch_to_fiber(fiber.tsan, 1);  // 1: the switch synchronises nothing
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&main_.fake_stack, fiber.stack.get(), Fiber::kStack);
#endif
    main_.context.go(fiber.context);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(main_.fake_stack, nullptr, nullptr);
#endif
  }
  void leave(Fiber& fiber) {
#if EMULATOR_TSAN
    __tsan_switch_to_fiber(main_.tsan, 1);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(fiber.finished ? nullptr : &fiber.fake_stack, bottom_, size_);
#endif
    fiber.context.go(main_.context);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fiber.fake_stack, nullptr, nullptr);
#endif
  }
  bool any_ready(int n) const {
    for (int i = 0; i < n; ++i)
      if (!fibers_[i]->finished && !fibers_[i]->waits_for) return true;
    return false;
  }
  [[noreturn]] void fail(int n) {
    std::string message = "threads wait forever:";
    int shown = 0;
    for (int i = 0; i < n && shown < 8; ++i)
      if (!fibers_[i]->finished) {
        const Barrier* b = fibers_[i]->waits_for;
        message += " " + std::to_string(i) + " at " + (b ? b->name : "a flag"), ++shown;
      }
    __tsan_acquire(&edge_);
    fibers_.clear();  // their stacks are lost in mid-flight
    throw std::runtime_error(message);
  }

  std::vector<std::unique_ptr<Fiber>> fibers_;
  Fiber main_;
  const std::function<void(int)>* body_ = nullptr;
  std::mt19937 random_;
  std::uint32_t seed_ = 0;
  int current_ = 0;
  char edge_ = 0;
  const void* bottom_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace emulator
