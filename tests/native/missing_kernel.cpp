// Reads a saved plan with an instruction set that lacks one row kernel of the plan's dtype, for each that it needs.
//
//   missing_kernel PLAN        prints what is said of each; the plan is to use all of these kernels
#include <cstdio>
#include <exception>
#include <fstream>
#include <sstream>
#include <string>

#include "core/kernel_set.h"
#include "core/program.h"
#include "engine.h"

int main(int, char** arguments) {
  std::ifstream file(arguments[1], std::ios::binary);
  std::ostringstream bytes;
  bytes << file.rdbuf();
  const std::string plan = bytes.str();
  const stdc::KernelSet whole = stdc::kernel_set(stdc::best_isa());
  const stdc::DType dtype = stdc::parse(plan.data(), plan.size(), whole).dtype;
  const auto attempt = [&](const char* what, auto remove) {
    stdc::KernelSet set = whole;
    set.name = "reduced";
    remove(set);
    try {
      stdc::parse(plan.data(), plan.size(), set);
      std::printf("%s: nothing\n", what);
    } catch (const std::exception& error) {
      std::printf("%s: %s\n", what, error.what());
    }
  };
  attempt("conv", [&](stdc::KernelSet& set) { set.conv[dtype] = nullptr; });
  attempt("down", [&](stdc::KernelSet& set) { set.down[dtype] = nullptr; });
  attempt("prologue", [&](stdc::KernelSet& set) { set.prologue[dtype] = nullptr; });
  attempt("frame", [&](stdc::KernelSet& set) { set.frame[dtype] = nullptr; });
  attempt("border", [&](stdc::KernelSet& set) { set.copy[stdc::DType::f32][dtype] = nullptr; });
  attempt("of another dtype", [&](stdc::KernelSet& set) { set.conv[stdc::DType::u8] = nullptr; });
}
