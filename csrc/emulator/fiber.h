// Stacks to run on, and the switch from one to another.
#pragma once

#include <stddef.h>

#if defined(__SANITIZE_ADDRESS__)
#define STDC_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define STDC_ASAN 1
#endif
#endif
#if !defined(STDC_ASAN)
#define STDC_ASAN 0
#endif

// NOTE: define STDC_UCONTEXT to use the portable switch everywhere; it makes kernels some five times slower.
#if !defined(__x86_64__) && !defined(STDC_UCONTEXT)
#define STDC_UCONTEXT
#endif
#if defined(STDC_UCONTEXT)
#include <ucontext.h>
#endif

namespace stdc {
namespace gpu {
namespace emulator {

struct Context {
#if defined(STDC_UCONTEXT)
  ucontext_t state;
#else
  void* top;  // of the stack, where the registers are
#endif
  char* stack = nullptr;
  size_t bytes = 0;
  void* fake = nullptr;  // AddressSanitizer's
};

// Maps a stack with a page before it that must not be touched. Never unmapped.
void allocate(Context& context, size_t index);
// The next switch to it calls `entry` on its stack, which must begin with arrived() and never return.
void prepare(Context& context, void (*entry)());
// Goes on in `to`; returns when somebody switches back. `last`: nobody will.
void switch_to(Context& from, Context& to, bool last = false);
void arrived(Context& from);

}  // namespace emulator
}  // namespace gpu
}  // namespace stdc
