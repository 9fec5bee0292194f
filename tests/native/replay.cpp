// What a replay asks of the CUDA runtime; test_replay.py compares what this prints.
#include "replay.h"

#include <stdexcept>

#include "cuda_runtime_api.h"

using namespace stdc::gpu;

namespace {

void* at(uintptr_t address) { return reinterpret_cast<void*>(address); }

// A kernel whose argument has two places and a number.
Kernel kernel(uintptr_t first, uintptr_t second) {
  Kernel made{at(0xf0), std::vector<unsigned char>(24, 0)};
  void* places[] = {at(first), at(second)};
  memcpy(made.bytes.data(), places, sizeof places);
  return made;
}

template <class Work>
void section(const char* name, Work work) {
  printf("# %s\n", name);
  try {
    work();
  } catch (const std::exception& error) {
    printf("error %s\n", error.what());
  }
}

}  // namespace

int main() {
  const Places own{at(0x10), 100, at(0x20), 50};
  Fake& fake = Fake::it();
  section("copies", [&] {
    Replay replay(at(0xa), at(0xb), 0, own, {});
    printf("%d\n", replay(at(0xc), at(0x30), at(0x40)));
    replay.reset();
  });
  section("captured", [&] {
    Replay replay(at(0xa), at(0xb), 0, own, {});
    fake.capturing = cudaStreamCaptureStatusActive;
    printf("%d\n", replay(at(0xc), at(0x30), at(0x40)));
    fake.capturing = cudaStreamCaptureStatusNone;
  });
  section("another device", [&] {
    Replay replay(at(0xa), at(0xb), 1, own, {});
    replay(at(0xc), at(0x30), at(0x40));
    printf("back on %d\n", fake.device);
  });
  Kernel kernels[] = {kernel(0x10, 0x11), kernel(0x12, 0x20)};  // printed in this order
  Kernel &stem = kernels[0], &upsample = kernels[1];
  const std::vector<Node> nodes{{&stem, 24}, {&upsample, 24}};
  const auto executable = [&] { fake.executable = {{&stem, stem.bytes}, {&upsample, upsample.bytes}}; };
  section("places", [&] {
    executable();
    Replay replay(at(0xa), at(0xb), 0, own, nodes);
    replay(at(0xc), at(0x30), at(0x40));
    replay(at(0xc), at(0x30), at(0x50));
    replay.reset();
    replay(at(0xc), at(0x10), at(0x20));
    printf("captured %d\n", memcmp(stem.bytes.data(), kernel(0x10, 0x11).bytes.data(), 24) == 0);
  });
  section("a place that is not taken", [&] {
    executable();
    Replay replay(at(0xa), at(0xb), 0, own, nodes);
    fake.fail = 1;
    try {
      replay(at(0xc), at(0x30), at(0x40));
    } catch (const std::runtime_error& error) {
      printf("error %s\n", error.what());
    }
    replay(at(0xc), at(0x30), at(0x40));
  });
  section("no such place", [&] { Replay(at(0xa), at(0xb), 0, own, {{&upsample, 24}, {&stem, 24}}); });
  Kernel twice = kernel(0x10, 0x10);
  section("a place twice", [&] { Replay(at(0xa), at(0xb), 0, own, {{&twice, 24}, {&upsample, 24}}); });
  section("one node", [&] { Replay(at(0xa), at(0xb), 0, own, {{&stem, 24}}); });
  section("no graph", [&] { Replay(nullptr, at(0xb), 0, own, {}); });
  section("a captured node", [&] {
    fake.capturing = cudaStreamCaptureStatusActive, fake.last = &stem;
    printf("%d\n", captured_node(at(0xc)) == &stem);
    fake.last = nullptr;
    captured_node(at(0xc));
  });
}
