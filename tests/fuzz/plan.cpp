// libFuzzer's target for saved plans: the engine refuses one, or runs it within its memory. See plans.py.
//
// The input is a plan's header; weights follow here, so that the fuzzer's bytes go into what is parsed.
#include <cstdint>
#include <cstring>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "engine.h"

namespace {

constexpr size_t kWeights = 1 << 18;
constexpr int64_t kHeight = 24, kWidth = 40;
constexpr int64_t kMostChannels = 512;

struct Buffer {
  std::string store;
  int64_t channels = 0, stride = 0;
};

struct Ends {
  std::string dtype;
  std::vector<Buffer> inputs;
  Buffer output;
};

// What a sound plan reads and writes; the engine has checked its text.
bool find_ends(const std::string& plan, Ends& ends) {
  std::istringstream in(plan);
  std::string line, word;
  std::getline(in, line);
  in >> word >> ends.dtype;
  int64_t count = 0;
  in >> word >> count;
  std::getline(in, line);
  std::vector<Buffer> buffers;
  for (int64_t i = 0; i < count && std::getline(in, line); i++) {
    std::istringstream one(line);
    Buffer b;
    one >> b.store >> b.channels >> b.stride;
    if (b.channels > kMostChannels) return false;
    buffers.push_back(b);
  }
  const int64_t size = static_cast<int64_t>(buffers.size());
  while (std::getline(in, line)) {
    std::istringstream one(line);
    one >> word;
    if (word == "data") return ends.output.channels > 0;
    if (word == "inputs") {
      one >> count;
      for (int64_t b; count-- && one >> b && b >= 0 && b < size;) ends.inputs.push_back(buffers[b]);
    } else if (word == "output") {
      int64_t b = -1;
      if (one >> b && b >= 0 && b < size) ends.output = buffers[b];
    }
  }
  return false;
}

stdc::Tensor tensor(const Buffer& b, const std::string& dtype, std::vector<std::unique_ptr<char[]>>& memory) {
  const stdc::DType type = b.store == "frame" ? stdc::DType::u8
                           : b.store == "logits" || dtype == "float32" ? stdc::DType::f32 : stdc::DType::bf16;
  const int64_t stride = b.stride > 0 ? b.stride : 1;
  const int64_t h = (kHeight + stride - 1) / stride, w = (kWidth + stride - 1) / stride, c = b.channels;
  const size_t bytes = static_cast<size_t>(h * w * c) * (type == stdc::DType::f32 ? 4 : type == stdc::DType::u8 ? 1 : 2);
  memory.emplace_back(new char[bytes]());
  return {memory.back().get(), type, {1, h, w, c}, {h * w * c, w * c, c, 1}};
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string plan(reinterpret_cast<const char*>(data), size);
  plan.resize((plan.size() + 63) / 64 * 64 + kWeights, '\0');
  for (size_t i = plan.size() - kWeights; i + 1 < plan.size(); i += 2) plan[i + 1] = 0x3c;
  try {
    const std::unique_ptr<char[]> bytes(new char[plan.size()]);
    std::memcpy(bytes.get(), plan.data(), plan.size());
    stdc::Engine engine(bytes.get(), plan.size(), size % 2 ? "portable" : "");
    Ends ends;
    if (!find_ends(plan, ends)) return 0;
    std::vector<std::unique_ptr<char[]>> memory;
    std::vector<stdc::Tensor> inputs;
    for (const Buffer& b : ends.inputs) inputs.push_back(tensor(b, ends.dtype, memory));
    const stdc::Tensor output = tensor(ends.output, ends.dtype, memory);
    engine.run(inputs.data(), static_cast<int>(inputs.size()), output, kHeight, kWidth, 2);
  } catch (const std::exception&) {
  }
  return 0;
}
