// An op of a plan: everything that the engine does about one kind, from its line in a saved plan to its rows. Each kind
// is a class in a file of ops/ and a line in ops/kinds.cpp.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace stdc {

class Checker;
class Line;
class Views;
struct KernelSet;
struct Layout;
struct OpLayout;
struct Program;

// Some channels of a buffer.
struct View {
  int buffer = -1;
  int offset = 0;
  int channels = 0;
  explicit operator bool() const { return buffer >= 0; }
};

// Rows [first, last) of a map.
struct Rows {
  int64_t first, last;
};

class Op {
 public:
  virtual ~Op() = default;

  std::string kind, name;
  std::vector<View> inputs;
  View output;
  std::vector<View> reads, writes;  // all views: the inputs, or the output, first
  View mean;                        // a vector that gets the average of the output, or none

  bool labels_only = false;     // left out where the caller wants logits
  bool takes_averages = false;  // may read the `mean` of other ops
  bool starts_stage = false;    // where it reads a whole concatenation

  // Reads what follows the output in its line.
  virtual void parse(Line&) {}
  // Fails unless views and weights fit and there are row kernels, so that nothing has to be checked when it runs.
  virtual void check(const Checker&) const = 0;
  // Puts weights into the kernels' order: their bytes.
  virtual size_t pack(const Program&, const KernelSet&) { return 0; }
  // Of several ways to compute it, the one that packing chose.
  virtual const char* form() const { return ""; }
  // Rows and blocks of the output, and the work of one row of one block. The usual op computes all channels at once.
  virtual void measure(const Layout&, OpLayout&) const;
  // Changes the usual size of a task, given the work that is to be in one.
  virtual void cut(const Layout&, double /*work*/, OpLayout&) const {}
  // Steps and scratch memory of tasks whose size is known.
  virtual void lay_out(const Layout&, OpLayout&) const {}
  // Rows of an input map that these rows of the output need; they may lie outside of it.
  virtual Rows needs(const Layout&, Rows output) const { return output; }
  // Executes one task that prepares inputs, where the layout has such.
  virtual void prepare(const Views&) const {}
  // Executes one task.
  virtual void run(const Views&) const = 0;
};

// An op of this kind, or null.
std::unique_ptr<Op> make_op(const std::string& kind);

}  // namespace stdc
