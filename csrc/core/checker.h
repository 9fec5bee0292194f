// What ops ask when they check themselves against a plan.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "dtypes.h"
#include "kernel_set.h"
#include "line.h"
#include "program.h"

namespace stdc {

class Checker {
 public:
  Checker(const Program& p, const KernelSet& k) : program(p), kernels(k), input_(p.buffers.size()) {
    for (const int b : p.inputs) input_[b] = true;
  }

  const Program& program;
  const KernelSet& kernels;

  void need(bool holds, const Op& op, std::string_view what) const {
    if (!holds) fail("op " + op.name + ": " + std::string(what));
  }
  // That there is a row kernel for the plan's dtype, or another one.
  template <class Kernel>
  void kernel(const Op& op, const ByDType<Kernel>& kernel) const {
    this->kernel(op, kernel, program.dtype);
  }
  template <class Kernel>
  void kernel(const Op& op, const ByDType<Kernel>& kernel, DType dtype) const {
    if (!kernel[dtype])
      fail("op " + op.name + ": instruction set " + kernels.name + " has no " + op.kind + " of " + traits(dtype).name);
  }
  // That weights which are float32 in every plan, or none, have so many elements.
  void floats(const Op& op, int weight, int64_t count) const {
    if (weight < 0) return;
    const Weight& w = program.weights[weight];
    need(w.dtype == DType::f32 && w.count == count, op, "weights of another size");
  }
  // That these are inputs of products: maps, or levels where there are multipliers and whole weights.
  void factors(const Op& op, int weight, int multipliers) const {
    const bool whole = multipliers >= 0;
    for (const View& v : op.inputs) {
      need(store(v) == (whole ? Store::levels : Store::act), op, whole ? "inputs that are no levels" : "inputs that are no maps");
      const int unit = traits(program.dtype_of(v)).unit;
      need(v.channels % unit == 0 && v.offset % unit == 0, op, "channels are no multiple of " + std::to_string(unit));
      need(program.buffer(v).zero == program.buffer(op.inputs[0]).zero, op, "inputs with different zeros");
    }
    floats(op, multipliers, op.output.channels);
    // Sums of levels up to 255 by weights up to 127 are to fit into 32 bits.
    const Weight& w = program.weights[weight];
    const int64_t each = w.count / op.output.channels / (w.shape.size() == 6 ? 9 : 1);
    need(!whole || each <= INT32_MAX / (255 * 128), op, "sums of more products than 32 bits hold");
    // Float32 ones are rounded here, once: Winograd's tiles transform them before.
    need(whole ? w.dtype == DType::s8 : w.dtype == program.dtype || w.dtype == DType::f32, op,
         "weights of another dtype");
  }
  // That it has the inverse steps of the levels that it writes, and only of these.
  void levels(const Op& op, const View& v, int inverse) const {
    need((store(v) == Store::levels) == (inverse >= 0), op, "levels without steps, or the reverse");
    floats(op, inverse, v.channels);
  }
  // That it is the plan's only op of its kind.
  void only(const Op& op, const char* what) const {
    for (const auto& other : program.ops) need(other.get() == &op || other->kind != op.kind, op, what);
  }

  bool input(const View& v) const { return input_[v.buffer]; }
  Store store(const View& v) const { return program.buffer(v).store; }
  int stride(const View& v) const { return program.buffer(v).stride; }
  bool whole(const View& v) const { return !v.offset && v.channels == program.buffer(v).channels; }

 private:
  std::vector<bool> input_;  // by buffer
};

}  // namespace stdc
