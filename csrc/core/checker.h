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
  // That there is a row kernel for the plan's dtype.
  template <class Kernel>
  void kernel(const Op& op, const ByDType<Kernel>& kernel) const {
    if (!kernel[program.dtype])
      fail("op " + op.name + ": instruction set " + kernels.name + " has no " + op.kind + " of " +
           traits(program.dtype).name);
  }
  // That weights which are float32 in every plan, or none, have so many elements.
  void floats(const Op& op, int weight, int64_t count) const {
    if (weight < 0) return;
    const Weight& w = program.weights[weight];
    need(w.dtype == DType::f32 && w.count == count, op, "weights of another size");
  }
  // That a product can read this view's channels.
  void whole_units(const Op& op, const View& v) const {
    const int unit = traits(program.dtype).unit;
    need(v.channels % unit == 0 && v.offset % unit == 0, op, "channels are no multiple of " + std::to_string(unit));
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
