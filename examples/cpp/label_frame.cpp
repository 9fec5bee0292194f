// Labels a raw RGB frame with a saved plan and counts the pixels of each label. Needs neither Python nor torch.
//
//   label_frame PLAN FRAME HEIGHT WIDTH [THREADS]
#include <array>
#include <cstdio>
#include <exception>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine.h"

namespace {

std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream bytes;
  if (!file || !(bytes << file.rdbuf())) throw std::runtime_error(path + ": can not be read, or is empty");
  return bytes.str();
}

int64_t number(const std::string& text, int64_t highest) {
  const bool digits = !text.empty() && text.size() < 10 && text.find_first_not_of("0123456789") == std::string::npos;
  const int64_t n = digits ? std::stoll(text) : 0;
  if (n < 1 || n > highest) throw std::runtime_error(text + " is no number from 1 to " + std::to_string(highest));
  return n;
}

void run(const std::vector<std::string>& arguments) {
  if (arguments.size() != 4 && arguments.size() != 5)
    throw std::runtime_error("usage: label_frame PLAN FRAME HEIGHT WIDTH [THREADS]");
  const int64_t height = number(arguments[2], 65536), width = number(arguments[3], 65536);
  const int threads = arguments.size() == 5 ? static_cast<int>(number(arguments[4], 256)) : 1;

  const std::string plan = read(arguments[0]);
  stdc::Engine engine(plan.data(), plan.size());
  std::string pixels = read(arguments[1]);
  if (static_cast<int64_t>(pixels.size()) != height * width * 3)
    throw std::runtime_error(arguments[1] + ": " + std::to_string(pixels.size()) + " bytes, not " +
                             std::to_string(height) + " x " + std::to_string(width) + " x 3");

  // Any number of frames may follow: the engine keeps its memory.
  std::vector<uint8_t> labels(height * width);
  const stdc::Tensor frame{&pixels[0], stdc::DType::u8, {1, height, width, 3}, {height * width * 3, width * 3, 3, 1}};
  const stdc::Tensor output{labels.data(), stdc::DType::u8, {1, height, width, 1}, {height * width, width, 1, 1}};
  engine.run(&frame, 1, output, height, width, threads);

  std::array<int64_t, 256> counts{};
  for (const uint8_t label : labels) counts[label]++;
  std::printf("%s, %s, %d threads\n", engine.name().c_str(), engine.isa(), threads);
  for (size_t label = 0; label < counts.size(); label++)
    if (counts[label]) std::printf("%zu: %lld\n", label, static_cast<long long>(counts[label]));
}

}  // namespace

int main(int count, char** arguments) {
  try {
    run({arguments + 1, arguments + count});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "label_frame: %s\n", error.what());
    return 1;
  }
}
