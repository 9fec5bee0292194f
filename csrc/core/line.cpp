// Reads the words of a line of a saved plan: numbers within limits, views inside of buffers.
#include "line.h"

#include <locale>
#include <stdexcept>

namespace stdc {

// Of a file that may be anything: what is not printable is left out of the message.
void fail(const std::string& what) {
  std::string text;
  for (const char c : what.substr(0, 200)) text += c >= ' ' && c <= '~' ? c : '?';
  throw std::runtime_error("not a usable saved plan: " + text);
}

std::string Line::word() {
  std::string w;
  if (!(in_ >> w)) fail("line ends early: " + text_);
  return w;
}

int Line::number(int low, int high) {
  const std::string w = word();
  size_t used = 0;
  int n = 0;
  try {
    n = std::stoi(w, &used);
  } catch (const std::exception&) {
    used = 0;
  }
  if (used != w.size() || n < low || n > high) refuse(w);
  return n;
}

int64_t Line::large() {
  const std::string w = word();
  size_t used = 0;
  int64_t n = -1;
  try {
    n = std::stoll(w, &used);
  } catch (const std::exception&) {
    used = 0;
  }
  if (used != w.size() || n < 0) refuse(w);
  return n;
}

float Line::real() {
  const std::string w = word();
  std::istringstream in(w);
  in.imbue(std::locale::classic());  // a point, whatever the program's language
  float x = 0;
  if (!(in >> x) || !in.eof()) refuse(w);
  return x;
}

void Line::expect(const char* key) {
  if (word() != key) fail(std::string("no ") + key + " in: " + text_);
}

int Line::buffer() { return number(0, static_cast<int>(program_.buffers.size()) - 1); }
int Line::weight() { return number(0, static_cast<int>(program_.weights.size()) - 1); }
int Line::optional_weight() { return number(-1, static_cast<int>(program_.weights.size()) - 1); }

View Line::view() {
  View v;
  v.buffer = buffer();
  v.offset = number();
  v.channels = number(1);
  const Buffer& b = program_.buffer(v);
  if (v.offset + v.channels > b.channels) fail("view outside of " + b.name);
  return v;
}

View Line::optional_view() {
  const std::string w = word();
  if (w == "-") return {};
  if (w != "+") fail("view " + w);
  return view();
}

}  // namespace stdc
