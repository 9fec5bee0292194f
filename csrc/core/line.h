// The words of one line of a saved plan.
#pragma once

#include <sstream>
#include <string>

#include "program.h"

namespace stdc {

constexpr int kLimit = 1 << 16;  // of channels, ops and so on: what is beyond is damaged

// std::runtime_error that this is no usable plan.
[[noreturn]] void fail(const std::string& what);

class Line {
 public:
  // The program is what earlier lines made.
  Line(const std::string& text, const Program& program) : program_(program), text_(text), in_(text) {}

  std::string word();
  int number(int low = 0, int high = kLimit);
  int64_t large();
  float real();
  void expect(const char* key);
  int buffer();
  int weight();           // index
  int optional_weight();  // -1: none
  View view();
  View optional_view();
  int version() const { return program_.version; }

 private:
  [[noreturn]] void refuse(const std::string& word) const { fail(word + " in: " + text_); }

  const Program& program_;
  std::string text_;
  std::istringstream in_;
};

}  // namespace stdc
