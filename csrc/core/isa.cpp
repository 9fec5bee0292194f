// Which instruction sets were built, which this processor has, and their row kernels.
#include <cstdlib>
#include <stdexcept>

#include "engine.h"
#include "dtypes.h"
#include "kernel_set.h"
#include "ops/costs.h"
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace stdc {

// What csrc/cpu defines, which is compiled once for each set.
#define STDC_DECLARE_ROW(set, name, arguments, dtype) void name##_##dtype##_##set(const arguments&);
#define STDC_DECLARE_KERNEL(set, name, arguments, dtypes) dtypes(STDC_DECLARE_ROW, set, name, arguments)
#define STDC_DECLARE_COPY(set, from, to) void copy_##from##_##to##_##set(const CopyRow&);
#define STDC_DECLARE_PRODUCTS(set)                      \
  STDC_PRODUCT_KERNELS(STDC_DECLARE_KERNEL, set)        \
  extern const int block_##set;
#define STDC_DECLARE(set)                        \
  STDC_DECLARE_PRODUCTS(set)                     \
  STDC_OTHER_KERNELS(STDC_DECLARE_KERNEL, set)   \
  STDC_COPIES(STDC_DECLARE_COPY, set)

#define STDC_FILL_ROW(set, name, arguments, dtype) kernels.name[DType::dtype] = name##_##dtype##_##set;
#define STDC_FILL_KERNEL(set, name, arguments, dtypes) dtypes(STDC_FILL_ROW, set, name, arguments)
#define STDC_FILL_COPY(set, from, to) kernels.copy[DType::from][DType::to] = copy_##from##_##to##_##set;
// Products of one set, everything else of another.
#define STDC_SET(set, products, finish_tiles, rates_f32, rates_bf16, rates_u8) \
  [] {                                                             \
    KernelSet kernels{};                                           \
    kernels.name = #products;                                      \
    kernels.block = block_##products;                              \
    kernels.finish = finish_tiles;                                 \
    kernels.rates[DType::f32] = rates_f32;                         \
    kernels.rates[DType::bf16] = rates_bf16;                       \
    kernels.rates[DType::u8] = rates_u8;                           \
    STDC_PRODUCT_KERNELS(STDC_FILL_KERNEL, products)               \
    STDC_OTHER_KERNELS(STDC_FILL_KERNEL, set)                      \
    STDC_COPIES(STDC_FILL_COPY, set)                               \
    return kernels;                                                \
  }()

STDC_DECLARE(portable)
#if defined(STDC_HAVE_avx2)
STDC_DECLARE(avx2)
#endif
#if defined(STDC_HAVE_avx512)
STDC_DECLARE(avx512)
#endif
#if defined(STDC_HAVE_avx512_bf16)
STDC_DECLARE(avx512_bf16)
#endif
#if defined(STDC_HAVE_avx512_vnni)
STDC_DECLARE_PRODUCTS(avx512_vnni)
#endif
#if defined(STDC_HAVE_avx2_vnni)
STDC_DECLARE_PRODUCTS(avx2_vnni)
#endif
#if defined(STDC_HAVE_amx_bf16)
STDC_DECLARE_PRODUCTS(amx_bf16)
void finish_amx_bf16();
#endif
#if defined(STDC_HAVE_amx_emulated)
STDC_DECLARE_PRODUCTS(amx_emulated)
void finish_amx_emulated();
#endif

namespace {

// Those of AVX512-BF16 are from whole frames on a Zen 4 core, the others are estimates from them, by width and
// instructions; tiles were faster with each of these sets there. AMX was not measured: its products are taken at nine
// tenths of the peak, which nothing that streams weights reaches, so that tiles are used only where they pay anyway.
// Of 8 bits only the products count.
[[maybe_unused]] constexpr Rates kAmx{460, 20, 10}, kAvx512Bf16{31, 20, 10}, kAvx512Pairs{11, 20, 10}, kAvx512{14, 20, 10},
    kAvx2Pairs{7, 20, 10}, kAvx2{13, 20, 10};
constexpr Rates kPortable{3.5, 45, 20};
[[maybe_unused]] constexpr Rates kAmx8{920, 0, 0}, kAvx512Vnni{62, 0, 0}, kAvx2Vnni{31, 0, 0}, kAvx512Halves{16, 0, 0},
    kAvx2Halves{8, 0, 0};
constexpr Rates kPortable8{2, 0, 0};

#if defined(__x86_64__)
bool avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma");
}
bool avx512_vnni() { return avx512() && __builtin_cpu_supports("avx512vnni"); }
bool avx512_bf16() { return avx512_vnni() && __builtin_cpu_supports("avx512bf16"); }
bool avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

struct Leaf7 {
  explicit Leaf7(unsigned sub) : a(7), c(sub) { __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d)); }
  unsigned a, b = 0, c, d = 0;
};

// NOTE: not every compiler knows the name of AVX-VNNI. The first sub-leaf says how many there are.
[[maybe_unused]] bool avx2_vnni() { return avx2() && Leaf7(0).a >= 1 && (Leaf7(1).a >> 4 & 1); }

#if defined(STDC_HAVE_amx_bf16)
// AMX-BF16, AMX-TILE and AMX-INT8; and the kernel must allow the tiles' state to this process.
bool amx_bf16() {
  if (!avx512_bf16()) return false;
  const unsigned d = Leaf7(0).d;
  if (!(d >> 22 & 1) || !(d >> 24 & 1) || !(d >> 25 & 1)) return false;
#if defined(__linux__)
  constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}
#endif
#endif

const std::vector<KernelSet>& sets() {
  static const std::vector<KernelSet> found = [] {
    std::vector<KernelSet> all;
#if defined(__x86_64__)
    __builtin_cpu_init();
#if defined(STDC_HAVE_amx_bf16) && defined(STDC_HAVE_avx512_bf16)
    if (amx_bf16()) all.push_back(STDC_SET(avx512_bf16, amx_bf16, finish_amx_bf16, kAvx512, kAmx, kAmx8));
#endif
#if defined(STDC_HAVE_avx512_bf16)
    if (avx512_bf16()) all.push_back(STDC_SET(avx512_bf16, avx512_bf16, nullptr, kAvx512, kAvx512Bf16, kAvx512Vnni));
#endif
#if defined(STDC_HAVE_avx512_vnni) && defined(STDC_HAVE_avx512)
    if (avx512_vnni()) all.push_back(STDC_SET(avx512, avx512_vnni, nullptr, kAvx512, kAvx512Pairs, kAvx512Vnni));
#endif
#if defined(STDC_HAVE_avx512)
    if (avx512()) all.push_back(STDC_SET(avx512, avx512, nullptr, kAvx512, kAvx512Pairs, kAvx512Halves));
#endif
#if defined(STDC_HAVE_avx2_vnni) && defined(STDC_HAVE_avx2)
    if (avx2_vnni()) all.push_back(STDC_SET(avx2, avx2_vnni, nullptr, kAvx2, kAvx2Pairs, kAvx2Vnni));
#endif
#if defined(STDC_HAVE_avx2)
    if (avx2()) all.push_back(STDC_SET(avx2, avx2, nullptr, kAvx2, kAvx2Pairs, kAvx2Halves));
#endif
#endif
    all.push_back(STDC_SET(portable, portable, nullptr, kPortable, kPortable, kPortable8));
#if defined(STDC_HAVE_amx_emulated)
    all.push_back(STDC_SET(portable, amx_emulated, finish_amx_emulated, kPortable, kAmx, kAmx8));
#endif
    return all;
  }();
  return found;
}

}  // namespace

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const KernelSet& k : sets()) names.push_back(k.name);
  return names;
}

std::string best_isa(const std::string& wanted) {
  std::string name = wanted, origin;
  if (name.empty()) {
    const char* forced = std::getenv("STDC_FAST_CPU_ISA");
    if (!forced || !*forced) return sets().front().name;
    for (const char* c = forced; *c; c++) name += static_cast<char>(*c >= 'A' && *c <= 'Z' ? *c - 'A' + 'a' : *c);
    origin = " (from STDC_FAST_CPU_ISA)";
  }
  std::string here;
  for (const KernelSet& k : sets()) {
    if (name == k.name) return name;
    if (std::string(k.name) != "amx_emulated") here += (here.empty() ? "" : ", ") + std::string(k.name);
  }
  throw std::runtime_error("instruction set " + name + origin + " was not built or this processor lacks it; use " + here);
}

bool levels_pay(const std::string& isa, const std::string& dtype, bool tiles, const std::array<int64_t, 6>& shape) {
  DType maps;
  if (!find_dtype(dtype, maps) || !traits(maps).maps) throw std::runtime_error("no maps of " + dtype);
  return levels_pay(kernel_set(best_isa(isa)), maps,
                    {static_cast<int>(shape[0]), static_cast<int>(shape[1]), shape[2], shape[3], shape[4], shape[5]}, tiles);
}

const KernelSet& kernel_set(const std::string& isa) {
  for (const KernelSet& k : sets())
    if (isa == k.name) return k;
  throw std::runtime_error("no instruction set " + isa);
}

}  // namespace stdc
