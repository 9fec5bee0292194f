// Stacks and the switch between them: the registers that a call keeps, in assembly; ucontext elsewhere.
#include "fiber.h"

#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <stdexcept>

#if STDC_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(STDC_UCONTEXT)
extern "C" void stdc_switch_fiber(void** from, void* to);
extern "C" void stdc_start_fiber();

// NOTE: floating-point modes are not switched: all fibers of a launch have those of its caller.
// NOTE: ret, not a jump: most fibers go on in the calls that the one before made, as the processor predicts.
asm(R"(
.pushsection .text
.p2align 4
.hidden stdc_switch_fiber
.globl stdc_switch_fiber
.type stdc_switch_fiber, @function
stdc_switch_fiber:
  .cfi_startproc
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .cfi_endproc
.size stdc_switch_fiber, .-stdc_switch_fiber

.p2align 4
.hidden stdc_start_fiber
.globl stdc_start_fiber
.type stdc_start_fiber, @function
stdc_start_fiber:
  .cfi_startproc
  .cfi_undefined rip
  call *%rbx
  ud2
  .cfi_endproc
.size stdc_start_fiber, .-stdc_start_fiber
.popsection
)");
#endif

namespace stdc {
namespace gpu {
namespace emulator {
namespace {

// Frames are some times as large with AddressSanitizer.
constexpr size_t kStack = STDC_ASAN ? 256 << 10 : 64 << 10;

}  // namespace

void allocate(Context& context, size_t index) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  // Pages more than needed, to begin at other places than the stacks before: else all would share few cache lines.
  const size_t all = kStack + 2 * page;
  void* p = mmap(nullptr, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED || mprotect(p, page, PROT_NONE) != 0) throw std::runtime_error("no memory for stacks");
  context.stack = static_cast<char*>(p) + page;
  context.bytes = kStack + page - index * 320 % page / 64 * 64;
}

void prepare(Context& context, void (*entry)()) {
#if STDC_ASAN
  __asan_unpoison_memory_region(context.stack, context.bytes);
  context.fake = nullptr;
#endif
#if defined(STDC_UCONTEXT)
  getcontext(&context.state);
  context.state.uc_stack.ss_sp = context.stack;
  context.state.uc_stack.ss_size = context.bytes;
  context.state.uc_link = nullptr;
  makecontext(&context.state, entry, 0);
#else
  void** top = reinterpret_cast<void**>(context.stack + context.bytes);
  // r15, r14, r13, r12, rbx, rbp and where to go on; with the stack then a multiple of 16.
  top -= 9;
  memset(top, 0, 9 * sizeof(void*));
  top[4] = reinterpret_cast<void*>(entry);
  top[6] = reinterpret_cast<void*>(&stdc_start_fiber);
  context.top = top;
#endif
}

void switch_to(Context& from, Context& to, bool last) {
#if STDC_ASAN
  __sanitizer_start_switch_fiber(last ? nullptr : &from.fake, to.stack, to.bytes);
#else
  (void)last;
#endif
#if defined(STDC_UCONTEXT)
  swapcontext(&from.state, &to.state);
#else
  stdc_switch_fiber(&from.top, to.top);
#endif
#if STDC_ASAN
  __sanitizer_finish_switch_fiber(from.fake, nullptr, nullptr);
#endif
}

void arrived(Context& from) {
#if STDC_ASAN
  const void* bottom = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  // The stack of the thread that launches is not ours to know otherwise.
  if (from.stack == nullptr) {
    from.stack = static_cast<char*>(const_cast<void*>(bottom));
    from.bytes = bytes;
  }
#else
  (void)from;
#endif
}

}  // namespace emulator
}  // namespace gpu
}  // namespace stdc
