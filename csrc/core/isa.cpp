// Which instruction sets were built, which this processor has, and their tables of kernels.
#include <cstdlib>
#include <stdexcept>

#include "state.h"
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace stdc {

#define STDC_DECLARE_CONV(isa)              \
  void conv_f32_##isa(const ConvRow&);      \
  void conv_bf16_##isa(const ConvRow&);     \
  extern const int block_##isa;
#define STDC_DECLARE(isa)                                                                  \
  STDC_DECLARE_CONV(isa)                                                                   \
  void winograd_in_f32_##isa(const WinogradIn&);                                           \
  void winograd_in_bf16_##isa(const WinogradIn&);                                          \
  void winograd_out_f32_##isa(const WinogradOut&);                                         \
  void winograd_out_bf16_##isa(const WinogradOut&);                                        \
  void down_f32_##isa(const DownRow&);                                                     \
  void down_bf16_##isa(const DownRow&);                                                    \
  void prologue_f32_##isa(const PrologueRow&);                                             \
  void prologue_bf16_##isa(const PrologueRow&);                                            \
  void gate_##isa(const GateLayer&);                                                       \
  void frame_f32_##isa(const FrameRow&);                                                   \
  void frame_bf16_##isa(const FrameRow&);                                                  \
  void best_##isa(const float*, ptrdiff_t, int, int64_t, uint8_t*);                        \
  void labels_##isa(const LabelRow&);                                                      \
  void copy_##isa(const CopyRow&);
// Convolutions of one set, everything else of another.
#define STDC_TABLE(isa, conv, finish, bf16)                                                                     \
  Kernels{#conv, block_##conv, conv_f32_##conv, conv_bf16_##conv, finish, bf16, finish == nullptr,            \
          winograd_in_f32_##isa, winograd_in_bf16_##isa, winograd_out_f32_##isa, winograd_out_bf16_##isa, down_f32_##isa, down_bf16_##isa,     \
          prologue_f32_##isa, prologue_bf16_##isa, gate_##isa, frame_f32_##isa, frame_bf16_##isa, best_##isa,  \
          labels_##isa, copy_##isa}

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
#if defined(STDC_HAVE_amx_bf16)
STDC_DECLARE_CONV(amx_bf16)
void finish_amx_bf16();
#endif
#if defined(STDC_HAVE_amx_emulated)
STDC_DECLARE_CONV(amx_emulated)
void finish_amx_emulated();
#endif

namespace {

#if defined(__x86_64__)
bool avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma");
}
bool avx512_bf16() { return avx512() && __builtin_cpu_supports("avx512bf16"); }

#if defined(STDC_HAVE_amx_bf16)
// Bits of leaf 7 in edx: AMX-BF16 and AMX-TILE; and the kernel must allow the tiles' state to this process.
bool amx_bf16() {
  if (!avx512_bf16()) return false;
  unsigned a = 7, b = 0, c = 0, d = 0;
  __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  if (!(d >> 22 & 1) || !(d >> 24 & 1)) return false;
#if defined(__linux__)
  constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}
#endif
#endif

const std::vector<Kernels>& tables() {
  static const std::vector<Kernels> found = [] {
    std::vector<Kernels> all;
#if defined(__x86_64__)
    __builtin_cpu_init();
#if defined(STDC_HAVE_amx_bf16) && defined(STDC_HAVE_avx512_bf16)
    if (amx_bf16()) all.push_back(STDC_TABLE(avx512_bf16, amx_bf16, finish_amx_bf16, true));
#endif
#if defined(STDC_HAVE_avx512_bf16)
    if (avx512_bf16()) all.push_back(STDC_TABLE(avx512_bf16, avx512_bf16, nullptr, true));
#endif
#if defined(STDC_HAVE_avx512)
    if (avx512()) all.push_back(STDC_TABLE(avx512, avx512, nullptr, false));
#endif
#if defined(STDC_HAVE_avx2)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) all.push_back(STDC_TABLE(avx2, avx2, nullptr, false));
#endif
#endif
    all.push_back(STDC_TABLE(portable, portable, nullptr, false));
#if defined(STDC_HAVE_amx_emulated)
    all.push_back(STDC_TABLE(portable, amx_emulated, finish_amx_emulated, true));
#endif
    return all;
  }();
  return found;
}

}  // namespace

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const Kernels& k : tables()) names.push_back(k.name);
  return names;
}

std::string best_isa(const std::string& wanted) {
  std::string name = wanted, origin;
  if (name.empty()) {
    const char* forced = std::getenv("STDC_FAST_CPU_ISA");
    if (!forced || !*forced) return tables().front().name;
    for (const char* c = forced; *c; c++) name += static_cast<char>(*c >= 'A' && *c <= 'Z' ? *c - 'A' + 'a' : *c);
    origin = " (from STDC_FAST_CPU_ISA)";
  }
  std::string here;
  for (const Kernels& k : tables()) {
    if (name == k.name) return name;
    if (name != k.name && std::string(k.name) != "amx_emulated") here += (here.empty() ? "" : ", ") + std::string(k.name);
  }
  throw std::runtime_error("instruction set " + name + origin + " was not built or this processor lacks it; use " + here);
}

const Kernels& kernels(const std::string& isa) {
  for (const Kernels& k : tables())
    if (isa == k.name) return k;
  throw std::runtime_error("no instruction set " + isa);
}

}  // namespace stdc
