// The threads of the process's engines.
#pragma once

namespace stdc {

// Runs fn(argument, i) on up to `threads` threads, i = 0 on this one. Others may come late or not at all, so fn
// takes its work from a common list. If the pool is in use, fn runs on this thread alone.
void parallel(int threads, void (*fn)(void*, int), void* argument);

}  // namespace stdc
