#include "core/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fastvoc {

// CMake's FASTVOC_ISAS says which are built; the address of any other is null.
namespace baseline { [[gnu::weak]] extern const CpuKernels kKernels; }
namespace avx2 { [[gnu::weak]] extern const CpuKernels kKernels; }
namespace avx512 { [[gnu::weak]] extern const CpuKernels kKernels; }
namespace avx512bf16 { [[gnu::weak]] extern const CpuKernels kKernels; }
namespace amx { [[gnu::weak]] extern const CpuKernels kKernels; }
namespace avx512bf16_emulated { [[gnu::weak]] extern const CpuKernels kKernels; }
namespace amx_emulated { [[gnu::weak]] extern const CpuKernels kKernels; }

namespace {

#if defined(__x86_64__)

bool cpuid_bit(unsigned leaf, unsigned subleaf, int reg, int bit) {
  unsigned r[4] = {};
  return __get_cpuid_count(leaf, subleaf, &r[0], &r[1], &r[2], &r[3]) && (r[reg] >> bit & 1);
}

// Has the operating system promised to keep these registers? (XCR0)
bool saves(unsigned long long mask) {
  if (!cpuid_bit(1, 0, 2, 27)) return false;  // OSXSAVE
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return ((static_cast<unsigned long long>(high) << 32 | low) & mask) == mask;
}

const char* missing_avx2() {
  if (!saves(0x6)) return "the operating system does not save AVX registers";
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? nullptr : "the CPU has no AVX2 with FMA";
}

const char* missing_avx512() {
  if (!saves(0xe6)) return "the operating system does not save AVX-512 registers";
  const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                   __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  return has ? missing_avx2() : "the CPU has no AVX-512 (F, DQ, BW, VL)";
}

const char* missing_avx512bf16() {
  if (const char* reason = missing_avx512()) return reason;
  if (!cpuid_bit(7, 0, 2, 11)) return "the CPU has no AVX512-VNNI";
  return cpuid_bit(7, 1, 0, 5) ? nullptr : "the CPU has no AVX512-BF16";
}

const char* missing_amx() {
  if (const char* reason = missing_avx512()) return reason;
  if (!cpuid_bit(7, 0, 2, 11)) return "the CPU has no AVX512-VNNI";
  if (!cpuid_bit(7, 0, 3, 24) || !cpuid_bit(7, 0, 3, 22)) return "the CPU has no AMX-BF16";
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl(ARCH_REQ_XCOMP_PERM): Linux 5.16
  if (!saves(0x60000) || syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0)
    return "the operating system does not permit AMX tiles";
  return nullptr;
}

#endif

struct Table {
  Isa entries[8];
  int count = 0;
  void add(const CpuKernels* kernels, const char* reason, bool emulated = false) {
    if (kernels) entries[count++] = {kernels, reason == nullptr, emulated, reason};
  }
  Table() {
    add(&baseline::kKernels, nullptr);
#if defined(__x86_64__)
    add(&avx2::kKernels, missing_avx2());
    add(&avx512::kKernels, missing_avx512());
    add(&avx512bf16::kKernels, missing_avx512bf16());
    add(&amx::kKernels, missing_amx());
#endif
    add(&avx512bf16_emulated::kKernels, nullptr, true);
    add(&amx_emulated::kKernels, nullptr, true);
  }
};

const Table& table() {
  static const Table t;
  return t;
}

}  // namespace

int isa_count() { return table().count; }
const Isa& isa(int index) { return table().entries[index]; }

}  // namespace fastvoc
