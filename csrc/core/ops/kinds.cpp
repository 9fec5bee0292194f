// The kinds of ops that a saved plan may have, one line each: the word in the plan, and make_word() in a file beside.
#include "../op.h"

#define STDC_KINDS(KIND) \
  KIND(frame)            \
  KIND(import)           \
  KIND(export)           \
  KIND(conv)             \
  KIND(down)             \
  KIND(gate)             \
  KIND(prologue)         \
  KIND(upsample)

namespace stdc {

#define STDC_DECLARE(kind) std::unique_ptr<Op> make_##kind();
STDC_KINDS(STDC_DECLARE)

std::unique_ptr<Op> make_op(const std::string& kind) {
  std::unique_ptr<Op> op;
#define STDC_MAKE(word) \
  if (kind == #word) op = make_##word();
  STDC_KINDS(STDC_MAKE)
  if (op) op->kind = kind;
  return op;
}

}  // namespace stdc
